"""Straighten: a tilted or uneven stack of slices becomes a straight, even volume.

The in-plane axes of the slices are kept and their normal becomes the third axis, so slices stay slices: a head scanned
with a tilted gantry appears rotated by the tilt, as it does on the console, and no voxel is interpolated across planes
that were sharp. Each slice is moved in its plane by its offset from the normal; between slices values are linear along
the normal. The output covers every slice; outside is -1024 HU.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headctssl.errors import DataError
from headctssl.volume.geometry import AIR_HU

__all__ = ["HOLE", "Stack", "straighten"]

HOLE = 1.75
"""A gap more than this many times the usual one is a hole: slices are missing. Less is taken as uneven spacing."""

LARGEST_EXTENT_MM = 2500.0
"""No table moves farther: a slice beyond has a wrong position."""

LARGEST_MOVE_MM = 1000.0
"""In the plane of the slices. A gantry tilted by 30 degrees moves them by 600 mm over a metre."""

MOST_PLANES = 10_000

_EXACT_MM = 0.05  # a position may be off the straight, even grid by this much and still be called straight
_SAME_GAP_MM = 0.1  # gaps that differ by no more are one spacing
_REGULAR = 3  # so many equal gaps in a row are a spacing of the scan, not as many holes of one size
_SUB_SAMPLES = 8  # points, or more, of the average over slices that lie closer together than the new grid
_MOST_SUB_SAMPLES = 256


@dataclass(frozen=True)
class Stack:
    """Where the slices of a scan lie. Vectors are (S, P, L) mm.

    Raises:
        DataError: the rows and columns are not at right angles, two slices lie at one height, or a slice lies where no
            scanner reaches.
    """

    positions_mm: NDArray[np.float64]  # (n, 3), centre of the first pixel of each slice, in any order
    row_step_mm: NDArray[np.float64]  # (3,), from one row to the next: the direction in which the row INDEX grows
    column_step_mm: NDArray[np.float64]  # (3,), from one column to the next

    @classmethod
    def of(cls, positions_mm: ArrayLike, row_step_mm: ArrayLike, column_step_mm: ArrayLike) -> Stack:
        """Make a stack from anything array-like.

        For DICOM, with (L, P, S) turned to (S, P, L): ``column_step_mm`` is the first triple of ImageOrientationPatient
        times the second number of PixelSpacing, ``row_step_mm`` the second triple times the first number.
        """
        stack = cls(
            np.asarray(positions_mm, np.float64).reshape(-1, 3),
            np.asarray(row_step_mm, np.float64),
            np.asarray(column_step_mm, np.float64),
        )
        stack._require_planes()
        return stack

    @classmethod
    def of_affine(cls, affine: ArrayLike, num_slices: int) -> Stack:
        """The stack of an array whose first axis counts slices.

        Args:
            affine: (4, 4), index (slice, row, column, 1) -> (S, P, L, 1) mm.
            num_slices: length of the first axis.
        """
        matrix = np.asarray(affine, np.float64)
        positions = matrix[:3, 3] + np.arange(num_slices)[:, None] * matrix[:3, 0]
        return cls.of(positions, matrix[:3, 1], matrix[:3, 2])

    def _require_planes(self) -> None:
        cosine = float(self._row @ self._column)
        if abs(cosine) > 2e-3:  # 0.1 degrees: 0.4 mm over a head
            raise DataError(
                "The rows and columns of the slices are not at right angles.",
                got=f"{np.degrees(np.arccos(cosine)):.2f} degrees",
                expected="90 degrees",
                do="Resample the image to a grid of right angles with the program that made it.",
            )
        if len(self.positions_mm) > 1 and float(np.diff(np.sort(self._heights)).min()) < 1e-3:
            raise DataError(
                "Two slices lie at the same height, so they are not one volume.",
                got=f"{len(self.positions_mm)} slices, smallest gap {np.diff(np.sort(self._heights)).min():.4f} mm",
                expected="one slice per height",
                do="Split the series (repeated or dynamic scans) and convert one part.",
            )
        extent = float(np.ptp(self._heights)) if len(self.positions_mm) > 1 else 0.0
        planes = 0.0 if self.is_straight_and_even else extent / self.new_gap_mm()
        if extent > LARGEST_EXTENT_MM or self.displacement_mm > LARGEST_MOVE_MM or planes > MOST_PLANES:
            raise DataError(
                "The slices lie farther apart than a scanner reaches, or far too unevenly.",
                got=f"{extent:.0f} mm along their normal, {self.displacement_mm:.0f} mm in their plane"
                + (f", {planes:.0f} slices on an even grid" if planes > MOST_PLANES else ""),
                expected=f"up to {LARGEST_EXTENT_MM:.0f} and {LARGEST_MOVE_MM:.0f} mm, and {MOST_PLANES} slices",
                do="Look at the positions of the slices, and export the scan again.",
            )

    @cached_property
    def _row(self) -> NDArray[np.float64]:
        return np.asarray(self.row_step_mm / np.linalg.norm(self.row_step_mm))

    @cached_property
    def _column(self) -> NDArray[np.float64]:
        return np.asarray(self.column_step_mm / np.linalg.norm(self.column_step_mm))

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector at right angles to the slices, pointing to the side where the superior component is positive.

        (For sagittal and coronal slices: where the largest component is positive.)
        """
        normal = np.cross(self._row, self._column)
        normal /= np.linalg.norm(normal)
        main = 0 if abs(normal[0]) > 0.5 else int(np.abs(normal).argmax())
        return np.asarray(normal if normal[main] > 0 else -normal)

    @cached_property
    def _heights(self) -> NDArray[np.float64]:
        return np.asarray(self.positions_mm @ self.normal)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Slice numbers by height."""
        return np.argsort(self._heights, kind="stable")

    @cached_property
    def heights_mm(self) -> NDArray[np.float64]:
        """Height of each slice along the normal, ascending."""
        return np.sort(self._heights)

    @cached_property
    def gaps_mm(self) -> NDArray[np.float64]:
        """Distances between neighbours along the normal, (n - 1,)."""
        return np.diff(self.heights_mm)

    @cached_property
    def offsets_mm(self) -> NDArray[np.float64]:
        """In-plane place (along rows, along columns) of each slice's first pixel, by height, (n, 2)."""
        return np.stack([self.positions_mm @ self._row, self.positions_mm @ self._column], axis=1)[self.order]

    @cached_property
    def tilt_deg(self) -> float:
        """Angle between the normal and the direction in which the slices are stacked, from the first to the last."""
        if len(self.positions_mm) < 2:
            return 0.0
        run = self.positions_mm[self.order[-1]] - self.positions_mm[self.order[0]]
        return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(run, self.normal)), run @ self.normal)))

    @cached_property
    def displacement_mm(self) -> float:
        """Largest in-plane distance of a slice from its place right above or below the lowest one.

        By so much straightening moves a slice against the lowest, and by so much a reader that takes the stack for
        straight misplaces it.
        """
        return float(np.linalg.norm(self.offsets_mm - self.offsets_mm[0], axis=1).max())

    @cached_property
    def usual_gaps_mm(self) -> NDArray[np.float64]:
        """The gap to be expected at each gap, (n - 1,).

        A scan may change its slice distance once (thin at the base, thick at the vertex), so it is the larger of the
        regular distances (at least three equal gaps in a row) next to it, and the median of all where none is regular.
        """
        gaps = self.gaps_mm
        usual = np.full(gaps.shape, float(np.median(gaps)) if gaps.size else 0.0)
        starts = [0, *(np.flatnonzero(np.abs(np.diff(gaps)) > _SAME_GAP_MM) + 1), gaps.size]
        runs = [(a, b) for a, b in itertools.pairwise(starts) if b - a >= _REGULAR]
        for at in range(gaps.size if runs else 0):
            before = [float(gaps[a:b].mean()) for a, b in runs if a <= at]
            after = [float(gaps[a:b].mean()) for a, b in runs if b > at]
            usual[at] = max([*before[-1:], *after[:1]])
        return usual

    @cached_property
    def holes(self) -> NDArray[np.intp]:
        """The gaps in which slices are missing: `k` = between the slices k and k + 1 by height."""
        if self.gaps_mm.size < 2:
            return np.empty(0, np.intp)
        return np.flatnonzero(self.gaps_mm > HOLE * self.usual_gaps_mm)

    @cached_property
    def is_straight_and_even(self) -> bool:
        """Whether every slice lies within 0.05 mm of a straight, even grid."""
        if len(self.positions_mm) < 2:
            return True
        even = np.linspace(self.heights_mm[0], self.heights_mm[-1], len(self.heights_mm))
        uneven = float(np.abs(self.heights_mm - even).max())
        sheared = float(np.abs(self.offsets_mm - self.offsets_mm.mean(axis=0)).max())
        return max(uneven, sheared) <= _EXACT_MM

    def new_gap_mm(self, *, keep_detail: bool = False) -> float:
        """Slice spacing after straightening: the median gap rounded down to 0.1 mm.

        Args:
            keep_detail: take the smallest gap instead, but not under 0.5 mm (nor above the median gap).
        """
        median = _floor_to_tenth(float(np.median(self.gaps_mm)))
        if not keep_detail:
            return median
        return min(median, max(0.5, _floor_to_tenth(float(self.gaps_mm.min()))))


