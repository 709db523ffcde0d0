"""Warp: where brain tissue came from when something takes up room in the head. The skull stays where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headctssl.ingest.phantom.fields import Array, Position, Ranges
from headctssl.ingest.phantom.shapes import Triple

__all__ = ["Mass", "Shift", "Warp"]


@dataclass(frozen=True)
class Shift:
    """A smooth sideways displacement of the brain."""

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
class Mass:
    """Tissue pushed away from a point on all sides, as by a ball that grows there."""

    centre: Triple
    radius_mm: float  # of the ball whose volume is made room for
    reach_mm: float  # the push fades over this distance

    def push_mm(self, distance_mm: Array) -> Array:
        """How far the tissue found at a distance from the centre was pushed, in mm.

        A ball of radius R keeps the volume of what it pushes: r0 = (r^3 - R^3)^(1/3). Rounded off at the ball, so that
        tissue is squeezed there and never folded, and faded out.
        """
        u = (np.asarray(distance_mm, np.float64) / self.radius_mm) ** 3
        came_from = self.radius_mm * np.clip(u + np.expm1(-u), 0, None) ** (1 / 3)
        fade = np.exp(-((distance_mm * np.float32(1 / self.reach_mm)) ** 2))
        return np.asarray((distance_mm - came_from) * fade, np.float32)

    def at(self, position: Position) -> Position:
        """Displacement (z, y, x) in mm of the tissue that is found at `position`."""
        offsets = [p - np.float32(c) for p, c in zip(position, self.centre, strict=True)]
        distance = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2)
        factor = self.push_mm(distance) / np.maximum(distance, np.float32(1e-3))
        return (factor * offsets[0], factor * offsets[1], factor * offsets[2])


@dataclass(frozen=True)
class Warp:
    """All displacements of a brain."""

    shift: Shift | None = None
    masses: tuple[Mass, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether anything is displaced."""
        return self.shift is not None or bool(self.masses)

    @property
    def most_mm(self) -> Triple:
        """No tissue is displaced further than this along (z, y, x)."""
        around = sum(0.45 * mass.radius_mm for mass in self.masses)
        sideways = 0.0 if self.shift is None else 1.2 * abs(self.shift.mm)
        return (around, around, sideways + around)

    def reached(self, ranges: Ranges) -> Ranges:
        """A box that holds all tissue of a box of the brain's own coordinates where it is found."""
        z, y, x = ((low - most, high + most) for (low, high), most in zip(ranges, self.most_mm, strict=True))
        return (z, y, x)

    def back(self, position: Position) -> Position:
        """The brain's own coordinates of the tissue that is found at `position`."""
        z, y, x = position
        for mass in self.masses:
            dz, dy, dx = mass.at(position)
            z, y, x = z - dz, y - dy, x - dx
        if self.shift is not None:
            x = x - self.shift.at((z, y, x))
        return (z, y, x)

    def midline_mm(self, z: float, y: float) -> float:
        """Where the midline of the brain is found, in mm towards the left.

        Args:
            z: level in mm.
            y: depth in mm.
        """
        line = np.linspace(-30, 30, 2401, dtype=np.float32)
        own = self.back((np.full_like(line, z), np.full_like(line, y), line))[2]
        return float(np.interp(0.0, own, line)) if self.moves else 0.0
