"""Hounsfield: stored numbers to int16 Hounsfield units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import DataError

__all__ = ["clip_hu", "to_hu"]

_LOWEST = -1024
_HIGHEST = 32767


def to_hu(stored: NDArray[np.generic], slope: float = 1.0, intercept: float = 0.0) -> NDArray[np.int16]:
    """``stored * slope + intercept``, rounded; padding below -1024 HU becomes -1024 HU.

    Args:
        stored: numbers as they stand in the file, any shape, integer or float.
        slope: HU per stored unit.
        intercept: HU of stored 0.

    Returns:
        int16 of the same shape, in HU.

    Raises:
        DataError: a number is not finite.
    """
    out = np.empty(stored.shape, np.int16)
    flat_in, flat_out = (stored[None], out[None]) if stored.ndim < 2 else (stored, out)
    whole = float(slope) == 1.0 and float(intercept).is_integer() and np.issubdtype(stored.dtype, np.integer)
    for source, target in zip(flat_in, flat_out, strict=True):  # slab by slab: no copy of the whole volume as float
        if whole:
            values = source.astype(np.int64 if source.dtype.itemsize >= 4 else np.int32) + int(intercept)
        else:
            values = source.astype(np.float64 if source.dtype.itemsize > 2 else np.float32)
            values = np.rint(values * slope + intercept)
            if not np.isfinite(values).all():
                raise DataError(
                    "A volume has voxels without a value.",
                    got="NaN or infinity",
                    expected="finite numbers",
                    do="Export the scan again, or replace these voxels by -1024 HU.",
                )
        np.clip(values, _LOWEST, _HIGHEST, out=values)
        target[...] = values
    return out


def clip_hu(hu: NDArray[np.generic], lowest: int, highest: int) -> NDArray[np.int16]:
    """Clip to a range and round to int16.

    Args:
        hu: any shape, integer or float HU.
        lowest: smallest HU kept.
        highest: largest HU kept.
    """
    if np.issubdtype(hu.dtype, np.floating):
        hu = np.rint(hu)
    clipped: NDArray[np.int16] = np.clip(hu, lowest, highest).astype(np.int16)
    return clipped
