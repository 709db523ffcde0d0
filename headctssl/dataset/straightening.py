"""Straightening: what the slices of a stack say about it, and the straight, even grid it is put on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.raw_image import Affine, Geometry, RawImage

__all__ = ["gap_notes", "is_straight_and_even", "straight_grid", "straighten_image", "tilt_deg"]

TOLERANCE_MM = 0.05
"""Largest distance of a slice from its place on a straight, even grid that counts as none."""

SMALLEST_SPACING_MM = 0.5
"""`keep_detail` makes slices no thinner than this."""


def slice_origins(geometry: Geometry) -> NDArray[np.float64]:
    """Position (S, P, L) in mm of the first voxel of every slice, (slices, 3)."""
    if geometry.slice_origins is not None:
        return geometry.slice_origins
    steps = np.arange(geometry.shape[0])[:, None] * geometry.affine[None, :3, 0]
    origins: NDArray[np.float64] = geometry.affine[None, :3, 3] + steps
    return origins


def _normal(geometry: Geometry) -> NDArray[np.float64]:
    """Unit normal of the slices, pointing from the first slice to the last."""
    normal = np.cross(geometry.affine[:3, 1], geometry.affine[:3, 2])
    normal /= np.linalg.norm(normal)
    origins = slice_origins(geometry)
    forward = (origins[-1] - origins[0]) @ normal >= 0
    result: NDArray[np.float64] = normal if forward else -normal
    return result


def tilt_deg(geometry: Geometry) -> float:
    """Angle in degrees between the slice normal and the direction in which slices are stacked."""
    origins = slice_origins(geometry)
    way = origins[-1] - origins[0]
    along = float(way @ _normal(geometry))
    across = math.sqrt(max(0.0, float(way @ way) - along * along))
    return round(math.degrees(math.atan2(across, along)), 3)


def is_straight_and_even(geometry: Geometry) -> bool:
    """Whether every slice lies within 0.05 mm of a straight, even grid along the normal."""
    origins = slice_origins(geometry)
    along = (origins - origins[0]) @ _normal(geometry)
    ideal = origins[0] + np.linspace(0.0, along[-1], len(origins))[:, None] * _normal(geometry)
    return bool(np.abs(np.linalg.norm(origins - ideal, axis=1)).max() <= TOLERANCE_MM)


def slice_spacing(geometry: Geometry, *, keep_detail: bool) -> float:
    """Slice spacing in mm of the straight grid: the median gap rounded down to 0.1 mm, or the smallest."""
    gaps = geometry.gaps_mm
    if keep_detail:
        return max(SMALLEST_SPACING_MM, float(gaps.min()))
    # The small amount keeps 3.9999999 from becoming 3.9; gaps below 0.1 mm keep their size.
    return math.floor(float(np.median(gaps)) * 10 + 1e-3) / 10 or float(np.median(gaps))


@dataclass(frozen=True)
class _Grid:
    """A straight, even grid whose axes are the slice normal, the rows and the columns of the stack."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]  # mm
    axes: NDArray[np.float64]  # (3, 3), unit vectors (S, P, L) as columns: normal, row axis, column axis
    origin: NDArray[np.float64]  # (3,) mm (S, P, L) of voxel (0, 0, 0)

    @property
    def affine(self) -> NDArray[np.float64]:
        affine = np.eye(4)
        affine[:3, :3] = self.axes * np.array(self.spacing)
        affine[:3, 3] = self.origin
        return affine


def _grid(geometry: Geometry, *, keep_detail: bool) -> _Grid:
    """The grid that holds every voxel of the stack, in-plane spacing kept."""
    normal = _normal(geometry)
    columns = geometry.affine[:3, 2]
    column_axis = columns / np.linalg.norm(columns)
    rows = geometry.affine[:3, 1] - (geometry.affine[:3, 1] @ column_axis) * column_axis
    row_axis = rows / np.linalg.norm(rows)
    axes = np.stack([normal, row_axis, column_axis], axis=1)
    _, dy, dx = geometry.spacing_mm
    dz = slice_spacing(geometry, keep_detail=keep_detail)
    places = slice_origins(geometry) @ axes  # (slices, 3) mm along normal, row axis, column axis
    low, high = places.min(axis=0), places.max(axis=0)
    # The last grid slice lies at most half a step beyond the last stored one, whose copy it then is.
    count = round(float(high[0] - low[0]) / dz) + 1
    grow = [math.ceil((high[k] - low[k]) / step - 1e-3) for k, step in ((1, dy), (2, dx))]
    shape = (count, geometry.shape[1] + grow[0], geometry.shape[2] + grow[1])
    return _Grid(shape, (dz, dy, dx), axes, axes @ low)


