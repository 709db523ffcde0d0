"""Views: what an encoder sees, cut from a batch by separable anti-aliased crop-and-resize on the batch's device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import InputSpec
from headctssl.loading import augment
from headctssl.loading.draws import Grid, ViewDraw, centred_grid, draw_view, frame_of
from headctssl.loading.view_plan import ViewGroup, ViewPlan, global_group, local_group, view_plan
from headctssl.types import PretrainBatch, Triple, Views
from headctssl.volume.geometry import axis_weights
from headctssl.volume.windows import to_input

__all__ = [
    "ViewGroup",
    "ViewPlan",
    "crop_and_resize",
    "global_group",
    "local_group",
    "make_views",
    "view_plan",
    "whole_head_view",
]

AIR_HU = -1024.0
"""What lies outside the stored voxels."""

FOREGROUND_HU = -500.0
"""Voxels above it count as foreground: half way between air and tissue."""

_Edges = NDArray[np.float64]


def make_views(batch: PretrainBatch, plan: ViewPlan, spec: InputSpec) -> Views:
    """Draw and cut the views of a batch.

    Each sample is drawn from its own generator and cut by itself, so a view does not depend on batch mates,
    processes or the device's random state.

    Args:
        batch: int16 HU volumes on any device.
        plan: which views.
        spec: what the encoder sees; its frame and windows.

    Returns:
        Float views in [0, 1] on the batch's device, and the share of stored voxels under each of their voxels.
    """
    boxes, frames, spacing = _read_boxes(batch), _frames(batch, spec), batch.spacing_mm.double().cpu().numpy()
    heads = batch.head_box.double().cpu().numpy()
    groups: dict[str, list[list[ViewDraw]]] = {group.name: [[] for _ in range(group.count)] for group in plan.groups}
    empty = Views({}, {}, batch.sample_index, batch.seed, batch.epoch, batch.labels)
    for sample, generator in enumerate(empty.generators("view")):
        target = _part_read(heads[sample], boxes[sample], frames[sample])
        for group in plan.groups:
            for position in range(group.count):
                draw = draw_view(group, position, frames[sample], target, generator)
                groups[group.name][position].append(draw)
    out = empty
    for name, views in groups.items():
        cut = [_cut(batch, draws, boxes, spacing, spec) for draws in views]
        out.groups[name] = tuple(view for view, _, _ in cut)
        out.inside[name] = tuple(inside for _, inside, _ in cut)
        out.foreground[name] = torch.stack([share for _, _, share in cut])
    return out


def whole_head_view(batch: PretrainBatch, spec: InputSpec) -> Views:
    """The one deterministic view for evaluation, prediction and embedding, as group "global".

    fixed_spacing: centred on the head box at the encoder's spacing, larger heads scaled down isotropically.
    stretch_to_shape: the head box stretched to the shape.

    Args:
        batch: int16 HU volumes of any shape that hold the whole head.
        spec: what the encoder sees.
    """
    boxes, frames, spacing = _read_boxes(batch), _frames(batch, spec), batch.spacing_mm.double().cpu().numpy()
    draws = [
        ViewDraw(
            centred_grid(frame, spec.shape), None, shift=0.0, gamma=1.0, blur_sigma=0.0, noise_sigma=0.0, noise_seed=0
        )
        for frame in frames
    ]
    view, inside, share = _cut(batch, draws, boxes, spacing, spec)
    return Views(
        groups={"global": (view,)},
        inside={"global": (inside,)},
        sample_index=batch.sample_index,
        seed=batch.seed,
        epoch=batch.epoch,
        labels=batch.labels,
        foreground={"global": share[None]},
    )


def crop_and_resize(volume: Tensor, grid: Grid, box: _Edges) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Sample a grid from one volume: one small matrix product per axis, the most shrinking axis first.

    Only the voxels under the grid are touched; the weights' rows are reversed for a flip.

    Args:
        volume: int16 (D, H, W) HU.
        grid: where to sample, in voxel index coordinates.
        box: (3, 2) the stored voxels; everything outside it counts as air.

    Returns:
        HU, float32 of the grid's shape, and per axis the share (n,) of each sample's kernel that lies in the box.
    """
    device = volume.device
    weights: list[Tensor] = []
    for axis in range(3):
        start, step, count = grid.start[axis], grid.step[axis], grid.shape[axis]
        reach = max(1.0, step)
        first = max(int(box[axis, 0]), int(np.floor(start - reach)))
        last = min(int(box[axis, 1]), int(np.ceil(start + (count - 1) * step + reach)) + 1)
        if last <= first:
            nothing = tuple(torch.zeros(n, device=device) for n in grid.shape)
            return torch.full(grid.shape, AIR_HU, device=device), (nothing[0], nothing[1], nothing[2])
        volume = volume.narrow(axis, first, last - first)
        rows = axis_weights(last - first, count, start - first, step)
        rows = rows[::-1] if grid.flip[axis] else rows
        weights.append(torch.from_numpy(np.ascontiguousarray(rows)).to(device))
    values = volume.to(torch.float32).sub_(AIR_HU)
    for axis in sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
        values = _contract(values, weights[axis], axis)
    return values.add_(AIR_HU), (weights[0].sum(1), weights[1].sum(1), weights[2].sum(1))


