"""One case: from a straight raw volume to the stored box of int16 Hounsfield units, a pure function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import StorageRule
from headctssl.errors import ContractError, DataError
from headctssl.types import Box, Triple, Volume
from headctssl.volume.head import find_head
from headctssl.volume.resample import resample_to_hu

__all__ = ["CROP_RULES", "RESAMPLE_RULES", "Grid", "Preprocessed", "grid_of_box", "preprocess_volume"]

CROP_RULES: dict[str, float] = {"head_box_margin10mm:1": 10.0}
"""Crop rules this version can carry out: name with version -> margin around the head box in mm."""

RESAMPLE_RULES: tuple[str, ...] = ("separable_antialias:3",)
"""Resampling rules this version can carry out: 1 was the linear kernel, 2 the cubic one, 3 mixes no air into what
lies partly on the scan."""

_THINNEST_MM = 10.0  # two slices of 5 mm; less can fall between the voxels that an encoder sees
_SAME = 1e-3  # relative difference of spacing below which voxels are copied instead of resampled


@dataclass(frozen=True)
class Grid:
    """Where the voxels of the stored array lie in the raw array."""

    shape: tuple[int, int, int]  # voxels (z, y, x) of the stored array
    start: Triple  # raw voxel index of the centre of stored voxel 0, per axis
    step: Triple  # raw voxels per stored voxel, per axis


@dataclass(frozen=True)
class Preprocessed:
    """A volume as it is stored."""

    hu: NDArray[np.int16]  # (1, z, y, x) Hounsfield units
    head_mask: NDArray[np.bool_]  # (z, y, x), True inside the head
    affine: NDArray[np.float64]  # (4, 4), stored index (z, y, x, 1) -> mm (S, P, L, 1)
    spacing_mm: Triple  # stored spacing (z, y, x) in mm
    head_box: Box  # head in stored voxels
    crop_box: Box  # stored box in voxels of the straight raw volume
    grid: Grid  # the same as start and step per axis


def preprocess_volume(volume: Volume, rule: StorageRule) -> Preprocessed:
    """Find the head, crop to its box with the rule's margin, resample, clip, round to int16.

    The crop comes before the resampling, so that air is never resampled. No voxel is altered
    otherwise: table and head holder stay visible where they reach into the box.

    Args:
        volume: straight, even volume, (z, y, x) in Hounsfield units.
        rule: the storage rule; its crop and resampling rules must be known to this version.

    Raises:
        ContractError: the rule names a crop or resampling rule that this version does not have.
        DataError: the volume shows no head-sized object, or a single plane of one.
    """
    margin_mm = _margin(rule)
    head = find_head(volume.hu, volume.spacing_mm)
    _require_volume(head.box, volume.spacing_mm)
    crop_box = _grow(head.box, margin_mm, volume.spacing_mm, volume.hu.shape)
    grid = grid_of_box(crop_box, volume.spacing_mm, rule.spacing_mm)
    hu = _resampled(volume.hu, crop_box, grid, rule.hu_clip)
    mask = head.mask_on(grid.start, grid.step, grid.shape)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ np.asarray(grid.start)
    affine[:3, :3] *= np.asarray(grid.step)
    spacing = tuple(round(float(s), 9) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return Preprocessed(
        hu=hu[None],
        head_mask=np.ascontiguousarray(mask),
        affine=affine,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        head_box=_box_in_grid(head.box, grid),
        crop_box=crop_box,
        grid=grid,
    )


def grid_of_box(box: Box, spacing_mm: Triple, target_mm: Triple) -> Grid:
    """The grid of `target_mm` spacing that covers a box of the raw volume, centred on it.

    Args:
        box: (start, stop) per axis in raw voxels.
        spacing_mm: raw spacing (z, y, x) in mm.
        target_mm: wanted spacing (z, y, x) in mm. Where it differs from the raw spacing by less
            than a thousandth the raw voxels themselves are taken.
    """
    shape, start, step = [], [], []
    for (low, high), raw, target in zip(box, spacing_mm, target_mm, strict=True):
        ratio = target / raw
        if abs(ratio - 1.0) < _SAME:
            ratio = 1.0
        count = max(1, round((high - low) / ratio))
        shape.append(count)
        step.append(ratio)
        # The centres of the two boxes coincide: (low + high - 1) / 2 is the centre in voxel indices.
        start.append((low + high - 1) / 2 - (count - 1) / 2 * ratio)
    return Grid((shape[0], shape[1], shape[2]), (start[0], start[1], start[2]), (step[0], step[1], step[2]))


def _require_volume(box: Box, spacing_mm: Triple) -> None:
    sides = [(stop - start) * spacing for (start, stop), spacing in zip(box, spacing_mm, strict=True)]
    if min(sides) < _THINNEST_MM:
        raise DataError(
            "The scan shows a plane of a head, not a volume.",
            got=" x ".join(f"{side:.1f}" for side in sides) + " mm of head",
            expected=f"at least {_THINNEST_MM:.0f} mm along every axis",
            do="Export the whole series, or leave the file out.",
        )


def _margin(rule: StorageRule) -> float:
    for what, name, known in (
        ("crop_rule", rule.crop_rule, tuple(CROP_RULES)),
        ("resample_rule", rule.resample_rule, RESAMPLE_RULES),
    ):
        if name not in known:
            raise ContractError(
                f"This version cannot carry out the storage rule's '{what}'.",
                got=name,
                expected="one of " + ", ".join(known),
                do="Use the headctssl version that wrote the plans or the checkpoint.",
            )
    return CROP_RULES[rule.crop_rule]


def _grow(box: Box, margin_mm: float, spacing_mm: Triple, shape: tuple[int, ...]) -> Box:
    grown = []
    for (low, high), spacing, size in zip(box, spacing_mm, shape, strict=True):
        margin = round(margin_mm / spacing)
        grown.append((max(0, low - margin), min(size, high + margin)))
    return (grown[0], grown[1], grown[2])


def _resampled(raw: NDArray[np.int16], box: Box, grid: Grid, hu_clip: tuple[int, int]) -> NDArray[np.int16]:
    crop = raw[tuple(slice(low, high) for low, high in box)]
    if grid.step == (1.0, 1.0, 1.0):
        return np.ascontiguousarray(np.clip(crop, *hu_clip))
    start = tuple(position - low for position, (low, _) in zip(grid.start, box, strict=True))
    return resample_to_hu(crop, (start[0], start[1], start[2]), grid.step, grid.shape, hu_clip)


def _box_in_grid(box: Box, grid: Grid) -> Box:
    """The smallest box of stored voxels that covers a box of raw voxels, inside the stored array."""
    sides = []
    for (low, high), start, step, count in zip(box, grid.start, grid.step, grid.shape, strict=True):
        # The outer faces of the raw box are at low - 0.5 and high - 0.5; stored voxel j spans j -+ 0.5.
        first = int(np.floor((low - 0.5 - start) / step + 0.5 + 1e-6))
        last = int(np.ceil((high - 0.5 - start) / step + 0.5 - 1e-6))
        first = min(max(first, 0), count - 1)
        sides.append((first, min(max(last, first + 1), count)))
    return (sides[0], sides[1], sides[2])
