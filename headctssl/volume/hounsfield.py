"""Hounsfield: stored numbers to int16 Hounsfield units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import DataError

__all__ = ["rescaled", "unpadded"]

_LOWEST = -1024
_HIGHEST = 32767
_INT16 = (-32768, 32767)
_LARGEST = 2**31 - 128  # of int32, that float32 can name too


def rescaled(
    stored: NDArray[np.generic], slope: float = 1.0, intercept: float = 0.0, *, copy: bool = True
) -> NDArray[np.int16] | NDArray[np.int32]:
    """``stored * slope + intercept``, rounded and not clipped.

    Args:
        stored: numbers as they stand in the file, any shape, integer or float.
        slope: HU per stored unit.
        intercept: HU of stored 0.
        copy: False returns ``stored`` itself where nothing changes.

    Returns:
        The same shape; int16 where every number fits, else int32.

    Raises:
        DataError: a number is not finite.
    """
    whole = float(slope) == 1.0 and float(intercept).is_integer() and np.issubdtype(stored.dtype, np.integer)
    if whole and _fits_int16(stored, int(intercept)):
        same = stored.astype(np.int16, copy=copy or bool(intercept))
        # Modulo 2^16, which is exact: every sum fits.
        return np.add(same, np.int64(intercept).astype(np.int16), out=same) if intercept else same
    out: NDArray[np.int16] | NDArray[np.int32] = np.empty(stored.shape, np.int16)
    sources = stored[None] if stored.ndim < 2 else stored
    for position, source in enumerate(sources):  # slab by slab: no copy of the whole volume as float
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
        if out.dtype == np.int16 and source.size and (values.min() < _INT16[0] or values.max() > _INT16[1]):
            out = out.astype(np.int32)
        if out.dtype == np.int32:
            values = np.clip(values, -(2**31), _LARGEST)
        (out[None] if stored.ndim < 2 else out)[position] = values
    return out


def _fits_int16(stored: NDArray[np.generic], intercept: int) -> bool:
    """Whether integers plus the intercept are numbers of int16."""
    if not stored.size or (stored.dtype == np.int16 and not intercept):
        return True
    return int(stored.min()) + intercept >= _INT16[0] and int(stored.max()) + intercept <= _INT16[1]


def unpadded(hu: NDArray[np.int16] | NDArray[np.int32]) -> NDArray[np.int16]:
    """HU as int16; padding below -1024 HU becomes -1024 HU. May change `hu`.

    Args:
        hu: any shape.
    """
    if not hu.size or (hu.dtype == np.int16 and hu.min() >= _LOWEST):
        return hu.astype(np.int16, copy=False)
    clipped = np.clip(hu, _LOWEST, _HIGHEST, out=hu if hu.flags.writeable else None)
    return clipped.astype(np.int16, copy=False)