def _floor_to_tenth(gap: float) -> float:
    tenths = np.floor(gap * 10 + 1e-3)  # 4.99999 mm is 5.0 mm written with rounding
    return float(tenths / 10) if tenths >= 1 else gap


def straighten(
    slices: NDArray[np.int16],
    stack: Stack,
    *,
    keep_detail: bool = False,
    fill_gaps: bool = False,
    single_gap_mm: float = 1.0,
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Make a straight, even volume of a stack of slices.

    A stack that is straight and even already is only sorted by height: no voxel changes, its gap stays as it is.
    Otherwise the in-plane spacing is kept and the slices are spaced by `Stack.new_gap_mm`.

    Args:
        slices: (n, rows, columns) int16 HU, in the order of ``stack.positions_mm``.
        stack: where the slices lie.
        keep_detail: see `Stack.new_gap_mm`.
        fill_gaps: interpolate through `Stack.holes`; else the planes in them are -1024 HU, but for those no farther
            than half the usual gap from a slice, which are that slice.
        single_gap_mm: slice spacing written into the affine when there is one slice only.

    Returns:
        int16 (z, rows, columns) HU and its affine (4, 4), index -> (S, P, L) mm, columns orthogonal.
    """
    assert slices.shape[0] == len(stack.positions_mm), "one position per slice"
    heights, order = stack.heights_mm, stack.order
    if stack.is_straight_and_even:
        gap = float(heights[-1] - heights[0]) / (len(heights) - 1) if len(heights) > 1 else single_gap_mm
        corner = stack.offsets_mm.mean(axis=0)
        sorted_already = bool((order == np.arange(len(order))).all())
        return slices if sorted_already else slices[order], _affine(stack, float(heights[0]), gap, corner)
    gap = stack.new_gap_mm(keep_detail=keep_detail)
    holes = np.empty(0, np.intp) if fill_gaps else stack.holes
    weights = _height_weights(heights, gap, holes, stack.usual_gaps_mm)
    pixel_mm = np.array([np.linalg.norm(stack.row_step_mm), np.linalg.norm(stack.column_step_mm)])
    corner = stack.offsets_mm.min(axis=0)
    moves = (stack.offsets_mm - corner) / pixel_mm  # pixels, >= 0
    nearest = np.rint(moves)
    # A move this close to whole pixels is taken as whole: an interpolation would only blur.
    moves = np.where(np.abs(moves - nearest) * pixel_mm <= _EXACT_MM / 2, nearest, moves)
    canvas = tuple(int(n + np.ceil(m)) for n, m in zip(slices.shape[1:], moves.max(axis=0), strict=True))
    out = np.empty((len(weights), canvas[0], canvas[1]), np.int16)
    moved: dict[int, NDArray[np.float32]] = {}
    for k, row in enumerate(weights):
        used = [int(i) for i in np.flatnonzero(row)]
        if not used:
            out[k] = AIR_HU
            continue
        moved = {
            i: moved[i] if i in moved else _moved(slices[order[i]], moves[i], (canvas[0], canvas[1])) for i in used
        }
        plane = sum((moved[i] * np.float32(row[i]) for i in used[1:]), moved[used[0]] * np.float32(row[used[0]]))
        out[k] = np.rint(plane)
    return out, _affine(stack, float(heights[0]), gap, corner)


def _affine(stack: Stack, height: float, gap: float, corner: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, 0] = stack.normal * gap
    affine[:3, 1] = stack.row_step_mm
    # Exactly orthogonal: the last 0.1 degrees that `_require_planes` lets pass are taken out of the columns.
    column = np.cross(stack.normal, stack._row)
    column *= np.sign(column @ stack._column) * np.linalg.norm(stack.column_step_mm)
    affine[:3, 2] = column
    affine[:3, 3] = stack.normal * height + stack._row * corner[0] + stack._column * corner[1]
    return affine


def _height_weights(
    heights: NDArray[np.float64], gap: float, holes: NDArray[np.intp], usual_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (n_out, n_in): linear along the normal, averaged over what is finer than the new grid.

    Nothing is mixed across a hole: there the nearest slice counts alone, and beyond half a usual gap none. The
    average runs over the width by which the new gap exceeds the local one, so thin slices are not skipped (no
    aliasing) and slices that are as coarse as the grid are not blurred; a linear ramp stays exact either way.
    """
    half_last = min(float(heights[-1] - heights[-2]), float(usual_mm[-1])) / 2  # the last gap may be a hole
    count = int(np.floor((heights[-1] - heights[0] + half_last) / gap + 1e-6)) + 1
    targets = heights[0] + gap * np.arange(count)
    bracket = np.clip(np.searchsorted(heights, targets, side="right") - 1, 0, len(heights) - 2)
    width = np.maximum(0.0, gap - np.diff(heights)[bracket])
    # Narrower at the ends, so that the average stays centred where it has slices on one side only.
    width = np.clip(np.minimum(width, 2 * np.minimum(targets - heights[0], heights[-1] - targets)), 0.0, None)
    weights = np.zeros((count, len(heights)))
    rows = np.arange(count)
    finest = float(np.diff(heights).min())
    samples = int(np.clip(np.ceil(2 * width.max() / finest), _SUB_SAMPLES, _MOST_SUB_SAMPLES))
    for offset in (np.arange(samples) + 0.5) / samples - 0.5:
        at = np.clip(targets + offset * width, heights[0], heights[-1])
        below = np.clip(np.searchsorted(heights, at, side="right") - 1, 0, len(heights) - 2)
        share = (at - heights[below]) / (heights[below + 1] - heights[below])
        share = np.where(np.isin(below, holes), np.rint(share), share)
        np.add.at(weights, (rows, below), (1 - share) / samples)
        np.add.at(weights, (rows, below + 1), share / samples)
    weights[weights < 1e-9] = 0.0
    nearest = np.abs(targets[:, None] - heights).min(axis=1)
    weights[np.isin(bracket, holes) & (nearest > usual_mm[bracket] / 2 + _EXACT_MM)] = 0.0
    return weights


def _moved(plane: NDArray[np.int16], move: NDArray[np.float64], canvas: tuple[int, int]) -> NDArray[np.float32]:
    """A plane moved by a part of a pixel (linear) and whole pixels on a larger canvas of air."""
    whole = np.floor(move).astype(int)
    part = (move - whole).astype(np.float32)
    values = plane.astype(np.float32)
    if part[0]:
        padded = np.pad(values, ((1, 1), (0, 0)), constant_values=AIR_HU)
        values = (1 - part[0]) * padded[1:] + part[0] * padded[:-1]
    if part[1]:
        padded = np.pad(values, ((0, 0), (1, 1)), constant_values=AIR_HU)
        values = (1 - part[1]) * padded[:, 1:] + part[1] * padded[:, :-1]
    out = np.full(canvas, AIR_HU, np.float32)
    out[whole[0] : whole[0] + values.shape[0], whole[1] : whole[1] + values.shape[1]] = values
    return out
