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
from headctssl.loading.crop_resize import crop_and_resize
from headctssl.loading.draws import ViewDraw, anchor_of, centred_grid, draw_view, frame_of
from headctssl.loading.view_masks import FocusMask, labels_in_view, share_in_view
from headctssl.loading.view_plan import ViewGroup, ViewPlan, global_group, local_group, view_plan
from headctssl.types import PretrainBatch, Views
from headctssl.volume.geometry import AIR_HU
from headctssl.volume.windows import to_input

__all__ = [
    "ViewGroup",
    "ViewPlan",
    "global_group",
    "local_group",
    "make_views",
    "view_plan",
    "whole_head_view",
]

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
        Float views in [0, 1] on the batch's device, and the share of stored voxels under each of their voxels; of
        masks and segmentations what the batch has.
    """
    boxes, frames, spacing = _read_boxes(batch), _frames(batch, spec), batch.spacing_mm.cpu().double().numpy()
    heads = batch.head_box.cpu().double().numpy()
    groups: dict[str, list[list[ViewDraw]]] = {group.name: [[] for _ in range(group.count)] for group in plan.groups}
    empty = Views({}, {}, batch.sample_index, batch.seed, batch.epoch, batch.labels)
    focus = _Focus(batch, empty)
    for sample, generator in enumerate(empty.generators("view")):
        target = _part_read(heads[sample], boxes[sample], frames[sample])
        drawn: dict[str, list[ViewDraw]] = {}
        for group in plan.groups:
            for position in range(group.count):
                point, anchor = focus.draw(group, sample), anchor_of(group, position, drawn)
                draw = draw_view(group, position, frames[sample], target, generator, point, anchor)
                drawn.setdefault(group.name, []).append(draw)
                groups[group.name][position].append(draw)
    out = empty
    out.known_classes = batch.known_classes
    for name, views in groups.items():
        cut = [_cut(batch, draws, boxes, spacing, spec) for draws in views]
        out.groups[name] = tuple(view for view, _, _, _ in cut)
        out.inside[name] = tuple(inside for _, inside, _, _ in cut)
        out.foreground[name] = torch.stack([share for _, _, share, _ in cut])
        out.boxes[name] = torch.from_numpy(np.stack([[draw.grid.edges for draw in draws] for draws in views])).float()
        if plan.tissue:
            out.tissue[name] = tuple(tissue for _, _, _, tissue in cut)
        _cut_masks(batch, name, views, boxes, spacing, out)
    return out


class _Focus:
    """Where views are centred, drawn with a generator of its own, so that scans without a mask are seen as ever.

    Args:
        batch: with the masks.
        views: knows the generators; two numbers are taken per view.
    """

    def __init__(self, batch: PretrainBatch, views: Views) -> None:
        self.batch = batch
        self.generators = views.generators("focus") if batch.masks or batch.segmentation is not None else []
        self._masks: dict[tuple[str, int], FocusMask] = {}

    def draw(self, group: ViewGroup, sample: int) -> NDArray[np.float64] | None:
        """The point that the next view of this group is centred on, or None."""
        if not self.generators:
            return None
        chance, which = self.generators[sample].random(2)
        for name, share in group.focus:
            if chance < share:
                return self._point(name, sample, float(which))
            chance = (chance - share) / (1.0 - share)  # uniform again, given that this mask was not drawn
        return None

    def _point(self, name: str, sample: int, which: float) -> NDArray[np.float64] | None:
        if (name, sample) not in self._masks:
            mask = self._mask(name, sample)
            if mask is None:
                return None
            self._masks[name, sample] = FocusMask(mask)
        return self._masks[name, sample].point(which)

    def _mask(self, name: str, sample: int) -> Tensor | None:
        if name == "segmentation":
            labels = self.batch.segmentation
            return None if labels is None else labels[sample, 0] > 0
        mask = self.batch.masks.get(name)
        return None if mask is None else mask[sample, 0]


def _cut_masks(
    batch: PretrainBatch, name: str, views: list[list[ViewDraw]], boxes: _Edges, spacing: _Edges, out: Views
) -> None:
    """What the batch has of masks, seen through the views of one group; nothing when it has none."""
    anonymised, labels = batch.masks.get("anonymization"), batch.segmentation
    with torch.no_grad(), _full_precision(batch.volume.device.type):
        if anonymised is not None:
            marked = anonymised.flatten(1).any(dim=1).tolist()
            shares = [torch.zeros((len(d), 1, *d[0].grid.shape), device=anonymised.device) for d in views]
            for share, draws in zip(shares, views, strict=True):
                for sample, draw in enumerate(draws):
                    if marked[sample]:
                        mask = anonymised[sample, 0]
                        share_in_view(mask, draw, boxes[sample], spacing[sample], share[sample, 0])
            out.anonymised[name] = tuple(shares)
        if labels is not None:
            maps = [labels.new_empty((len(d), 1, *d[0].grid.shape)) for d in views]
            for seen, draws in zip(maps, views, strict=True):
                for sample, draw in enumerate(draws):
                    labels_in_view(labels[sample, 0], draw, boxes[sample], spacing[sample], seen[sample, 0])
            out.segmentation[name] = tuple(maps)


def whole_head_view(batch: PretrainBatch, spec: InputSpec) -> Views:
    """The one deterministic view for evaluation, prediction and embedding, as group "global".

    fixed_spacing: centred on the head box at the encoder's spacing, larger heads scaled down isotropically.
    stretch_to_shape: the head box stretched to the shape.

    Args:
        batch: int16 HU volumes of any shape that hold the whole head.
        spec: what the encoder sees.
    """
    boxes, frames, spacing = _read_boxes(batch), _frames(batch, spec), batch.spacing_mm.cpu().double().numpy()
    draws = [
        ViewDraw(
            centred_grid(frame, spec.shape), None, shift=0.0, gamma=1.0, blur_sigma=0.0, noise_sigma=0.0, noise_seed=0
        )
        for frame in frames
    ]
    view, inside, share, _ = _cut(batch, draws, boxes, spacing, spec)
    return Views(
        groups={"global": (view,)},
        inside={"global": (inside,)},
        sample_index=batch.sample_index,
        seed=batch.seed,
        epoch=batch.epoch,
        labels=batch.labels,
        foreground={"global": share[None]},
    )


def _cut(
    batch: PretrainBatch, draws: list[ViewDraw], boxes: _Edges, spacing: _Edges, spec: InputSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view of every sample: (B, C, d, h, w), (B, 1, d, h, w) share inside, (B,) foreground share.

    The last is where there is tissue, bool (B, 1, d, h, w).
    """
    volume, shape = batch.volume, draws[0].grid.shape
    hu = torch.empty((len(draws), 1, *shape), device=volume.device)
    inside = torch.empty_like(hu)
    with torch.no_grad(), _full_precision(volume.device.type):
        for sample, draw in enumerate(draws):
            _cut_one(volume[sample, 0], draw, boxes[sample], spacing[sample], hu[sample, 0], inside[sample, 0])
        # Every second voxel of each axis is enough for a share that is only logged.
        tissue = hu > FOREGROUND_HU
        foreground = tissue[..., ::2, ::2, ::2].float().mean(dim=(1, 2, 3, 4))
        view = to_input(hu, spec.windows)
        for sample, draw in enumerate(draws):
            _change_intensity(view[sample], draw)
    return view, inside, foreground, tissue


