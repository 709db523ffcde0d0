"""Findings: bleeds, fractures and midline shift with a size, a side and an exact extent.

Every bleed is the set where a growth function is below a level; the level is solved so that the
set has the volume that was drawn. All lengths in mm, volumes in mL, head coordinates (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from headctssl.ingest.phantom.fields import Array, Position, Ranges, Waves, coverage, sheet_coverage
from headctssl.ingest.phantom.shapes import Triple

__all__ = [
    "FINDING_IDS",
    "Finding",
    "Fracture",
    "Intraparenchymal",
    "Intraventricular",
    "Local",
    "Shift",
    "Side",
    "Subdural",
    "Swelling",
]

Side = Literal["left", "right", "both"]
FINDING_IDS: dict[str, int] = {"IPH": 1, "SDH": 2, "IVH": 3, "Fracture": 4}
"""Values of the segmentation."""

_SIGN: dict[str, float] = {"left": 1.0, "right": -1.0}


@dataclass(frozen=True)
class Local:
    """What a finding may ask of a place: all arrays have one shape."""

    position: Position  # head coordinates
    brain_x: Array  # x in the brain's own coordinates, before the shift
    inner: Array  # signed distance to the inner table
    outer: Array  # signed distance to the outer table
    ventricle: Array  # signed distance to the lateral ventricles, shifted


@dataclass(frozen=True)
class Shift:
    """Midline shift: a smooth sideways displacement of the brain."""

    mm: float  # at the septum pellucidum, positive towards the left
    centre: tuple[float, float]  # z, y of the largest displacement
    spread: tuple[float, float]  # z, y
    reach: float  # half width in x that takes part

    def at(self, position: Position) -> Array:
        """Displacement in mm towards the left of the tissue that is found at `position`."""
        z, y, x = position
        far = np.exp(
            -(((z - np.float32(self.centre[0])) / self.spread[0]) ** 2)
            - ((y - np.float32(self.centre[1])) / self.spread[1]) ** 2
        )
        across = np.clip(1 - (x * np.float32(1 / self.reach)) ** 2, 0, None) ** 2
        # Divided by its own value at the shifted midline, so that the midline is found at `mm` exactly.
        return np.asarray(self.mm / (1 - (self.mm / self.reach) ** 2) ** 2 * far * across, np.float32)


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
class Intraparenchymal:
    """A bleed in the brain: a lumpy ellipsoid with a rim of oedema."""

    side: Side
    volume_ml: float
    hu: float
    centre: Triple
    axes: tuple[Triple, Triple, Triple]  # rows: unit vector / relative half axis
    lumps: Waves
    level: float
    oedema_mm: float
    gap_mm: float
    kind: str = "IPH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box with the oedema."""
        r = self.level * 1.9 + self.oedema_mm + 2
        z, y, x = ((c - r, c + r) for c in self.centre)
        return (z, y, x)

    def grow(self, local: Local) -> Array:
        """Distance from the centre in mm, deformed."""
        offsets = [p - np.float32(c) for p, c in zip(local.position, self.centre, strict=True)]
        square = sum((sum(o * np.float32(a) for o, a in zip(offsets, row, strict=True))) ** 2 for row in self.axes)
        return np.asarray(np.sqrt(square) + self.lumps.at(local.position), np.float32)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is brain on this side."""
        inside = coverage(local.inner + np.float32(self.gap_mm + 1), width)
        inside *= 1 - coverage(local.ventricle - np.float32(0.7), width)
        inside *= coverage(np.float32(2) - local.brain_x * np.float32(_SIGN[self.side]), width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(self.grow(local) - np.float32(self.level), width) * self.allowed(local, width)

    def oedema(self, local: Local, width: float) -> Array:
        """Weight of oedema around the blood in [0, 1]."""
        far = (self.grow(local) - np.float32(self.level)) * np.float32(1 / max(self.oedema_mm, 0.5))
        return np.asarray(np.clip(1.15 - far, 0, 0.85) * self.allowed(local, width), np.float32)


@dataclass(frozen=True)
class Subdural:
    """A bleed between skull and brain: a crescent along the inner table."""

    side: Side
    volume_ml: float
    hu: float
    centre: tuple[float, float]  # z, y
    extent: tuple[float, float]  # half extents in z, y
    thickness: float
    floor_mm: float  # nothing below this z
    bounds: Ranges
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

    def grow(self, local: Local) -> Array:
        """The thickness that is needed to reach a place."""
        profile = self.profile(local)
        return np.where(profile > 0.02, np.maximum(-local.inner, 0) / np.maximum(profile, 0.02), np.float32(1e6))

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is under the vault on this side."""
        inside = coverage(local.inner, width)
        inside *= coverage(np.float32(2) - local.position[2] * np.float32(_SIGN[self.side]), width)
        inside *= coverage(np.float32(self.floor_mm) - local.position[0], width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        depth = -local.inner - np.float32(self.thickness) * self.profile(local)
        return coverage(depth, width) * self.allowed(local, width)


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
        square = square + (np.abs(local.brain_x) - np.float32(self.source[2])) ** 2
        return np.asarray(np.sqrt(square) + self.lumps.at(local.position), np.float32)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is ventricle on this side."""
        inside = coverage(local.ventricle, width)
        inside *= coverage(local.inner + np.float32(1), width)
        side = local.brain_x * np.float32(_SIGN[self.side]) if self.side != "both" else np.abs(local.brain_x)
        inside *= coverage(np.float32(1) - side, width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(self.grow(local) - np.float32(self.level), width) * self.allowed(local, width)


@dataclass(frozen=True)
class Fracture:
    """A linear gap through the skull."""

    side: Side
    volume_ml: float  # length x mean width x mean thickness
    hu: float
    centre: Triple  # on the outer table
    along: Triple  # unit vector of the line
    across: Triple  # unit vector over the gap
    length_mm: float
    width_mm: float
    wiggle: Waves
    kind: str = "Fracture"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        r = self.length_mm / 2 + 6
        z, y, x = ((c - r, c + r) for c in self.centre)
        return (z, y, x)

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is gap."""
        offsets = [p - np.float32(c) for p, c in zip(local.position, self.centre, strict=True)]
        t = np.asarray(sum(o * np.float32(a) for o, a in zip(offsets, self.along, strict=True)))
        s = np.asarray(sum(o * np.float32(a) for o, a in zip(offsets, self.across, strict=True)))
        half = 0.5 * self.width_mm * np.clip(1 - 0.6 * (t * np.float32(2 / self.length_mm)) ** 2, 0, 1)
        out = sheet_coverage(np.abs(s + self.wiggle.at(local.position)), np.asarray(half, np.float32), width)
        out *= coverage(np.abs(t) - np.float32(self.length_mm / 2), width)
        out *= coverage(local.outer, width)
        out *= coverage(-local.inner, width)
        return out


Finding = Intraparenchymal | Subdural | Intraventricular | Fracture
