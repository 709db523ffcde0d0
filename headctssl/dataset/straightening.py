"""Straightening: which axis of an image counts slices, what their gaps say, and the straight grid it becomes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.raw_image import Affine, Geometry
from headctssl.errors import DataError, ImageReadError
from headctssl.volume.geometry import is_straight
from headctssl.volume.straighten import Stack, straighten

__all__ = ["HOLE_MARK", "SliceStack", "distinct", "gap_notes"]

HOLE_MARK = "may be missing"
"""Part of the note on a hole that stays, by which a verdict knows it."""

_SAME_GAP_MM = 0.1  # gaps that differ by no more are one spacing


class SliceStack:
    """The slices of an image: as stored for DICOM, along the sheared axis for a file with one affine.

    Args:
        geometry: from the headers.
        name: the file or folder, for errors.

    Raises:
        ImageReadError: the slices cannot be put on a straight grid.
    """

    def __init__(self, geometry: Geometry, name: str) -> None:
        self.name = name
        self.axes = (0, 1, 2) if geometry.slice_origins is not None else _slices_first(geometry.affine)
        columns = [*self.axes, 3]
        self.affine: Affine = geometry.affine[:, columns]
        self.shape = tuple(geometry.shape[axis] for axis in self.axes)
        try:
            if geometry.slice_origins is None:
                self.stack = Stack.of_affine(self.affine, self.shape[0])
            else:
                self.stack = Stack.of(geometry.slice_origins, self.affine[:3, 1], self.affine[:3, 2])
        except DataError as error:
            raise ImageReadError(f"{name}: {error.what}", got=error.got, expected=error.expected, do=error.do) from None

    def straight(
        self, hu: NDArray[np.int16], *, keep_detail: bool, fill_gaps: bool = False
    ) -> tuple[NDArray[np.int16], Affine]:
        """The voxels (stored order of axes) on the straight grid: (slices, rows, columns) and its affine."""
        return straighten(hu.transpose(self.axes), self.stack, keep_detail=keep_detail, fill_gaps=fill_gaps)

    @property
    def displacement_mm(self) -> float:
        """`Stack.displacement_mm` rounded to 0.001 mm; 0 where the stack is taken as it is."""
        return 0.0 if self.stack.is_straight_and_even else round(self.stack.displacement_mm, 3)

    def grid(self, *, keep_detail: bool = False) -> tuple[tuple[int, int, int], Affine]:
        """Shape and affine of what `straight` returns, found without the voxels.

        A picture of one row and one column per slice is straightened: it goes the same way, so the
        number of slices and the corner are the same; the in-plane size is added.
        """
        point = np.zeros((self.shape[0], 1, 1), np.int16)
        small, affine = straighten(point, self.stack, keep_detail=keep_detail)
        return (small.shape[0], small.shape[1] + self.shape[1] - 1, small.shape[2] + self.shape[2] - 1), affine

    def notes(self, *, keep_detail: bool, fill_gaps: bool = False) -> list[str]:
        """What was noticed about gaps, and what straightening did."""
        notes = gap_notes(self.stack, fill_gaps=fill_gaps)
        if not self.stack.is_straight_and_even:
            gaps = ", ".join(f"{gap:g}" for gap in distinct(self.stack.gaps_mm))
            notes.append(
                f"Resampled to straight slices {self.stack.new_gap_mm(keep_detail=keep_detail):g} mm apart:"
                f" tilt {self.stack.tilt_deg:.1f} degrees, slice gaps {gaps} mm,"
                f" slices moved in their plane by up to {self.displacement_mm:.1f} mm."
            )
        return notes


def _slices_first(affine: Affine) -> tuple[int, int, int]:
    """The order of array axes that puts the one that counts slices first.

    Of a straight image the order is kept. Of a sheared one, slices are stacked along one of the two
    axes that are not at right angles; the coarser of them is taken, for slices are farther apart than pixels.
    """
    if is_straight(affine):
        return (0, 1, 2)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    unit = affine[:3, :3] / spacing
    cosines = np.abs(unit.T @ unit) - np.eye(3)
    one, other = divmod(int(cosines.argmax()), 3)
    # The stored first axis wins where both are equally fine: it counts slices in most files.
    first = min((one, other), key=lambda axis: (-round(float(spacing[axis]), 3), axis))
    rest = [axis for axis in range(3) if axis != first]
    return (first, rest[0], rest[1])


def distinct(gaps: NDArray[np.float64]) -> tuple[float, ...]:
    """Distinct gaps rounded to 0.01 mm, in rising order."""
    return tuple(sorted({round(float(gap), 2) for gap in gaps}))


def gap_notes(stack: Stack, *, fill_gaps: bool = False) -> list[str]:
    """Sentences on uneven gaps: slices that seem to be missing, or several distances in one stack.

    Args:
        stack: where the slices lie.
        fill_gaps: whether holes are filled.
    """
    gaps, usual = stack.gaps_mm, stack.usual_gaps_mm
    notes = [_hole_note(stack, int(at), fill_gaps=fill_gaps) for at in stack.holes]
    regular = {round(float(u), 1) for gap, u in zip(gaps, usual, strict=True) if abs(gap - u) <= _SAME_GAP_MM}
    if len(regular) > 1:
        notes.append(f"Several slice distances in one stack: {', '.join(f'{t:g}' for t in sorted(regular))} mm.")
    return notes


def _hole_note(stack: Stack, at: int, *, fill_gaps: bool) -> str:
    gap, usual = float(stack.gaps_mm[at]), float(stack.usual_gaps_mm[at])
    where = (
        f"a gap of {gap:.2f} mm above slice {at + 1} of {len(stack.positions_mm)}"
        f" (counted from the lowest) where slices are {usual:.2f} mm apart"
    )
    count = max(1, round(gap / usual) - 1)
    if fill_gaps:
        return f"{count} missing slice(s) filled by linear interpolation: {where}."
    return f"{count} slice(s) {HOLE_MARK}: {where}. The hole is left empty (-1024 HU)."
