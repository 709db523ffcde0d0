"""Slice levels: slices whose values are off from those of both neighbours, as by a rescaling that one slice lacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL_MARK", "level_notes", "odd_slices"]

LEVEL_MARK = "off from their neighbours"
"""Part of the note, by which a verdict knows it."""

SMALLEST_STEP_HU = 150
"""Noise and anatomy move the median by far less, a wrong rescaling by hundreds."""

_AGREE_HU = 100
_AIR_BELOW = -700
_TISSUE = (-200, 200)
_AIR_SHARE = 0.05  # of the pixels of a slice
_TISSUE_SHARE = 0.12  # more than the cap of skull that lies between scalp and brain at the vertex
_PER_AXIS = 96
_SHOWN = 5


def level_notes(hu: NDArray[np.int16], axis: int) -> list[str]:
    """A sentence on slices with other values than their neighbours, [] without any.

    Args:
        hu: three axes, as stored.
        axis: the one that counts slices.
    """
    odd = odd_slices(np.moveaxis(hu, axis, 0))
    if not odd.size:
        return []
    shown = ", ".join(str(k + 1) for k in odd[:_SHOWN]) + (", ..." if odd.size > _SHOWN else "")
    return [f"The values of slice {shown} of {hu.shape[axis]} are {LEVEL_MARK}: a wrong rescaling or a damaged slice."]


def odd_slices(hu: NDArray[np.int16]) -> NDArray[np.intp]:
    """Slices that are off where the slices on both sides agree on air or on soft tissue.

    What is air or soft tissue on both sides of a slice is so in between, but for small parts. The first and the last
    slice are compared in the air of the two next to them: a head ends, air does not.

    Args:
        hu: (slices, rows, columns) HU.
    """
    if len(hu) < 3:
        return np.empty(0, np.intp)
    stride = tuple(max(1, n // _PER_AXIS) for n in hu.shape[1:])
    sample = hu[:, :: stride[0], :: stride[1]].astype(np.int32)
    odd = [k for k in range(1, len(hu) - 1) if _is_off(sample[k], sample[k - 1], sample[k + 1], tissue=True)]
    ends = ((0, 1, 2), (len(hu) - 1, len(hu) - 2, len(hu) - 3))
    odd += [k for k, near, far in ends if near not in odd and _is_off(sample[k], sample[near], sample[far])]
    return np.array(sorted(odd), np.intp)


def _is_off(
    values: NDArray[np.int32], one: NDArray[np.int32], other: NDArray[np.int32], *, tissue: bool = False
) -> bool:
    twice = one + other  # twice what is usual: integers take half the time
    agree = np.abs(one - other) < _AGREE_HU
    steps = 2 * values - twice
    places = [(agree & (twice < 2 * _AIR_BELOW), _AIR_SHARE)]
    if tissue:
        places.append((agree & (twice > 2 * _TISSUE[0]) & (twice < 2 * _TISSUE[1]), _TISSUE_SHARE))
    return any(
        np.count_nonzero(place) >= share * place.size and abs(_median_step(steps[place])) > 2 * SMALLEST_STEP_HU
        for place, share in places
    )


def _median_step(steps: NDArray[np.int32]) -> float:
    """The median of doubled steps, 0 where it cannot be above `SMALLEST_STEP_HU`: sorting is what takes time."""
    far = max(np.count_nonzero(steps > 2 * SMALLEST_STEP_HU), np.count_nonzero(steps < -2 * SMALLEST_STEP_HU))
    return float(np.median(steps)) if 2 * far >= steps.size > 0 else 0.0
