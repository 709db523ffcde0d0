"""DICOM passes: how often the slices of a stack run through the body, by their acquisition numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGAIN_MARK", "Pass", "pass_notes", "passes_of"]

AGAIN_MARK = "show the same part of the body"
"""Stands in the note on a stack of which a part was scanned more than once."""


@dataclass(frozen=True)
class Pass:
    """Slices of acquisitions that follow each other through the body, each going on where none of them was before."""

    numbers: tuple[int, ...]  # of its acquisitions, ascending
    slices: tuple[int, ...]  # their positions in the stack
    low: float  # mm along the normal
    high: float

    @property
    def name(self) -> str:
        """Its first and its last acquisition number."""
        return f"{self.numbers[0]}" if len(self.numbers) == 1 else f"{self.numbers[0]} to {self.numbers[-1]}"

    def depth_mm(self, other: Pass) -> float:
        """How far one of the two reaches into the other; negative where there is a gap between them."""
        return min(self.high - other.low, other.high - self.low)

    def shared_mm(self, other: Pass) -> float:
        """How much of the body both show; negative where there is a gap between them."""
        return min(self.high, other.high) - max(self.low, other.low)


def passes_of(numbers: Sequence[int | None], heights_mm: NDArray[np.float64]) -> list[Pass]:
    """Take acquisitions in the order of their numbers; one that goes back into what was scanned begins a new pass.

    One number for each slice or each turn of the gantry, and a vertex that is scanned before the base, give one pass.
    Two runs through the head give two, also where one of them has a number for each of its slices.

    Args:
        numbers: AcquisitionNumber of every slice, None where it is not stated.
        heights_mm: of the slices along their normal.

    Returns:
        The passes in the order of time; none where a slice has no number, which says nothing.
    """
    if None in numbers:
        return []
    members: dict[int, list[int]] = {}
    for k, number in enumerate(numbers):
        assert number is not None
        members.setdefault(number, []).append(k)
    found: list[Pass] = []
    for number in sorted(members):
        slices = tuple(members[number])
        heights = heights_mm[list(slices)]
        one = Pass((number,), slices, float(heights.min()), float(heights.max()))
        if found and found[-1].shared_mm(one) < 0:
            one = _joined(found.pop(), one)
        found.append(one)
    return found


def _joined(one: Pass, other: Pass) -> Pass:
    low, high = min(one.low, other.low), max(one.high, other.high)
    return Pass((*one.numbers, *other.numbers), (*one.slices, *other.slices), low, high)


def pass_notes(numbers: Sequence[int | None], heights_mm: NDArray[np.float64]) -> list[str]:
    """A sentence on a stack of which a part was scanned more than once; [] for others.

    Passes that reach into each other by no more than the usual distance of slices follow each other: the last slice
    of the base of a head often lies above the first one of its vertex.

    Args:
        numbers: AcquisitionNumber of every slice, None where it is not stated.
        heights_mm: of the slices along their normal, at least two different ones.
    """
    usual = float(np.median(np.diff(np.unique(heights_mm))))
    passes = passes_of(numbers, heights_mm)
    again = [(first, other) for k, other in enumerate(passes) for first in passes[:k] if first.depth_mm(other) > usual]
    if not again:
        return []
    first, other = again[0]
    more = f" (and {len(again) - 1} more pairs)" if len(again) > 1 else ""
    return [
        f"Acquisitions {first.name} and {other.name}{more} {AGAIN_MARK} over {first.shared_mm(other):.0f} mm:"
        " the head may have moved in between."
    ]
