"""Raw image: what a file format gives before anything is straightened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import ImageReadError
from headctssl.types import Triple
from headctssl.volume.hounsfield import rescaled

__all__ = ["Affine", "Geometry", "RawImage", "hounsfield", "mirror_to_spl", "unreadable"]

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a stored image are, known from headers alone."""

    source_format: str  # "nifti", "nrrd", "metaimage", "dicom"
    shape: tuple[int, int, int]  # voxels (slices, rows, columns) as stored
    affine: Affine  # (4, 4), stored (slice, row, column) index -> (S, P, L) mm; slice column = mean step
    slice_origins: NDArray[np.float64] | None = None  # (slices, 3) mm (S, P, L) of voxel (0, 0) of each slice
    metadata: tuple[tuple[str, str], ...] = ()  # (name, value), never identifying
    notes: tuple[str, ...] = ()

    @property
    def gaps_mm(self) -> NDArray[np.float64]:
        """Distances between neighbouring slices along the slice normal in mm, (slices - 1,)."""
        normal = np.cross(self.affine[:3, 1], self.affine[:3, 2])
        normal /= np.linalg.norm(normal)
        if self.slice_origins is None:
            return np.full(max(self.shape[0] - 1, 0), abs(float(self.affine[:3, 0] @ normal)))
        gaps: NDArray[np.float64] = np.abs(np.diff(self.slice_origins @ normal))
        return gaps

    @property
    def spacing_mm(self) -> Triple:
        """(slice, row, column) spacing as stored in mm; slice = median gap along the normal."""
        gaps = self.gaps_mm
        slice_gap = float(np.median(gaps)) if gaps.size else float(np.linalg.norm(self.affine[:3, 0]))
        return (
            slice_gap,
            float(np.linalg.norm(self.affine[:3, 1])),
            float(np.linalg.norm(self.affine[:3, 2])),
        )


@dataclass(frozen=True)
class RawImage:
    """Geometry and voxels of a stored image."""

    geometry: Geometry
    hu: NDArray[np.int16] | NDArray[np.int32]  # (slices, rows, columns), rescaled, not clipped; int16 where it fits


def unreadable(path: Path, got: object, expected: str, do: str) -> ImageReadError:
    """An `ImageReadError` that names the file."""
    return ImageReadError(f"{path} cannot be read as a volume.", got=got, expected=expected, do=do)


def mirror_to_spl(ras_or_lps: NDArray[np.float64], *, ras: bool) -> Affine:
    """A 4x4 affine from (i, j, k) index to x, y, z mm as (k, j, i) index to (S, P, L) mm.

    Args:
        ras_or_lps: the affine of the file.
        ras: True when its mm grow to right, anterior, superior (NIfTI), False for left, posterior,
            superior (DICOM, ITK).
    """
    affine = np.array(ras_or_lps, dtype=np.float64)
    if ras:
        affine[:2] *= -1.0
    flip = np.eye(4)[[2, 1, 0, 3]]
    return np.asarray(flip @ affine @ flip, dtype=np.float64)


def hounsfield(
    stored: NDArray[Any], slope: float, intercept: float, path: Path, *, copy: bool = True
) -> NDArray[np.int16] | NDArray[np.int32]:
    """Stored values rescaled, which should make them Hounsfield units; not clipped, int32 where int16 is too small.

    Args:
        stored: integers or floats of any shape.
        slope: HU per stored unit.
        intercept: HU at stored 0.
        path: named in errors.
        copy: as in `rescaled`.

    Raises:
        ImageReadError: NaN or infinite voxels, or slope or intercept not finite.
    """
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise unreadable(path, f"slope {slope}, intercept {intercept}", "finite rescaling", "Export the image again.")
    if stored.dtype.kind == "f":
        bad = int(stored.size - np.count_nonzero(np.isfinite(stored)))
        if bad:
            raise unreadable(
                path,
                f"{bad} of {stored.size} voxels are NaN or infinite",
                "a number in every voxel",
                "Find what wrote them; a volume with holes cannot be used.",
            )
    return rescaled(stored, slope, intercept, copy=copy)
