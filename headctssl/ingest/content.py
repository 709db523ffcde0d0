"""Content: what a volume shows, by anatomy: a skull around brain, how much of it, a trunk, contrast agent.

A voxel lies in the cavity of the skull when bone is seen from it in at least 7 of 8 directions of its axial plane: the
eighth may look through an operated or a growing skull. Ribs and pelvis leave such places only in small numbers.
Everything is done on blocks of about 3.5 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headctssl.errors import DataError
from headctssl.types import Triple, Volume
from headctssl.volume.head import find_head

__all__ = ["Content", "examine"]

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

BONE_HU = 300
"""A block with a voxel above this holds bone; blocks of noisy scans must exceed the noise too."""

BONE_MEAN_HU = 110
"""A block of this mean holds bone, also where smoothing took its peak. Fresh blood stays below 100."""

BRAIN_HU = (-20, 95)
"""Mean of a block of brain, cerebrospinal fluid or blood."""

LUNG_HU = (-950, -500)
CONTRAST_HU = (130, 500)
"""Vessels with contrast agent; blood without it is below 95, most calcifications are small."""

MIN_DIRECTIONS = 7
_NECK_MM = 40.0  # more than the scalp and skull above the brain
_SMALL_CM2 = 8.0
_CONTRAST_SHARE = 0.005
_CONTRAST_DEPTH_MM = 8.0  # from the edge of the cavity: that of bone has these values too
_EMPTY_HU = -1000  # a plane with nothing above is a hole where slices are missing


@dataclass(frozen=True)
class Content:
    """What was measured in a volume."""

    head_found: bool  # whether there is a solid object of head size
    brain_ml: float = 0.0  # brain-like tissue in the cavity of the skull
    brain_share: float = 0.0  # share of the cavity that is brain-like
    cut_above: float = 0.0  # area of the cavity at the top of the volume over its largest one, 0..1
    cut_below: float = 0.0  # the same at the bottom; up to about 0.3 where the spine leaves
    cut_sides_cm2: float = 0.0  # skull that lies on the border of the field of view
    upside_down: bool = False  # tissue above the brain, none below; above and below are then exchanged here
    trunk_cm2: float = 0.0  # largest cross-section
    lung_ml: float = 0.0
    length_mm: float = 0.0  # of the scan along z
    bright_share: float = 0.0  # of the brain away from bone that is as bright as vessels with contrast agent

    @property
    def contrast_likely(self) -> bool:
        """Whether the image looks like one with contrast agent."""
        return self.bright_share > _CONTRAST_SHARE


@dataclass(frozen=True)
class _Blocks:
    """A volume in blocks of about 3.5 mm, (z, y, x) each."""

    mean: Floats
    highest: NDArray[np.int16]
    body: Mask  # the largest solid object, inner air included
    bone: Mask
    size_mm: Triple

    @property
    def pixel_cm2(self) -> float:
        return self.size_mm[1] * self.size_mm[2] / 100.0

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.size_mm)) / 1000.0


def examine(volume: Volume) -> Content:
    """Measure what a volume shows.

    Args:
        volume: as `image_io.read` returned it, in HU.
    """
    hu = _without_holes(volume.hu)
    length = volume.hu.shape[0] * volume.spacing_mm[0]
    try:
        blocks = _blocks(hu, volume.spacing_mm)
    except DataError:
        return Content(head_found=False, length_mm=length)
    lungs = blocks.body & (blocks.mean > LUNG_HU[0]) & (blocks.mean < LUNG_HU[1])
    areas = blocks.body.sum(axis=(1, 2)) * blocks.pixel_cm2
    cavity = _cavity(blocks)
    brain = cavity & (blocks.mean > BRAIN_HU[0]) & (blocks.mean < BRAIN_HU[1])
    cavity_cm2 = cavity.sum(axis=(1, 2)) * blocks.pixel_cm2
    largest = max(float(cavity_cm2.max(initial=0.0)), 1e-6)
    upside_down = _stands_on_vertex(blocks, cavity_cm2)
    top, bottom = (0, -1) if upside_down else (-1, 0)
    return Content(
        head_found=True,
        brain_ml=float(brain.sum()) * blocks.voxel_ml,
        brain_share=float(brain.sum()) / max(1, int(cavity.sum())),
        cut_above=float(cavity_cm2[top]) / largest,
        cut_below=float(cavity_cm2[bottom]) / largest,
        cut_sides_cm2=_skull_at_border(blocks, cavity_cm2 > 0.3 * largest),
        upside_down=upside_down,
        trunk_cm2=float(areas.max(initial=0.0)),
        lung_ml=float(lungs.sum()) * blocks.voxel_ml,
        length_mm=length,
        bright_share=_bright_share(blocks, cavity),
    )


def _without_holes(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """The volume with empty planes between others replaced by the plane below: missing slices are told elsewhere."""
    empty = hu[:, ::4, ::4].max(axis=(1, 2)) <= _EMPTY_HU
    full = np.flatnonzero(~empty)
    if not full.size or not empty[full[0] : full[-1]].any():
        return hu
    take = np.arange(len(hu))
    for plane in range(full[0] + 1, full[-1]):
        if empty[plane]:
            take[plane] = take[plane - 1]
    return hu[take]


def _blocks(hu: NDArray[np.int16], spacing_mm: Triple) -> _Blocks:
    """Mean and maximum by block, the body and the bone.

    Raises:
        DataError: there is no solid object of head size.
    """
    head = find_head(hu, spacing_mm)
    stride = head.stride
    count = tuple(n // k for n, k in zip(hu.shape, stride, strict=True))
    mean = np.empty(count, np.float32)
    highest = np.empty(count, np.int16)
    rows, columns = count[1] * stride[1], count[2] * stride[2]
    shape = (count[1], stride[1], count[2], stride[2])
    for k in range(count[0]):
        slab = hu[k * stride[0] : (k + 1) * stride[0], :rows, :columns]
        mean[k] = slab.sum(axis=0, dtype=np.int32).reshape(shape).sum(axis=(1, 3))
        highest[k] = slab.max(axis=0).reshape(shape).max(axis=(1, 3))
    mean /= np.prod(stride)
    body = head.coarse_mask[: count[0], : count[1], : count[2]]
    size = tuple(s * n for s, n in zip(spacing_mm, stride, strict=True))
    bone = body & ((highest > _bone_threshold(mean, highest, body)) | (mean > BONE_MEAN_HU))
    return _Blocks(mean, highest, body, bone, (size[0], size[1], size[2]))


def _bone_threshold(mean: Floats, highest: NDArray[np.int16], body: Mask) -> float:
    """Above the noise: twice the usual maximum of blocks of soft tissue, where that is more than 300 HU."""
    soft = highest[body & (mean > 0) & (mean < 80)]
    return max(BONE_HU, 2.0 * float(np.median(soft))) if soft.size else BONE_HU


def _cavity(blocks: _Blocks) -> Mask:
    """The largest connected place that bone surrounds in its planes."""
    # Thickened by a block in its plane: a slanting ray must not slip between two blocks that touch at a corner.
    bone = ndimage.binary_dilation(blocks.bone, np.ones((1, 3, 3), bool))
    inside = (_directions(bone) >= MIN_DIRECTIONS) & blocks.body & ~bone
    labels, found = ndimage.label(inside)
    if not found:
        return inside
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _directions(bone: Mask) -> NDArray[np.int8]:
    """In how many of the 8 directions of its plane each block sees bone, (z, y, x)."""
    seen = np.zeros(bone.shape, np.int8)
    for turned in range(4):
        plane = np.rot90(bone, turned, axes=(1, 2))
        straight = np.logical_or.accumulate(plane, axis=1)
        slanting = plane.copy()
        for row in range(1, plane.shape[1]):
            slanting[:, row, 1:] |= slanting[:, row - 1, :-1]
        both = straight.astype(np.int8) + slanting.astype(np.int8)
        seen += np.rot90(both, -turned, axes=(1, 2))
    return seen


def _stands_on_vertex(blocks: _Blocks, cavity_cm2: NDArray[np.float64]) -> bool:
    """Whether there is a neck above the brain and at most a scalp below it: a file that does not say what is up."""
    planes = np.flatnonzero(cavity_cm2 > _SMALL_CM2)
    tissue = np.flatnonzero(blocks.body.any(axis=(1, 2)))
    if not planes.size:
        return False
    above, below = tissue[-1] - planes[-1], planes[0] - tissue[0]
    return bool(above * blocks.size_mm[0] > _NECK_MM > 2 * below * blocks.size_mm[0])


def _skull_at_border(blocks: _Blocks, planes: NDArray[np.bool_]) -> float:
    """Skull, in cm2, that lies on the border of the field of view in the planes that show the brain."""
    rows, columns = blocks.mean.shape[1:]
    border = np.zeros((rows, columns), bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    corners = blocks.highest[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    if (corners <= -1024).all():  # a round field of view
        y, x = (np.arange(n) - (n - 1) / 2 for n in (rows, columns))
        radius = np.hypot(y[:, None] * blocks.size_mm[1], x[None] * blocks.size_mm[2])
        edge = min(rows * blocks.size_mm[1], columns * blocks.size_mm[2]) / 2
        border |= radius > edge - 1.5 * max(blocks.size_mm[1:])
    skull = blocks.bone & border & planes[:, None, None]
    side = float(np.sqrt(blocks.size_mm[1] * blocks.size_mm[2]))
    return float(skull.sum()) * side * blocks.size_mm[0] / 100.0


def _bright_share(blocks: _Blocks, cavity: Mask) -> float:
    """Share of the cavity, away from its edge, that is as bright as vessels with contrast agent."""
    # A bright vessel passes for bone and leaves a hole in the cavity.
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in cavity])
    deep = ndimage.distance_transform_edt(filled, sampling=blocks.size_mm) > _CONTRAST_DEPTH_MM
    if not deep.any():
        return 0.0
    highest = blocks.highest[deep]
    # Noise lifts the maximum of a block: what is usual for soft tissue does not count.
    usual, upper = np.percentile(highest, (50, 84))
    limit = max(CONTRAST_HU[0], usual + 70.0, usual + 6.0 * (upper - usual))
    return float(((highest > limit) & (highest < CONTRAST_HU[1])).mean())
