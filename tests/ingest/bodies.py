"""Bodies: synthetic trunks and limbs, for tests that they are not taken for heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.types import Triple, Volume, VolumeInfo

__all__ = ["abdomen", "chest", "leg", "volume_of"]

SPACING: Triple = (5.0, 4.0, 4.0)


def volume_of(hu: NDArray[np.float64], spacing: Triple = SPACING) -> Volume:
    """An array of HU (z, y, x) as a volume."""
    affine = np.diag([*spacing, 1.0])
    info = VolumeInfo("synthetic", (hu.shape[0], hu.shape[1], hu.shape[2]), spacing)
    return Volume(np.rint(np.clip(hu, -1024, 3071)).astype(np.int16), affine, info)


def _grid(shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], ...]:
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, SPACING, strict=True)]
    return tuple(np.meshgrid(*axes, indexing="ij"))


def _oval(y: NDArray[np.float64], x: NDArray[np.float64], half: tuple[float, float]) -> NDArray[np.float64]:
    """Distance from the middle in radii: below 1 is inside."""
    return np.hypot(y / half[0], x / half[1])


def _trunk(shape: tuple[int, int, int], half: tuple[float, float]) -> tuple[NDArray[np.float64], ...]:
    """Air, a rim of fat, muscle and a spine; the grid."""
    z, y, x = _grid(shape)
    hu = np.full(shape, -1000.0)
    hu[_oval(y, x, half) < 1] = -100.0
    hu[_oval(y, x, (half[0] - 16, half[1] - 16)) < 1] = 50.0
    spine = np.hypot(y - (half[0] - 45), x) < 18
    hu[spine] = 250.0
    hu[spine & (np.hypot(y - (half[0] - 45), x) > 14)] = 500.0
    return hu, z, y, x


def _noisy(hu: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    return hu + np.random.default_rng(seed).normal(0, 10, hu.shape)


def chest(seed: int = 0, *, child: bool = False) -> Volume:
    """A chest with slanting ribs, lungs and a heart, 280 mm long; a child's is 0.6 as wide."""
    scale = 0.6 if child else 1.0
    half = (115.0 * scale, 165.0 * scale)
    hu, z, y, x = _trunk((56, 72, 96), half)
    inner = (half[0] - 32 * scale, half[1] - 32 * scale)
    cage = _oval(y, x, inner)
    hu[(cage < 1) & (np.abs(x) > 25 * scale)] = -850.0
    hu[np.hypot(np.hypot(y + 15, x - 15), z * 0.8) < 55 * scale] = 45.0
    # Ribs: bands every 25 mm that sink towards the front, so that an axial plane cuts parts of several.
    band = np.mod(z - 0.35 * y, 25.0) < 8.0
    hu[band & (cage > 1) & (cage < 1.1)] = 600.0
    return volume_of(_noisy(hu, seed))


def abdomen(seed: int = 0) -> Volume:
    """An abdomen and pelvis with fat around organs, gas in the bowel and two wings of bone, 240 mm long."""
    hu, z, y, x = _trunk((48, 72, 96), (110.0, 160.0))
    inside = _oval(y, x, (80.0, 128.0)) < 1
    hu[inside] = -100.0
    rng = np.random.default_rng(seed)
    for _ in range(45):
        centre = (rng.uniform(-110, 110), rng.uniform(-60, 50), rng.uniform(-100, 100))
        ball = np.hypot(np.hypot(z - centre[0], y - centre[1]), x - centre[2]) < rng.uniform(12, 32)
        hu[ball & inside] = rng.choice([50.0, 40.0, 55.0, -900.0], p=[0.4, 0.3, 0.2, 0.1])
    wing = np.abs(_oval(y - 10, x, (70.0, 115.0)) - 1) < 0.08
    hu[wing & (z < -30) & (np.abs(x) > 45) & (y > -40)] = 500.0
    return volume_of(_noisy(hu, seed))


def leg(seed: int = 0) -> Volume:
    """A thigh: fat, muscle and one bone with marrow, 200 mm long."""
    _, y, x = _grid((40, 54, 54))
    radius = np.hypot(y, x)
    hu = np.full(radius.shape, -1000.0)
    hu[radius < 85] = -100.0
    hu[radius < 72] = 60.0
    hu[np.hypot(y + 5, x - 5) < 15] = 1300.0
    hu[np.hypot(y + 5, x - 5) < 8] = -60.0
    return volume_of(_noisy(hu, seed))
