"""Crude heads: synthetic heads of ellipsoids, for the tests and for headctssl_raw_template."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.types import Triple, Volume, VolumeInfo

TEMPLATE_SHAPE = (48, 64, 56)
TEMPLATE_SPACING: Triple = (4.0, 4.0, 4.0)

TEMPLATE_CASES = (
    # case_id, subject_id, age, sex, bleed_left, bleed_right, comment
    ("case_001", "subject_1", "54", "F", "0", "0", ""),
    ("case_002", "subject_2", "61", "M", "1", "0", "follow-up planned"),
    ("case_003", "subject_2", "61", "M", "1", "0", "second scan of the same person"),
    ("case_004", "subject_3", "", "F", "0", "1", ""),
    ("case_005", "subject_4", "47", "M", "1", "1", ""),
    ("case_006", "subject_5", "70", "F", "0", "", "right side not assessed: unknown"),
)


def ball(points: NDArray[np.float64], centre: Triple, radii: Triple) -> NDArray[np.float64]:
    """Squared distance from an ellipsoid's centre in radii; below 1 is inside. `points` (..., 3) in mm (S, P, L)."""
    distance: NDArray[np.float64] = (((points - np.array(centre)) / np.array(radii)) ** 2).sum(axis=-1)
    return distance


def crude_head(
    seed: int,
    *,
    bleeds: tuple[str, ...] = (),
    shape: tuple[int, int, int] = TEMPLATE_SHAPE,
    spacing: Triple = TEMPLATE_SPACING,
    noise_hu: float = 3.0,
) -> Volume:
    """A head of ellipsoids: skin, skull, brain, ventricles, and bleeds.

    Args:
        seed: changes size, place and noise.
        bleeds: any of "left", "right".
        shape: voxels (z, y, x).
        spacing: mm (z, y, x).
        noise_hu: standard deviation of the noise in the head.
    """
    generator = np.random.default_rng(seed)
    size = np.array(shape) * np.array(spacing)
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    points = points - generator.uniform(-4, 4, 3)
    scale = generator.uniform(0.94, 1.04)
    head = np.array((76.0, 98.0, 80.0)) * scale
    hu = np.full(shape, -1000.0)
    for shrink, value in ((0.0, 30.0), (5.0, 900.0), (11.0, 34.0)):
        hu[ball(points, (0, 0, 0), tuple(head - shrink)) < 1] = value
    for side in (-1, 1):
        hu[ball(points, (8, 0, side * 12), (14, 32, 7)) < 1] = 5.0
    for name in bleeds:
        side = {"left": 1, "right": -1}[name]
        centre = (generator.uniform(-10, 25), generator.uniform(-35, 35), side * generator.uniform(30, 42))
        hu[ball(points, centre, (16, 18, 14)) < 1] = 70.0
    inside = hu > -900
    hu[inside] += generator.normal(0, noise_hu, int(inside.sum()))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(size - np.array(spacing)) / 2
    return Volume(np.rint(hu).astype(np.int16), affine, VolumeInfo("synthetic", shape, spacing))


def template_volume(position: int) -> Volume:
    """The image of a line of `TEMPLATE_CASES`."""
    row = TEMPLATE_CASES[position]
    bleeds = tuple(side for side, cell in (("left", row[4]), ("right", row[5])) if cell == "1")
    return crude_head(position + 1, bleeds=bleeds)
