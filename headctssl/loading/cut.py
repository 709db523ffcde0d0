"""Cut: one view of every sample of a batch, from int16 to the channels of an encoder, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import InputSpec, Window
from headctssl.loading import augment
from headctssl.loading.crop_resize import (
    Cover,
    crop_and_resize,
    crop_and_resize_in_blocks,
    crop_and_resize_together,
)
from headctssl.loading.draws import ViewDraw
from headctssl.planning.cost import CUT_TOGETHER
from headctssl.types import PretrainBatch, Triple
from headctssl.volume.geometry import AIR_HU
from headctssl.volume.windows import WindowMap, through_windows, to_input, window_maps

__all__ = ["CutView", "InsideShares", "cut_view", "full_precision"]

FOREGROUND_HU = -500.0
"""Voxels above it count as foreground: half way between air and tissue."""

_Edges = NDArray[np.float64]
_Covered = tuple[Cover, ViewDraw, Triple]
"""The cover of a view, how it was drawn, and the size of its voxels in mm."""


@dataclass(frozen=True)
class CutView:
    """One view of every sample."""

    view: Tensor  # float32 (B, C, d, h, w) in [0, 1]
    inside: Callable[[], Tensor]  # makes float32 (B, 1, d, h, w), share of stored voxels
    foreground: Tensor  # float32 (B,), share of voxels above -500 HU
    tissue: Tensor | None  # bool (B, 1, d, h, w), True above -500 HU; only where it was asked for


class InsideShares(Sequence[Tensor]):
    """The share of stored voxels of several views, made when it is first asked for.

    Only losses on voxels ask; made at once it took a sixth of the time of the views.

    Args:
        makers: one per view.
    """

    def __init__(self, makers: Sequence[Callable[[], Tensor]]) -> None:
        self._makers = list(makers)
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of views."""
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """Float32 (B, 1, d, h, w) in [0, 1]; the same tensor every time."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if place not in self._made:
            self._made[place] = self._makers[place]()
        return self._made[place]


def cut_view(
    batch: PretrainBatch, draws: list[ViewDraw], boxes: _Edges, spacing: _Edges, spec: InputSpec, *, tissue: bool
) -> CutView:
    """One view of every sample, without gradients and in full precision, which the caller sees to.

    Args:
        batch: int16 HU volumes on any device.
        draws: B draws of one shape.
        boxes: (B, 3, 2) the stored voxels of each volume.
        spacing: (B, 3) mm of its voxels.
        spec: the windows.
        tissue: whether to say which voxels are not air.
    """
    volume, shape = batch.volume, draws[0].grid.shape
    device = volume.device
    view = _empty((len(draws), len(spec.windows), *shape), device)
    marks = torch.empty((len(draws), 1, *shape), dtype=torch.bool, device=device) if tissue else None
    at_once = _at_once(device)
    maps = window_maps(spec.windows)
    covers: list[_Covered] = []
    shares: list[Tensor] = []
    for first in range(0, len(draws), at_once):
        some = slice(first, first + at_once)
        part = None if marks is None else marks[some, 0]
        if at_once == 1:
            blocks, covered = _in_blocks(volume[first, 0], draws[first], boxes[first], spacing[first])
            changed = maps if _is_plain(draws[first]) else window_maps(_windows(draws[first], spec))
            shares.append(_fill(view[first], blocks, draws[first], changed, None if part is None else part[0]))
            covers.append(covered)
        else:
            hu, more = _sampled(volume[some, 0], draws[some], boxes[some], spacing[some])
            covers += more
            z, y = _seen(shape)
            shares.append((hu[:, z, y] > FOREGROUND_HU).float().mean(dim=(1, 2, 3)))
            if part is not None:
                torch.gt(hu, FOREGROUND_HU, out=part)
            _to_channels(hu, draws[some], spec, view[some])
            for one, draw in zip(view[some], draws[some], strict=True):
                _change_voxels(one, draw)
        for one, draw in zip(view[some], draws[some], strict=True):
            _change_neighbourhoods(one, draw)
    return CutView(view, partial(_inside, covers, device), torch.cat(shares), marks)


def _seen(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Planes and lines that tell the foreground: every 16th line is enough for a share that is only logged."""
    z, y = (slice(min(2, n // 2), None, 4) for n in shape[:2])
    return z, y


def _fill(
    view: Tensor, blocks: Iterable[tuple[slice, Tensor]], draw: ViewDraw, maps: list[WindowMap], marks: Tensor | None
) -> Tensor:
    """Make one view (C, d, h, w) of its planes in HU on a CPU, each block while it is in the caches.

    Returns:
        (1,), the share of voxels above -500 HU.
    """
    shape = view.shape[1:]
    z, y = _seen(shape)
    above = 0
    for rows, hu in blocks:
        # Planes that are seen lie alike in every block.
        assert rows.start % z.step == 0, rows
        above += int(np.count_nonzero(hu.numpy()[z, y] > FOREGROUND_HU))
        if marks is not None:
            torch.gt(hu, FOREGROUND_HU, out=marks[rows])
        channels = view[:, rows].unbind()
        through_windows(hu, maps, channels)
        for channel in channels:
            _change_voxels(channel, draw)
    return torch.tensor([above / (len(range(shape[0])[z]) * len(range(shape[1])[y]) * shape[2])])


def _at_once(device: torch.device) -> int:
    """How many samples are cut together: on a CPU one, whose numbers then stay in the caches."""
    return 1 if device.type == "cpu" else CUT_TOGETHER


def _empty(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """As torch.empty; on a CPU numpy gets the memory, which asks the kernel for large pages where torch does not.

    Measured: the first writing to the 85 MB of a view of 8 scans takes 11 ms instead of 43.
    """
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return torch.from_numpy(np.empty(shape, np.float32))


def _voxel_mm(draw: ViewDraw, spacing: NDArray[np.float64]) -> Triple:
    z, y, x = (step * float(mm) for step, mm in zip(draw.grid.step, spacing, strict=True))
    return (z, y, x)


def _sampled(volume: Tensor, draws: list[ViewDraw], boxes: _Edges, spacing: _Edges) -> tuple[Tensor, list[_Covered]]:
    """HU float32 (b, d, h, w) of one view of each of b samples, and what it takes to make its share inside."""
    sizes = [_voxel_mm(draw, mm) for draw, mm in zip(draws, spacing, strict=True)]
    if len(draws) > 1 and not any(draw.rotation_deg for draw in draws):
        hu, covers = crop_and_resize_together(volume, [draw.grid for draw in draws], boxes)
        return hu, list(zip(covers, draws, sizes, strict=True))
    found = [_one(volume[i], draws[i], boxes[i], sizes[i]) for i in range(len(draws))]
    hu = found[0][0][None] if len(found) == 1 else torch.stack([values for values, _ in found])
    return hu, [(cover, draw, mm) for (_, cover), draw, mm in zip(found, draws, sizes, strict=True)]


def _one(volume: Tensor, draw: ViewDraw, box: _Edges, voxel_mm: Triple) -> tuple[Tensor, Cover]:
    """HU float32 (d, h, w) of one view of one sample, and its cover, with the margin of a rotation."""
    if draw.rotation_deg is None:
        return crop_and_resize(volume, draw.grid, box)
    margin = augment.rotation_margin(draw.grid.shape, voxel_mm, draw.rotation_deg)
    wide, cover = crop_and_resize(volume, draw.grid.widened(margin), box)
    return augment.rotate(wide[None], draw.grid.shape, voxel_mm, draw.rotation_deg, AIR_HU)[0], cover


def _in_blocks(
    volume: Tensor, draw: ViewDraw, box: _Edges, spacing: NDArray[np.float64]
) -> tuple[Iterable[tuple[slice, Tensor]], _Covered]:
    """Planes of one view of one sample on a CPU, HU float32 (k, h, w), and what it takes to make its share inside."""
    voxel_mm = _voxel_mm(draw, spacing)
    if draw.rotation_deg is None:
        blocks, cover = crop_and_resize_in_blocks(volume, draw.grid, box)
        return blocks, (cover, draw, voxel_mm)
    hu, cover = _one(volume, draw, box, voxel_mm)
    return [(slice(0, len(hu)), hu)], (cover, draw, voxel_mm)


def _to_channels(hu: Tensor, draws: list[ViewDraw], spec: InputSpec, out: Tensor) -> None:
    """HU (b, d, h, w) through the windows, moved and stretched as drawn, to (b, C, d, h, w)."""
    if all(_is_plain(draw) for draw in draws):
        to_input(hu[:, None], spec.windows, out=out)
        return
    for values, draw, one in zip(hu, draws, out, strict=True):
        to_input(values[None, None], _windows(draw, spec), out=one[None])


def _windows(draw: ViewDraw, spec: InputSpec) -> Sequence[Window]:
    """The windows, moved and stretched as drawn."""
    if _is_plain(draw):
        return spec.windows
    shift, stretch = draw.window_shift, draw.window_stretch
    return [Window(level=w.level + shift * w.width, width=w.width * stretch) for w in spec.windows]


def _is_plain(draw: ViewDraw) -> bool:
    return draw.window_shift == 0.0 and draw.window_stretch == 1.0


def _inside(covers: list[_Covered], device: torch.device) -> Tensor:
    """The share of stored voxels, (B, 1, d, h, w)."""
    out = _empty((len(covers), 1, *covers[0][1].grid.shape), device)
    with torch.no_grad(), full_precision(device.type):
        for sample, (cover, draw, voxel_mm) in enumerate(covers):
            z, y, x = (torch.from_numpy(share).to(device) for share in cover)
            if draw.rotation_deg is None:
                torch.mul(z[:, None, None] * y[:, None], x, out=out[sample, 0])
                continue
            wide = z[:, None, None] * y[:, None] * x
            turned = augment.rotate(wide[None], draw.grid.shape, voxel_mm, draw.rotation_deg, 0.0)[0]
            out[sample, 0].copy_(turned).clamp_(0.0, 1.0)
    return out


def _change_voxels(values: Tensor, draw: ViewDraw) -> None:
    """Do the drawn operations that change each voxel by itself, in place; any part of a view; it stays in [0, 1]."""
    if draw.shift != 0.0:
        augment.shift_(values, draw.shift)
    if draw.gamma != 1.0:
        augment.gamma_(values, draw.gamma)


def _change_neighbourhoods(view: Tensor, draw: ViewDraw) -> None:
    """Do the drawn operations that come after those, on one whole view (C, d, h, w), in place."""
    if draw.blur_sigma > 0.0:
        augment.blur_(view, draw.blur_sigma)
    if draw.noise_sigma > 0.0:
        augment.add_noise_(view, draw.noise_sigma, draw.noise_seed)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keep autocast and reduced matrix products out: 11 bits of Hounsfield units would be 2 HU off in the brain.

    Args:
        device_type: of the tensors, as "cpu".
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
