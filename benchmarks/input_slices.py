"""Slices: what our kernel and interpolating splines do between thick slices, at several places of several heads.

One piece of one head says little: the ratio of two errors differs from place to place by more than two kernels do. So
the error is taken at six places, of all voxels and of the brain's, with our kernel and with splines between slices, our
kernel within them both times; and how far both go beyond the two slices that a voxel lies between.
"""

from __future__ import annotations

from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rows import Row, within

__all__ = ["FACTORS", "Slices", "slices_at_places"]

FACTORS = (50, 4, 4)
"""Voxels of the reference at 0.1 mm in one of the scan, 0.4 x 0.4 x 5 mm."""
PLACES = (
    (7, (10.0, 70.0, 10.0)),
    (7, (25.0, 70.0, 0.0)),
    (8, (10.0, 70.0, 10.0)),
    (9, (20.0, 60.0, 30.0)),
    (10, (10.0, -70.0, 0.0)),
    (11, (0.0, 0.0, 60.0)),
)
"""Head, and the place in mm: lower end, shift along y and x. Back, base, front and side of the skull."""
BRAIN_HU = (0.0, 100.0)


class Slices(NamedTuple):
    """One place: RMS errors in HU, of all voxels and of the brain's, and the largest overshoot in HU."""

    monai: float
    ours: float
    spline: float
    monai_brain: float
    ours_brain: float
    spline_brain: float
    ours_over: float
    spline_over: float


def slices_at_places() -> tuple[list[Row], str]:
    """Rows over all places, and in words why the error of all voxels is what it is beside MONAI's."""
    found = [_at(*place) for place in PLACES]
    what = f"RMS error of 1 mm from 0.4 x 0.4 x 5 mm, {len(found)} places"
    other = "MONAI, cubic splines"
    between = "with splines between slices"
    brain = f"voxels of {BRAIN_HU[0]:g} to {BRAIN_HU[1]:g} HU"
    rows = [
        within(what, [f.ours for f in found], [f.monai for f in found], other, unit="HU"),
        within(f"{what}, {between}", [f.spline for f in found], [f.monai for f in found], other, unit="HU"),
        within(f"{what}, {brain}", [f.ours_brain for f in found], [f.monai_brain for f in found], other, unit="HU"),
        within(
            f"largest overshoot between 5 mm slices, {len(found)} places",
            [f.ours_over for f in found],
            [f.spline_over for f in found],
            between,
            unit="HU",
        ),
    ]
    ratios = [f.ours / f.monai for f in found]
    cause = (
        f"at {len(found)} places of heads the ratio is {min(ratios):.3f} to {max(ratios):.3f}, in the mean "
        f"{mean(ratios):.3f} and, for {brain}, {mean(f.ours_brain / f.monai_brain for f in found):.3f}. Interpolating "
        f"splines between slices would bring {mean(f.spline / f.monai for f in found):.3f} and "
        f"{mean(f.spline_brain / f.monai_brain for f in found):.3f}, at {mean(f.spline_over for f in found):.0f} HU of "
        f"overshoot beside bone instead of {mean(f.ours_over for f in found):.0f}"
    )
    return rows, cause


def _at(head: int, place: tuple[float, float, float]) -> Slices:
    from benchmarks.input_accuracy import TENFOLD, averaged, by_monai, reference, truth_of
    from headctssl.volume.resample import resample

    fine = reference(head, place)
    clean = averaged(fine, FACTORS)
    truth, first, shape = truth_of(fine, FACTORS, clean.shape)
    scan = np.rint(clean).astype(np.int16)
    step, y, x = (TENFOLD / n for n in FACTORS)
    within_slices = resample(scan, (0.0, first[1] * y, first[2] * x), (1.0, y, x), (len(scan), shape[1], shape[2]))
    brain = (truth > BRAIN_HU[0]) & (truth < BRAIN_HU[1])
    sides = [by_monai(scan, FACTORS, first, shape)]
    over = []
    positions = step * (first[0] + np.arange(shape[0]))
    below = np.floor(positions).astype(int)
    pair = np.stack([within_slices[below], within_slices[np.minimum(below + 1, len(scan) - 1)]])
    for weights in (_kernel(len(scan), positions), _spline(len(scan), positions)):
        side = np.tensordot(weights, within_slices, axes=1)
        sides.append(side)
        over.append(float(np.maximum(side - pair.max(axis=0), pair.min(axis=0) - side).max()))
    errors = [float(np.sqrt(np.mean((side - truth) ** 2))) for side in sides]
    of_brain = [float(np.sqrt(np.mean((side - truth)[brain] ** 2))) for side in sides]
    return Slices(*errors, *of_brain, *over)


def _kernel(slices: int, positions: Any) -> Any:
    from headctssl.volume.geometry import axis_weights

    step = float(positions[1] - positions[0])
    return axis_weights(slices, len(positions), float(positions[0]), step, kernel="cubic")


def _spline(slices: int, positions: Any) -> Any:
    from scipy import ndimage

    units = np.eye(slices)
    return np.stack([ndimage.map_coordinates(one, [positions], order=3, mode="nearest") for one in units], axis=1)
