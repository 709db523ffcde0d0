"""Views: what an encoder sees, cut from a batch by separable anti-aliased crop-and-resize on the batch's device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import InputSpec
from headctssl.loading.cut import InsideShares, cut_view, full_precision
from headctssl.loading.draws import ViewDraw, anchor_of, centred_grid, draw_view, frame_of
from headctssl.loading.view_masks import FocusMask, labels_in_view, share_in_view
from headctssl.loading.view_plan import ViewGroup, ViewPlan, global_group, local_group, view_plan
from headctssl.types import PretrainBatch, Views

__all__ = [
    "ViewGroup",
    "ViewPlan",
    "global_group",
    "local_group",
    "make_views",
    "view_plan",
    "whole_head_view",
]

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
    boxes, frames = batch.inside_box.double().numpy(), _frames(batch, spec)
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
    with torch.no_grad(), full_precision(batch.volume.device.type):
        _cut_groups(batch, plan, spec, groups, out)
    return out


def _cut_groups(
    batch: PretrainBatch, plan: ViewPlan, spec: InputSpec, groups: dict[str, list[list[ViewDraw]]], out: Views
) -> None:
    """Cut what was drawn, group by group."""
    boxes, spacing = batch.inside_box.double().numpy(), _spacing(batch)
    out.known_classes = batch.known_classes
    for name, views in groups.items():
        cut = [cut_view(batch, draws, boxes, spacing, spec, tissue=plan.tissue) for draws in views]
        out.groups[name] = tuple(one.view for one in cut)
        out.inside[name] = InsideShares([one.inside for one in cut])
        out.foreground[name] = torch.stack([one.foreground for one in cut])
        out.boxes[name] = torch.from_numpy(np.stack([[draw.grid.edges for draw in draws] for draws in views])).float()
        out.flipped[name] = torch.tensor([[draw.grid.flip[2] for draw in draws] for draws in views])
        if plan.tissue:
            out.tissue[name] = tuple(one.tissue for one in cut if one.tissue is not None)
        _cut_masks(batch, name, views, boxes, spacing, out)


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
    boxes, frames, spacing = batch.inside_box.double().numpy(), _frames(batch, spec), _spacing(batch)
    draws = [ViewDraw(centred_grid(frame, spec.shape)) for frame in frames]
    with torch.no_grad(), full_precision(batch.volume.device.type):
        cut = cut_view(batch, draws, boxes, spacing, spec, tissue=False)
    return Views(
        groups={"global": (cut.view,)},
        inside={"global": InsideShares([cut.inside])},
        sample_index=batch.sample_index,
        seed=batch.seed,
        epoch=batch.epoch,
        labels=batch.labels,
        foreground={"global": cut.foreground[None]},
    )


def _spacing(batch: PretrainBatch) -> _Edges:
    """(B, 3) mm of the voxels."""
    return batch.spacing_mm.cpu().double().numpy()


def _frames(batch: PretrainBatch, spec: InputSpec) -> list[_Edges]:
    heads, spacing = batch.head_box.cpu().double().numpy(), _spacing(batch)
    return [frame_of(head, mm, spec) for head, mm in zip(heads, spacing, strict=True)]


def _part_read(head: _Edges, box: _Edges, frame: _Edges) -> _Edges:
    """The part of the head box that was read; the frame for an axis along which none of it was."""
    part = np.stack([np.maximum(head[:, 0], box[:, 0]), np.minimum(head[:, 1], box[:, 1])], axis=1)
    return np.where((part[:, 1] > part[:, 0])[:, None], part, frame)
