"""Label map: masks and segmentations on the straight grid of their image, every voxel one value of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.raw_image import RawImage
from headctssl.dataset.straightening import SliceStack
from headctssl.errors import ImageReadError
from headctssl.volume.geometry import to_spl

__all__ = ["LabelMap", "MaskRule", "straight_label_map"]

MaskRule = Literal["nonzero", "zero"]
"""Which voxels of a mask file are inside: those that are not 0 (0 and 255), or those that are 0 (inverted)."""

_MOST_VALUES = 256
_WHOLE = 4096  # stands for a voxel that is all of one value, in int16 with room for the arithmetic


@dataclass(frozen=True)
class LabelMap:
    """A mask or segmentation, axes (z, y, x) growing towards superior, posterior, patient left."""

    values: NDArray[np.int16]  # (z, y, x), the values of the file; 0 where nothing was marked
    affine: NDArray[np.float64]  # (4, 4), index (z, y, x, 1) -> (S, P, L, 1) mm; columns orthogonal


def straight_label_map(
    raw: RawImage,
    name: str,
    *,
    keep_detail: bool = False,
    fill_gaps: bool = False,
    any_part: bool = False,
    rule: MaskRule | None = None,
) -> LabelMap:
    """Put a label map on the grid that its image gets, without mixing values.

    A straight map is only turned. Of a sheared or uneven stack each value is straightened by itself
    with the weights of the image, and a voxel takes the value of its largest part: numbers between
    two classes would be a third class.

    Args:
        raw: the map as stored.
        name: the file, for errors.
        keep_detail: as the image was read.
        fill_gaps: as the image was read.
        any_part: a voxel is marked when any part of it is, however small, as anonymised voxels need
            it; of several values the largest part still counts.
        rule: make a mask of 0 and 1 of it; negative numbers stay, for no mask can have them. What straightening adds
            around the stack is never inside.

    Raises:
        ImageReadError: the voxels do not lie on a volume, or a stack that must be straightened has
            more than 256 values, so it is no label map.
    """
    stack = SliceStack(raw.geometry, name)
    limits = np.iinfo(np.int16)
    stored = np.clip(raw.hu, limits.min, limits.max).astype(np.int16, copy=False)
    if rule is not None:
        inside = stored == 0 if rule == "zero" else stored != 0
        stored = np.where(stored < 0, stored, inside.astype(np.int16))

    def straightened(part: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        return stack.straight(part, keep_detail=keep_detail, fill_gaps=fill_gaps)

    if stack.stack.is_straight_and_even:
        values, affine = straightened(stored)
    else:
        _, affine = straightened(np.zeros(stored.shape, np.int16))
        values = _largest_part(stored, lambda part: straightened(part)[0], name, any_part=any_part)
    turned, affine = to_spl(values, affine)
    return LabelMap(np.ascontiguousarray(turned, dtype=np.int16), affine)


def _largest_part(
    stored: NDArray[np.int16],
    straightened: Callable[[NDArray[np.int16]], NDArray[np.int16]],
    name: str,
    *,
    any_part: bool,
) -> NDArray[np.int16]:
    """The value of the largest part of each voxel; 0 is a part like the others unless `any_part`."""
    found = np.unique(stored)
    if len(found) > _MOST_VALUES:
        raise ImageReadError(
            f"{name} is not a label map.",
            got=f"{len(found)} different values",
            expected="one whole number per class",
            do="Name the file of the mask, not of an image.",
        )
    empty = np.maximum(straightened(np.where(stored == 0, np.int16(_WHOLE), np.int16(0))), 0)
    values = np.zeros(empty.shape, np.int16)
    # What lies outside the stack, -1024 after straightening, is no part of anything.
    most = np.zeros_like(empty) if any_part else empty
    for value in (int(v) for v in found if v != 0):
        share = straightened(np.where(stored == value, np.int16(_WHOLE), np.int16(0)))
        larger = share > most
        values[larger], most[larger] = value, share[larger]
    return values
