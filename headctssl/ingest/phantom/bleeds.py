"""Bleeds: blood in the brain, in the ventricles, in the CSF spaces and between brain and skull."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headctssl.ingest.phantom.fields import Array, Ranges, Waves, coverage
from headctssl.ingest.phantom.findings import Blob, Local, Side, side_share
from headctssl.ingest.phantom.shapes import Triple

__all__ = ["Epidural", "Intraparenchymal", "Intraventricular", "Subarachnoid", "Subdural"]


@dataclass(frozen=True)
class Intraparenchymal:
    """A bleed in the brain: a lumpy ellipsoid with a rim of oedema."""

    side: Side
    volume_ml: float
    hu: float
    blob: Blob
    level: float
    oedema_mm: float
    gap_mm: float
    kind: str = "IPH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box with the oedema."""
        return self.blob.box(self.level + 1.15 * self.oedema_mm)

    def grow(self, local: Local) -> Array:
        """Distance from the centre in mm, deformed."""
        return self.blob.grow(local.position)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is brain on this side."""
        inside = coverage(local.surface + np.float32(self.gap_mm + 1), width)
        inside *= 1 - coverage(local.ventricle - np.float32(0.7), width)
        inside *= side_share(local, self.side, width)
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
    """A bleed between dura and brain: a crescent along the inner table of one side."""

    side: Side
    volume_ml: float
    hu: float
    centre: tuple[float, float]  # z, y
    extent: tuple[float, float]  # half extents in z, y
    thickness: float
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

    def grow(self, local: Local) -> Array:
        """The thickness that is needed to reach a place."""
        profile = self.profile(local)
        return np.where(profile > 0.02, np.maximum(-local.inner, 0) / np.maximum(profile, 0.02), np.float32(1e6))

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is under the vault on this side."""
        inside = coverage(local.inner, width)
        sign = np.float32(1.0 if self.side == "left" else -1.0)
        inside *= coverage(np.float32(2) - local.position[2] * sign, width)
        inside *= coverage(np.float32(self.floor_mm) - local.position[0], width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(-local.inner - self.depth(local), width) * self.allowed(local, width)

    def depth(self, local: Local) -> Array:
        """How far it reaches under the inner table in mm; 0 or less where there is none."""
        return np.asarray(np.float32(self.thickness) * self.profile(local), np.float32)

    def pushed_mm(self, local: Local) -> Array:
        """How far it pushes the surface of the brain inwards."""
        sign = np.float32(1.0 if self.side == "left" else -1.0)
        aside = coverage(np.float32(-1) - local.position[2] * sign, 6.0)
        aside *= coverage(np.float32(self.floor_mm) - local.position[0], 4.0)
        return np.asarray(np.clip(self.depth(local), 0, None) * aside, np.float32)


@dataclass(frozen=True)
class Epidural:
    """A bleed between skull and dura: a lens under one place of the vault."""

    side: Side
    volume_ml: float
    hu: float
    centre: Triple  # on the inner table
    radius_mm: float
    thickness: float
    kind: str = "EDH"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        r = self.radius_mm + self.thickness + 3
        z, y, x = ((c - r, c + r) for c in self.centre)
        return (z, y, x)

    def profile(self, local: Local) -> Array:
        """Relative thickness: 1 in the middle, 0 at the edge, negative beyond.

        The distance from the centre is taken along the skull: what lies straight under a place is as far as it.
        """
        square = sum((p - np.float32(c)) ** 2 for p, c in zip(local.position, self.centre, strict=True))
        along = np.maximum(square - local.inner**2, 0)
        return np.asarray(1 - along * np.float32(1 / self.radius_mm**2), np.float32)

    def grow(self, local: Local) -> Array:
        """The thickness that is needed to reach a place."""
        profile = self.profile(local)
        return np.where(profile > 0.02, np.maximum(-local.inner, 0) / np.maximum(profile, 0.02), np.float32(1e6))

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is inside the skull on this side."""
        sign = np.float32(1.0 if self.side == "left" else -1.0)
        return coverage(local.inner, width) * coverage(np.float32(2) - local.position[2] * sign, width)

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is blood."""
        return coverage(-local.inner - self.depth(local), width) * self.allowed(local, width)

    def depth(self, local: Local) -> Array:
        """How far it reaches under the inner table in mm; 0 or less where there is none."""
        return np.asarray(np.float32(self.thickness) * self.profile(local), np.float32)

    def pushed_mm(self, local: Local) -> Array:
        """How far it pushes the surface of the brain inwards."""
        sign = np.float32(1.0 if self.side == "left" else -1.0)
        aside = coverage(np.float32(-1) - local.position[2] * sign, 6.0)
        return np.asarray(np.clip(self.depth(local), 0, None) * aside, np.float32)


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
