"""Lump: what a bleed in the brain and a tumour have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headctssl.ingest.phantom.fields import Array, Ranges, coverage
from headctssl.ingest.phantom.findings import Blob, Local, Side, side_share

__all__ = ["Lump"]


@dataclass(frozen=True)
class Lump:
    """A lumpy ellipsoid in the brain of one side, with a rim of oedema."""

    side: Side
    volume_ml: float
    hu: float
    blob: Blob
    level: float
    oedema_mm: float
    gap_mm: float

    @property
    def ranges(self) -> Ranges:
        """Bounding box with the oedema."""
        return self.blob.box(self.level + 1.15 * self.oedema_mm)

    @property
    def depth_mm(self) -> float:
        """How far it stays below the surface that the brain lies under."""
        return self.gap_mm + 1

    def grow(self, local: Local) -> Array:
        """Distance from the centre in mm, deformed."""
        return self.blob.grow(local.position)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place where it may grow."""
        inside = coverage(local.surface + np.float32(self.depth_mm), width)
        inside *= 1 - coverage(local.ventricle - np.float32(0.7), width)
        inside *= side_share(local, self.side, width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that it takes."""
        return coverage(self.grow(local) - np.float32(self.level), width) * self.allowed(local, width)

    def oedema(self, local: Local, width: float) -> Array:
        """Weight of oedema in the brain around it in [0, 1]."""
        far = (self.grow(local) - np.float32(self.level)) * np.float32(1 / max(self.oedema_mm, 0.5))
        weight = np.clip(1.15 - far, 0, 0.85) * self.allowed(local, width) * (1 - local.subarachnoid)
        return np.asarray(weight, np.float32)
