"""Lesions: infarcts, tumours and fractures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headctssl.ingest.phantom.fields import Array, Ranges, Waves, coverage, sheet_coverage
from headctssl.ingest.phantom.findings import Blob, Local, Side, side_share
from headctssl.ingest.phantom.lump import Lump
from headctssl.ingest.phantom.shapes import Part, Triple, cube

__all__ = ["Fracture", "Infarct", "RodFracture", "Tumour"]


@dataclass(frozen=True)
class Infarct:
    """Brain without blood supply: grey and white matter of one density, CSF spaces as they are."""

    side: Side
    volume_ml: float
    hu: float
    blob: Blob
    level: float
    blur_mm: float  # softness of the edge
    gap_mm: float
    kind: str = "Infarct"

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        return self.blob.box(self.level + self.blur_mm)

    def grow(self, local: Local) -> Array:
        """Distance from the centre of the territory in mm, deformed."""
        return self.blob.grow(local.position)

    def allowed(self, local: Local, width: float) -> Array:
        """Share of each place that is brain on this side."""
        inside = coverage(local.surface + np.float32(self.gap_mm), width)
        inside *= 1 - coverage(local.ventricle, width)
        inside *= 1 - local.subarachnoid
        inside *= side_share(local, self.side, width)
        return inside

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is infarcted."""
        edge = max(width, self.blur_mm)
        return coverage(self.grow(local) - np.float32(self.level), edge) * self.allowed(local, width)


@dataclass(frozen=True)
class Tumour(Lump):
    """A mass of its own density: with a core that died and oedema in the brain, or on the dura and of one density."""

    core_level: float  # the dead core reaches this far; 0: none
    core_hu: float
    dural: bool
    kind: str = "Tumor"

    @property
    def depth_mm(self) -> float:
        """How far it stays below the surface that the brain lies under: one on the dura reaches up to it."""
        return 0.0 if self.dural else super().depth_mm

    def core(self, local: Local, width: float) -> Array:
        """Share of each place that is dead core."""
        return coverage(self.grow(local) - np.float32(self.core_level), max(width, 2.0)) * self.allowed(local, width)


@dataclass(frozen=True)
class Fracture:
    """A linear gap through the vault."""

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
    calvarial: bool = True

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        return cube(self.centre, self.length_mm / 2 + 6)

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


@dataclass(frozen=True)
class RodFracture:
    """A gap across a bone outside the vault that is a rod: cheek bone, petrous bone, clivus."""

    side: Side
    volume_ml: float  # cross-section of the rod x width
    hu: float
    part: Part
    centre: Triple  # on the axis of the rod
    normal: Triple  # unit vector over the gap
    width_mm: float
    wiggle: Waves
    kind: str = "Fracture"
    calvarial: bool = False

    @property
    def ranges(self) -> Ranges:
        """Bounding box."""
        return cube(self.centre, 1.6 * max(self.part.radii) + self.width_mm + 2)

    def cover(self, local: Local, width: float) -> Array:
        """Share of each place that is gap."""
        offsets = [p - np.float32(c) for p, c in zip(local.position, self.centre, strict=True)]
        s = np.asarray(sum(o * np.float32(a) for o, a in zip(offsets, self.normal, strict=True)))
        out = sheet_coverage(np.abs(s + self.wiggle.at(local.position)), 0.5 * self.width_mm, width)
        out *= coverage(self.part.distance(local.position), width)
        return np.asarray(out, np.float32)
