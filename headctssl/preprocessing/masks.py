"""Masks: masks of the raw dataset brought to the stored grid."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import ContractError
from headctssl.preprocessing.one_case import Grid
from headctssl.types import Box
from headctssl.volume.resample import resample_reach

__all__ = ["MASK_RULES", "anonymised_on_grid", "mask_on_grid", "require_mask_rule"]

MASK_RULES: tuple[str, ...] = ("largest_part_anonymised_any:1",)
"""Mask rules this version can carry out: a voxel takes the value of its largest part; it is
anonymised where any of it is."""

_MARGIN = 2  # raw voxels around the mask, so that the border of the part does not reach into it
_SEARCH = 12  # raw voxels further out among which a border is looked for that falls between two stored voxels

Marks = TypeVar("Marks", np.bool_, np.uint8)


def require_mask_rule(name: str) -> None:
    """Refuse a mask rule of another version.

    Raises:
        ContractError: this version does not have it.
    """
    if name not in MASK_RULES:
        raise ContractError(
            "This version cannot carry out the storage rule's 'mask_rule'.",
            got=name,
            expected="one of " + ", ".join(MASK_RULES),
            do="Use the headctssl version that wrote the plans or the checkpoint.",
        )


def anonymised_on_grid(mask: NDArray[np.bool_], crop_box: Box, grid: Grid) -> NDArray[np.bool_]:
    """The stored voxels that any anonymised raw voxel went into, found with the weights of the image itself.

    Args:
        mask: (z, y, x) on the raw voxels, True where the image was changed to hide a face.
        crop_box: (start, stop) per axis of what is stored, in raw voxels.
        grid: the stored grid.

    Returns:
        (z, y, x) of `grid.shape`.
    """
    inside = mask[tuple(slice(low, high) for low, high in crop_box)]
    if not inside.any():
        return np.zeros(grid.shape, dtype=np.bool_)
    start = tuple(position - low for position, (low, _) in zip(grid.start, crop_box, strict=True))
    return resample_reach(inside.astype(np.int16), (start[0], start[1], start[2]), grid.step, grid.shape)


def mask_on_grid(mask: NDArray[Marks], crop_box: Box, grid: Grid) -> NDArray[Marks]:
    """Resample a mask or label map with batchgenerators' `resize_segmentation`: the largest part wins.

    Only the part that holds the mask is resized: a lesion is a hundredth of a head. The part's
    borders are chosen where they fall between two stored voxels, because `resize_segmentation`
    stretches borders onto borders; what is left of a shift is below a fifth of a voxel (measured on
    balls at slice spacings of 1 to 5 mm).

    Args:
        mask: (z, y, x) on the raw voxels; bool, or uint8 with one value per class.
        crop_box: (start, stop) per axis of what is stored, in raw voxels.
        grid: the stored grid.

    Returns:
        (z, y, x) of `grid.shape`, of the same type.
    """
    # Imported here: it pulls scikit-image, which only datasets with masks need.
    from batchgenerators.augmentations.utils import resize_segmentation

    stored = np.zeros(grid.shape, dtype=mask.dtype)
    inside = mask[tuple(slice(low, high) for low, high in crop_box)]
    if not inside.any():
        return stored
    source, target = [], []
    for axis, (low, high) in enumerate(crop_box):
        used = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = low + int(used[0]) - _MARGIN, low + int(used[-1]) + 1 + _MARGIN
        a = _border(range(max(low, first - _SEARCH), max(low, first) + 1), axis, grid)
        b = _border(range(min(high, last), min(high, last + _SEARCH) + 1), axis, grid)
        count = grid.shape[axis]
        start = min(max(0, round(_edge(a, axis, grid))), count - 1)
        stop = min(max(start + 1, round(_edge(b, axis, grid))), count)
        source.append(slice(a, b))
        target.append(slice(start, stop))
    part = mask[tuple(source)].astype(np.uint8)
    shape = tuple(t.stop - t.start for t in target)
    stored[tuple(target)] = resize_segmentation(part, shape, order=1)
    return stored


def _edge(raw: int, axis: int, grid: Grid) -> float:
    """Where the lower face of a raw voxel lies, counted in lower faces of stored voxels."""
    return (raw - 0.5 - grid.start[axis]) / grid.step[axis] + 0.5


def _border(candidates: range, axis: int, grid: Grid) -> int:
    """The raw voxel whose lower face is nearest to a face of a stored voxel."""
    return min(candidates, key=lambda raw: abs(_edge(raw, axis, grid) - round(_edge(raw, axis, grid))))
