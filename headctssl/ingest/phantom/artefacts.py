"""Artefacts: what a scanner adds to the densities of a head: energy, kernel, streaks, motion, noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headctssl.ingest.phantom.fields import Array

if TYPE_CHECKING:
    from headctssl.ingest.phantom.acquisition import Acquisition

__all__ = ["Noise", "degrade"]

_DENSE_HU = 100.0  # above it calcium and iodine make the density, which depends on the energy
_ENERGY = {80: 1.32, 100: 1.13, 120: 1.0, 140: 0.92}  # contrast of calcium and iodine against 120 kVp
_RAYS = 9  # of a piece of metal


def degrade(slices: Array, a: Acquisition, k: NDArray[np.intp]) -> None:
    """Everything but noise, in place.

    Args:
        slices: HU (k, j, i).
        a: the scan.
        k: numbers of the slices.
    """
    factor = _ENERGY[a.kvp]
    if factor != 1.0:
        slices += np.float32(factor - 1) * np.clip(slices - np.float32(_DENSE_HU), 0, None)
    if a.motion_mm:
        _move(slices, a, k)
    if a.streak_hu or a.metal_mm is not None:
        _streaks(slices, a, k)
    if a.ringing:
        soft = ndimage.gaussian_filter(slices, (0, 0.9 / a.pixel_mm, 0.9 / a.pixel_mm))
        slices += np.float32(a.ringing) * (slices - soft)
    if a.offset_hu:
        slices += np.float32(a.offset_hu) * np.clip((slices + 1000) * np.float32(1 / 1000), 0, 1)


def _move(slices: Array, a: Acquisition, k: NDArray[np.intp]) -> None:
    """The head at two places at once while some slices are taken: double contours."""
    level = a.bottom_mm + a.thickness_mm * k
    low, high = a.motion_span
    pixels = a.motion_mm / 2 / a.pixel_mm
    for n in np.flatnonzero((level >= low) & (level <= high)):
        one = ndimage.shift(slices[n], (0.3 * pixels, pixels), order=1, mode="nearest")
        slices[n] = 0.5 * (one + ndimage.shift(slices[n], (-0.3 * pixels, -pixels), order=1, mode="nearest"))


def _streaks(slices: Array, a: Acquisition, k: NDArray[np.intp]) -> None:
    """Dark bands between the petrous bones (beam hardening), and rays of metal; soft tissue shows them."""
    j = i = np.arange(a.matrix, dtype=np.float64)
    z, y, x = a.frame.position(k.astype(np.float64), j, i)
    tissue = ((slices > -200) & (slices < 300)).astype(np.float32)
    if a.streak_hu:
        near = np.exp(-(((z + 46) / 9) ** 2)) * (np.abs(x) < 62)
        bands = (
            -np.exp(-(((y - 4) / 7) ** 2)) + 0.5 * np.exp(-(((y - 20) / 6) ** 2)) - 0.4 * np.sin(y * 0.55 + x * 0.09)
        )
        slices += np.float32(a.streak_hu) * near * bands * tissue
    if a.metal_mm is not None:
        mz, my, mx = a.metal_mm
        away = np.sqrt((y - my) ** 2 + (x - mx) ** 2) + np.float32(1)
        here = np.exp(-(((z - mz) / 3.0) ** 2))
        rays = np.cos(_RAYS * np.arctan2(y - my, x - mx))
        slices += 260 * here * rays * np.exp(-away / 40) * np.minimum(6 / away, 1) * tissue
        core = here * np.clip(4 - away, 0, 1)
        slices += core * (np.float32(3000) - slices)


class Noise:
    """Correlated noise, slice after slice from one generator."""

    def __init__(self, a: Acquisition) -> None:
        self.rng = np.random.Generator(np.random.PCG64(a.noise_seed))
        self.hu = a.noise_hu
        # A soft kernel leaves noise with grains of about 2 mm, a sharp one of under 1 mm.
        self.passes = int(np.clip(round((0.5 if a.sharp else 1.2) / a.pixel_mm), 0, 3))
        gain = {0: 1.0, 1: 0.375, 2: 0.2734, 3: 0.2256}[self.passes]  # standard deviation left by the passes
        self.scale = np.float32(a.noise_hu / gain)

    def add(self, slices: Array) -> None:
        """Add noise in place; air has less of it than the head."""
        noise = self.rng.standard_normal(slices.shape, dtype=np.float32)
        for _ in range(self.passes):
            noise[:, 1:-1] = 0.5 * noise[:, 1:-1] + 0.25 * (noise[:, :-2] + noise[:, 2:])
            noise[:, :, 1:-1] = 0.5 * noise[:, :, 1:-1] + 0.25 * (noise[:, :, :-2] + noise[:, :, 2:])
        noise *= np.where(slices > -600, self.scale, np.float32(0.4) * self.scale)
        slices += noise
