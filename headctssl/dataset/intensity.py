"""Intensity: whether the values of a volume can be Hounsfield units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["IntensityFault", "hounsfield_fault", "noted_fault"]

AIR_BELOW = -700
"""Air is -1000 HU; mixed with tissue in thick slices it stays below this in the sinuses and outside the head."""

_NOT_HU = "The values are not Hounsfield units: "
_DOUBTFUL = "The values may not be Hounsfield units: "

SMALLEST_AIR_SHARE = 0.002
"""A head scan has far more air than this, in its sinuses alone."""


@dataclass(frozen=True)
class IntensityFault:
    """Why values cannot be, or may not be, Hounsfield units."""

    kind: Literal["not_hu", "doubtful"]
    text: str


def hounsfield_fault(hu: NDArray[np.int16]) -> IntensityFault | None:
    """Look for the air that every head CT in Hounsfield units has near -1000.

    Args:
        hu: (z, y, x) values that should be Hounsfield units.

    Returns:
        None when air is where it should be; `not_hu` when there is none and the lowest value is not
        negative enough to be soft tissue of a scan (offset by 1024, Cormack units, a windowed
        picture, a mask); `doubtful` when there is none but some values are negative.
    """
    stride = tuple(max(1, n // 96) for n in hu.shape)
    sample = hu[:: stride[0], :: stride[1], :: stride[2]]
    if np.count_nonzero(sample < AIR_BELOW) >= SMALLEST_AIR_SHARE * sample.size:
        return None
    low, high = int(hu.min()), int(hu.max())
    found = f"values from {low} to {high} with no air near -1000 HU"
    if low > -100:
        guess = ""
        if low >= 0 and high <= 1:
            guess = "; they look like a mask"
        elif low >= 0 and high <= 255:
            guess = "; they look like a windowed 8-bit picture"
        elif low >= 0 and high > 1500:
            guess = "; they look like HU + 1024 or Cormack units"
        return IntensityFault("not_hu", f"{_NOT_HU}{found}{guess}.")
    return IntensityFault("doubtful", f"{_DOUBTFUL}{found}.")


def noted_fault(notes: Iterable[str]) -> IntensityFault | None:
    """The fault that `image_io.read` found in the voxels as stored and left in `info.notes`.

    Args:
        notes: notes of a volume. Its voxels cannot be asked again: straightening adds air.
    """
    for note in notes:
        if note.startswith(_NOT_HU):
            return IntensityFault("not_hu", note)
        if note.startswith(_DOUBTFUL):
            return IntensityFault("doubtful", note)
    return None