def _cut_one(
    volume: Tensor, draw: ViewDraw, box: _Edges, spacing: NDArray[np.float64], hu: Tensor, inside: Tensor
) -> None:
    """Write HU and share inside, both float32 (d, h, w), of one view of one sample."""
    grid = draw.grid
    if draw.rotation_deg is None:
        _, cover = crop_and_resize(volume, grid, box, hu)
        _outer(cover, inside)
        return
    z, y, x = (step * float(mm) for step, mm in zip(grid.step, spacing, strict=True))
    margin = augment.rotation_margin(grid.shape, (z, y, x), draw.rotation_deg)
    wide, cover = crop_and_resize(volume, grid.widened(margin), box)
    hu.copy_(augment.rotate(wide[None], grid.shape, (z, y, x), draw.rotation_deg, AIR_HU)[0])
    wide_inside = _outer(cover, torch.empty_like(wide))
    inside.copy_(augment.rotate(wide_inside[None], grid.shape, (z, y, x), draw.rotation_deg, 0.0)[0]).clamp_(0.0, 1.0)


def _change_intensity(view: Tensor, draw: ViewDraw) -> None:
    """Do the drawn intensity operations to one view (C, d, h, w) in place; it stays in [0, 1]."""
    if draw.shift != 0.0:
        augment.shift_(view, draw.shift)
    if draw.gamma != 1.0:
        augment.gamma_(view, draw.gamma)
    if draw.blur_sigma > 0.0:
        augment.blur_(view, draw.blur_sigma)
    if draw.noise_sigma > 0.0:
        augment.add_noise_(view, draw.noise_sigma, draw.noise_seed)


def _outer(cover: tuple[Tensor, Tensor, Tensor], out: Tensor) -> Tensor:
    z, y, x = cover
    return torch.mul(z[:, None, None] * y[:, None], x, out=out)


def _frames(batch: PretrainBatch, spec: InputSpec) -> list[_Edges]:
    heads, spacing = batch.head_box.cpu().double().numpy(), batch.spacing_mm.cpu().double().numpy()
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