def _contract(values: Tensor, rows: Tensor, axis: int) -> Tensor:
    """Multiply one axis of a contiguous (D, H, W) array by (n_out, n_in) weights."""
    d, h, w = values.shape
    if axis == 0:
        return torch.mm(rows, values.reshape(d, h * w)).reshape(-1, h, w)
    if axis == 1:
        return torch.bmm(rows.expand(d, -1, -1), values)
    return torch.mm(values.reshape(d * h, w), rows.t()).reshape(d, h, -1)


def _cut(
    batch: PretrainBatch, draws: list[ViewDraw], boxes: _Edges, spacing: _Edges, spec: InputSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """One view of every sample: (B, C, d, h, w), (B, 1, d, h, w) share inside, (B,) foreground share."""
    hu, inside = [], []
    with torch.no_grad(), _full_precision(batch.volume.device.type):
        for sample, draw in enumerate(draws):
            values, cover = _cut_one(batch.volume[sample, 0], draw, boxes[sample], spacing[sample])
            hu.append(values)
            inside.append(cover)
        stacked = torch.stack(hu)[:, None]
        foreground = (stacked > FOREGROUND_HU).float().mean(dim=(1, 2, 3, 4))
        view = to_input(stacked, spec.windows)
        for sample, draw in enumerate(draws):
            changed = _change_intensity(view[sample], draw)
            if changed is not view[sample]:
                view[sample] = changed
    return view, torch.stack(inside)[:, None], foreground


def _cut_one(volume: Tensor, draw: ViewDraw, box: _Edges, spacing: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """HU and share inside, both float32 (d, h, w), of one view of one sample."""
    grid = draw.grid
    if draw.rotation_deg is None:
        values, cover = crop_and_resize(volume, grid, box)
        return values, _outer(cover)
    voxel_mm = tuple(s * float(mm) for s, mm in zip(grid.step, spacing, strict=True))
    voxel: Triple = (voxel_mm[0], voxel_mm[1], voxel_mm[2])
    margin = augment.rotation_margin(grid.shape, voxel, draw.rotation_deg)
    wide = _widen(grid, margin)
    values, cover = crop_and_resize(volume, wide, box)
    turned = augment.rotate(values[None], grid.shape, voxel, draw.rotation_deg, AIR_HU)[0]
    inside = augment.rotate(_outer(cover)[None], grid.shape, voxel, draw.rotation_deg, 0.0)[0]
    return turned, inside


def _widen(grid: Grid, margin: tuple[int, int, int]) -> Grid:
    """The same samples with `margin` more on each side of each axis."""
    start = tuple(s - m * step for s, m, step in zip(grid.start, margin, grid.step, strict=True))
    shape = tuple(n + 2 * m for n, m in zip(grid.shape, margin, strict=True))
    return Grid((start[0], start[1], start[2]), grid.step, (shape[0], shape[1], shape[2]), grid.flip)


def _change_intensity(view: Tensor, draw: ViewDraw) -> Tensor:
    """The drawn intensity operations of one view (C, d, h, w), which stays in [0, 1]."""
    if draw.shift != 0.0:
        view = augment.shift(view, draw.shift)
    if draw.gamma != 1.0:
        view = augment.gamma(view, draw.gamma)
    if draw.blur_sigma > 0.0:
        view = augment.blur(view, draw.blur_sigma)
    if draw.noise_sigma > 0.0:
        view = augment.add_noise(view, draw.noise_sigma, draw.noise_seed)
    return view


def _outer(cover: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    z, y, x = cover
    return (z[:, None, None] * y[:, None]) * x


def _frames(batch: PretrainBatch, spec: InputSpec) -> list[_Edges]:
    heads, spacing = batch.head_box.double().cpu().numpy(), batch.spacing_mm.double().cpu().numpy()
    return [frame_of(head, mm, spec) for head, mm in zip(heads, spacing, strict=True)]


def _part_read(head: _Edges, box: _Edges, frame: _Edges) -> _Edges:
    """The part of the head box that was read; the frame for an axis along which none of it was."""
    part = np.stack([np.maximum(head[:, 0], box[:, 0]), np.minimum(head[:, 1], box[:, 1])], axis=1)
    return np.where((part[:, 1] > part[:, 0])[:, None], part, frame)


def _read_boxes(batch: PretrainBatch) -> _Edges:
    """The box (B, 3, 2) of stored voxels of each sample, from lines through `inside`, which is a box per sample."""
    inside = batch.inside[:, 0]
    b, d, h, w = inside.shape
    rows = torch.arange(b, device=inside.device)
    z, y, x = (torch.full((b,), n // 2, device=inside.device) for n in (d, h, w))
    if not bool(inside[rows, z, y, x].all()):
        corner = inside.reshape(b, -1).to(torch.uint8).argmax(dim=1)
        z, y, x = corner // (h * w), corner // w % h, corner % w
    lines = (inside[rows, :, y, x], inside[rows, z, :, x], inside[rows, z, y, :])
    boxes = np.zeros((b, 3, 2))
    for axis, line in enumerate(lines):
        found = line.cpu().numpy()
        boxes[:, axis, 0] = found.argmax(axis=1)
        boxes[:, axis, 1] = boxes[:, axis, 0] + found.sum(axis=1)
    return boxes


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep autocast and reduced matrix products out: 11 bits of Hounsfield units would be 2 HU off in the brain."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
