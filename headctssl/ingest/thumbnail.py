"""Thumbnail: three middle slices of a scan in one small picture, to see at a glance why it was not accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.paths import atomic_path
from headctssl.types import Volume

__all__ = ["THUMBNAILS", "thumbnail", "write_thumbnail"]

THUMBNAILS = "ingest_thumbnails"
"""Folder of a dataset."""

SIDE = 96
"""Pixels along each side of a slice."""

AIR_BELOW = -500


def thumbnail(volume: Volume) -> NDArray[np.uint8]:
    """The middle axial, coronal and sagittal slice side by side, at one scale, superior and anterior up.

    Grey values go from the 5th to the 99th percentile of what is no air, so that a scan of wrong values
    shows too.

    Args:
        volume: any volume.

    Returns:
        (96, 288) grey values.
    """
    hu, spacing = volume.hu, volume.spacing_mm
    z, y, x = (n // 2 for n in hu.shape)
    solid = hu[:: max(1, hu.shape[0] // 32), :: max(1, hu.shape[1] // 64), :: max(1, hu.shape[2] // 64)]
    solid = solid[solid > AIR_BELOW] if (solid > AIR_BELOW).any() else solid
    low, high = np.percentile(solid, (5, 99))
    scale = max(n * s for n, s in zip(hu.shape, spacing, strict=True)) / SIDE  # mm per pixel
    planes = (
        (hu[z], spacing[1], spacing[2]),
        (hu[::-1, y], spacing[0], spacing[2]),
        (hu[::-1, :, x], spacing[0], spacing[1]),
    )
    strip = np.concatenate([_fitted(plane, down / scale, across / scale) for plane, down, across in planes], axis=1)
    grey = (strip.astype(np.float32) - low) / max(float(high - low), 1.0)
    return np.asarray(np.clip(grey * 255, 0, 255).astype(np.uint8))


def _fitted(plane: NDArray[np.int16], down: float, across: float) -> NDArray[np.int16]:
    """A slice in the middle of a square of air, nearest voxels; `down`, `across`: pixels per voxel."""
    square = np.full((SIDE, SIDE), np.iinfo(np.int16).min, np.int16)
    rows, columns = (min(SIDE, max(1, round(n * f))) for n, f in zip(plane.shape, (down, across), strict=True))
    at_rows = np.minimum((np.arange(rows) + 0.5) / rows * plane.shape[0], plane.shape[0] - 1).astype(int)
    at_columns = np.minimum((np.arange(columns) + 0.5) / columns * plane.shape[1], plane.shape[1] - 1).astype(int)
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    square[top : top + rows, left : left + columns] = plane[np.ix_(at_rows, at_columns)]
    return square


def write_thumbnail(path: Path, volume: Volume) -> None:
    """Write the thumbnail of a volume as PNG, atomically.

    Args:
        path: file ending in .png; its folder is made.
        volume: any volume.
    """
    from matplotlib.image import imsave  # takes a moment to import, and most scans need no picture

    with atomic_path(path) as temporary:
        imsave(temporary, thumbnail(volume), cmap="gray", vmin=0, vmax=255, format="png")
