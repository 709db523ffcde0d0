"""Bleeds: blood in the brain, in the ventricles, in the CSF spaces and between brain and skull."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from headctssl.ingest.phantom.fields import Array, Ranges, Waves, coverage
from headctssl.ingest.phantom.findings import Local, Side, side_share, side_sign
from headctssl.ingest.phantom.lump import Lump
from headctssl.ingest.phantom.shapes import Triple, cube

__all__ = ["Epidural", "Intraparenchymal", "Intraventricular", "Subarachnoid", "Subdural", "UnderSkull"]


@dataclass(frozen=True)
class Intraparenchymal(Lump):
    """A bleed in the brain."""

    kind: str = "IPH"


@dataclass(frozen=True)
class UnderSkull(ABC):
    """Blood under the inner table of one side, as thick as its profile says, which pushes the brain inwards."""

    side: Side
    volume_ml: float
    hu: float
    thickness: float

    @abstractmethod
    def profile(self, local: Local) -> Array:
        """Relative thickness: 1 in the middle, 0 at the edge, negative beyond."""

    def grow(self, local: Local) -> Array:
        """The thickness that is needed to reach a place."""
        profile = self.profile(local)
        return np.where(profile > 0.02, np.maximum(-local.inner, 0) / np.maximum(profile, 0.02), np.float32(1e6))

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is inside the skull on this side."""
        return coverage(local.inner, width) * self._aside(local, 2.0, width)

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(-local.inner - self.depth(local), width) * self.allowed(local, width)

    def depth(self, local: Local) -> Array:
        """How far it reaches under the inner table in mm; 0 or less where there is none."""
        return np.asarray(np.float32(self.thickness) * self.profile(local), np.float32)

    def pushed_mm(self, local: Local) -> Array:
        """How far it pushes the surface of the brain inwards."""
        return np.asarray(np.clip(self.depth(local), 0, None) * self.pushes(local), np.float32)

    def pushes(self, local: Local) -> Array:
        """Share of its depth by which it pushes: all on its side, none towards the midline."""
        return self._aside(local, -1.0, 6.0)

    def _aside(self, local: Local, over_mm: float, width: float) -> Array:
        """Share of each place that is on this side of the skull, reaching `over_mm` beyond the middle."""
        return coverage(np.float32(over_mm) - local.position[2] * np.float32(side_sign(self.side)), width)


@dataclass(frozen=True)
class Subdural(UnderSkull):
    """A bleed between dura and brain: a crescent along the inner table of one side."""

    centre: tuple[float, float]  # z, y
    extent: tuple[float, float]  # half extents in z, y
    floor_mm: float  # nothing below this z
    bounds: Ranges
    chronic: bool = False
    settled_hu: float = 0.0  # how much denser the lowest part is: cells sink to the back
    kind: str = "SDH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        return self.bounds

    def profile(self, local: Local) -> Array:
        """Relative thickness: 1 in the middle, 0 at the edge, negative beyond."""
        z, y, _ = local.position
        q = ((z - np.float32(self.centre[0])) / self.extent[0]) ** 2
        return np.asarray(1 - q - ((y - np.float32(self.centre[1])) / self.extent[1]) ** 2, np.float32)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is under the vault on this side."""
        return super().allowed(local, width) * self._above(local, width)

    def pushes(self, local: Local) -> Array:
        """As that of any blood here, and none below its floor."""
        return super().pushes(local) * self._above(local, 4.0)

    def _above(self, local: Local, width: float) -> Array:
        return coverage(np.float32(self.floor_mm) - local.position[0], width)


@dataclass(frozen=True)
class Epidural(UnderSkull):
    """A bleed between skull and dura: a lens under one place of the vault."""

    centre: Triple  # on the inner table
    radius_mm: float
    kind: str = "EDH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        return cube(self.centre, self.radius_mm + self.thickness + 3)

    def profile(self, local: Local) -> Array:
        """Relative thickness: 1 in the middle, 0 at the edge, negative beyond.

        The distance from the centre is taken along the skull: what lies straight under a place is as far as it.
        """
        square = sum((p - np.float32(c)) ** 2 for p, c in zip(local.position, self.centre, strict=True))
        along = np.maximum(square - local.inner**2, 0)
        return np.asarray(1 - along * np.float32(1 / self.radius_mm**2), np.float32)


@dataclass(frozen=True)
class Intraventricular:
    """Blood in the lateral ventricles: a level in the dependent part, or a cast."""

    side: Side
    volume_ml: float
    hu: float
    source: Triple  # a cast grows from here
    cast: bool
    lumps: Waves
    level: float
    bounds: Ranges
    kind: str = "IVH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        return self.bounds

    def grow(self, local: Local) -> Array:
        """Order in which the ventricle is filled, in mm."""
        z, y, _ = local.position
        if not self.cast:
            return np.asarray(self.lumps.at(local.position) - y, np.float32)
        square = (z - np.float32(self.source[0])) ** 2 + (y - np.float32(self.source[1])) ** 2
        square = square + (np.abs(local.brain[2]) - np.float32(self.source[2])) ** 2
        return np.asarray(np.sqrt(square) + self.lumps.at(local.position), np.float32)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is ventricle on this side."""
        inside = coverage(local.ventricle, width)
        inside *= coverage(local.inner + np.float32(1), width)
        inside *= side_share(local, self.side, width, 1.0)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(self.grow(local) - np.float32(self.level), width) * self.allowed(local, width)


@dataclass(frozen=True)
class Subarachnoid:
    """Blood in the CSF of cisterns and sulci, spreading from one place."""

    side: Side  # both: from the basal cisterns
    volume_ml: float
    hu: float
    source: Triple
    lumps: Waves
    level: float
    bounds: Ranges
    kind: str = "SAH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        r = self.level + 3 * self.lumps.amplitude + 2
        z, y, x = ((max(low, c - r), min(high, c + r)) for (low, high), c in zip(self.bounds, self.source, strict=True))
        return (z, y, x)

    def grow(self, local: Local) -> Array:
        """Order in which the spaces are filled, in mm from the source."""
        square = sum((p - np.float32(c)) ** 2 for p, c in zip(local.position, self.source, strict=True))
        return np.asarray(np.sqrt(square) + self.lumps.at(local.position), np.float32)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is CSF outside the ventricles, on this side."""
        inside = local.subarachnoid.copy()
        if self.side != "both":
            inside *= side_share(local, self.side, width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(self.grow(local) - np.float32(self.level), max(width, 4.0)) * self.allowed(local, width)
