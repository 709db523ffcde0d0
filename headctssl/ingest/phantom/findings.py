"""Findings: what may be wrong with a head, what a finding may ask of a place, and the values of the segmentation.

Every finding is a set with an exact extent: bleeds, infarcts and tumours are the places where a growth function is
below a level, and the level is solved so that the set has the volume that was drawn. All lengths in mm, volumes in mL,
head coordinates (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from headctssl.ingest.phantom.fields import Array, Position, Ranges, Waves, coverage
from headctssl.ingest.phantom.shapes import Triple, cube

__all__ = ["BLEEDS", "FINDING_IDS", "Blob", "Finding", "Local", "Side", "Swelling", "side_share", "side_sign"]

Side = Literal["left", "right", "both"]
FINDING_IDS: dict[str, int] = {
    "IPH": 1,
    "SDH": 2,
    "IVH": 3,
    "Fracture": 4,
    "EDH": 5,
    "SAH": 6,
    "Infarct": 7,
    "Tumor": 8,
}
"""Values of the segmentation."""

BLEEDS = ("IPH", "SDH", "IVH", "EDH", "SAH")
"""Findings that are blood inside the skull."""


@dataclass(frozen=True)
class Local:
    """What a finding may ask of a place: all arrays have one shape."""

    position: Position  # head coordinates
    brain: Position  # the brain's own coordinates, before it was displaced
    inner: Array  # signed distance to the inner table
    surface: Array  # the same to the surface that the brain lies under: lower where blood under the skull pushes it
    outer: Array  # signed distance to the outer table
    ventricle: Array  # signed distance to the lateral ventricles, displaced
    subarachnoid: Array  # share that is CSF between brain and skull, in sulci and cisterns


class Finding(Protocol):
    """One finding. Its `kind` is a name of `FINDING_IDS`."""

    @property
    def kind(self) -> str:
        """A name of `FINDING_IDS`."""

    @property
    def side(self) -> Side:
        """Side of the patient."""

    @property
    def volume_ml(self) -> float:
        """How much of it there is."""

    @property
    def hu(self) -> float:
        """Its density."""

    @property
    def ranges(self) -> Ranges:
        """A box in head coordinates that holds it, with whatever it does to its surroundings."""

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that it takes."""


def side_sign(side: Side) -> float:
    """Sign of x on one side: it grows to the left of the patient."""
    return 1.0 if side == "left" else -1.0


def side_share(local: Local, side: Side, width: float, over_mm: float = 2.0) -> Array:
    """Share of each place that is on a side of the brain, reaching `over_mm` beyond the midline."""
    x = np.abs(local.brain[2]) if side == "both" else local.brain[2] * np.float32(side_sign(side))
    return coverage(np.asarray(np.float32(over_mm) - x, np.float32), width)


@dataclass(frozen=True)
class Swelling:
    """A scalp haematoma: the skin is raised around a point of the skull."""

    centre: Triple
    height_mm: float
    spread_mm: float

    def at(self, position: Position) -> Array:
        """How far the skin is raised in mm."""
        square = sum((p - np.float32(c)) ** 2 for p, c in zip(position, self.centre, strict=True))
        return np.asarray(self.height_mm * np.exp(square * np.float32(-0.5 / self.spread_mm**2)), np.float32)


@dataclass(frozen=True)
class Blob:
    """A lumpy ellipsoid as a growth function."""

    centre: Triple
    axes: tuple[Triple, Triple, Triple]  # rows: unit vector / relative half axis
    lumps: Waves

    def grow(self, position: Position) -> Array:
        """Distance from the centre in mm, deformed."""
        offsets = [p - np.float32(c) for p, c in zip(position, self.centre, strict=True)]
        square = sum((sum(o * np.float32(a) for o, a in zip(offsets, row, strict=True))) ** 2 for row in self.axes)
        return np.asarray(np.sqrt(square) + self.lumps.at(position), np.float32)

    def box(self, radius_mm: float) -> Ranges:
        """A box that holds every place that grows up to a radius."""
        stretch = 1 / min(np.linalg.norm(row) for row in self.axes)
        r = (radius_mm + 2.5 * self.lumps.amplitude) * float(stretch) + 2
        return cube(self.centre, r)