def straight_grid(geometry: Geometry, *, keep_detail: bool = False) -> tuple[tuple[int, int, int], Affine]:
    """Shape (voxels) and affine (index -> (S, P, L) mm) of the volume that `straighten_image` makes."""
    if is_straight_and_even(geometry):
        affine = geometry.affine.copy()
        affine[:3, 0] = _normal(geometry) * (np.linalg.norm(_extent(geometry)) / max(1, geometry.shape[0] - 1))
        return geometry.shape, affine
    grid = _grid(geometry, keep_detail=keep_detail)
    return grid.shape, grid.affine


def _extent(geometry: Geometry) -> NDArray[np.float64]:
    origins = slice_origins(geometry)
    extent: NDArray[np.float64] = origins[-1] - origins[0]
    return extent


def straighten_image(raw: RawImage, *, keep_detail: bool = False) -> tuple[NDArray[np.int16], Affine, tuple[str, ...]]:
    """Put a stack of parallel slices on a straight, even grid.

    Each slice is shifted within its plane to where the straight grid has it, then neighbouring slices
    are mixed linearly by their distances along the normal. Places that no slice covers are -1024 HU.
    A stack that is straight and even is returned as it is, the same array.

    Args:
        raw: the stack.
        keep_detail: use the smallest gap (not under 0.5 mm) as slice spacing.

    Returns:
        The voxels (slices, rows, columns), their affine (index -> (S, P, L) mm), and what was done.
    """
    geometry = raw.geometry
    notes = list(gap_notes(geometry))
    if is_straight_and_even(geometry):
        _, affine = straight_grid(geometry)
        return raw.hu, affine, tuple(notes)
    grid = _grid(geometry, keep_detail=keep_detail)
    places = (slice_origins(geometry) - grid.origin) @ grid.axes / np.array(grid.spacing)
    order = np.argsort(places[:, 0], kind="stable")
    height = places[order, 0]
    result = np.full(grid.shape, -1024, np.int16)
    held: dict[int, NDArray[np.float32]] = {}
    for z in range(grid.shape[0]):
        upper = min(max(1, int(np.searchsorted(height, z))), len(order) - 1)
        share = float(np.clip((z - height[upper - 1]) / (height[upper] - height[upper - 1]), 0.0, 1.0))
        for k in (upper - 1, upper):
            if k not in held:
                held[k] = _shifted(raw.hu[order[k]], places[order[k], 1:], grid.shape[1:])
        mixed = held[upper - 1] * np.float32(1.0 - share) + held[upper] * np.float32(share)
        result[z] = np.rint(mixed)
        held = {k: plane for k, plane in held.items() if k >= upper - 1}
    tilt = tilt_deg(geometry)
    done = f"Resampled to a straight grid of {grid.spacing[0]:g} mm slices: "
    done += f"tilt {tilt:.1f} degrees, slice gaps {_list(geometry.gaps_mm)} mm."
    return result, grid.affine, (*notes, done)


def _shifted(plane: NDArray[np.int16], places: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A slice whose voxel (0, 0) is put at fractional index `places` of a larger plane, linearly; outside is air."""
    part = plane.astype(np.float32)
    for axis in (0, 1):
        part = _shifted_rows(part if axis == 0 else part.T, float(places[axis]), shape[axis])
        part = part if axis == 0 else part.T
    return part


def _shifted_rows(plane: NDArray[np.float32], place: float, length: int) -> NDArray[np.float32]:
    """The same for rows only: row 0 is put at fractional index `place` of `length` rows."""
    whole = math.floor(place + 1e-6)
    fraction = np.float32(max(0.0, place - whole))
    moved = np.full((length, plane.shape[1]), -1024.0, np.float32)
    moved[whole : whole + len(plane)] = plane
    if fraction > 1e-4:
        later = np.roll(moved, 1, axis=0)
        later[0] = -1024.0
        moved += fraction * (later - moved)
    return moved


def _list(gaps: NDArray[np.float64]) -> str:
    return ", ".join(f"{gap:g}" for gap in sorted({round(float(g), 2) for g in gaps}))


def gap_notes(geometry: Geometry) -> list[str]:
    """Sentences on uneven gaps: slices that seem to be missing, or several thicknesses in one stack."""
    gaps = geometry.gaps_mm
    if gaps.size < 2 or gaps.max() - gaps.min() <= 2 * TOLERANCE_MM:
        return []
    # Runs of equal gaps: (gap, how many in a row).
    runs: list[tuple[float, int]] = []
    for gap in gaps:
        if runs and abs(runs[-1][0] - gap) <= 2 * TOLERANCE_MM:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((float(gap), 1))
    usual = float(np.median(gaps))
    notes = [
        f"A gap of {gap:.2f} mm where slices are {usual:.2f} mm apart:"
        f" {round(gap / usual) - 1} slice(s) may be missing."
        for gap, length in runs
        if length == 1 and gap >= 1.5 * usual
    ]
    thicknesses = sorted({round(gap, 1) for gap, length in runs if length > 2})
    if len(thicknesses) > 1:
        notes.append(f"Several slice distances in one stack: {', '.join(f'{t:g}' for t in thicknesses)} mm.")
    return notes
