"""Shapes: the tissues of the phantom and the small pieces it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from headctssl.ingest.phantom.fields import Array, Position, Ranges

__all__ = ["TISSUES", "Part", "Triple", "cube", "ellipsoid_distance", "rod_distance"]

Triple = tuple[float, float, float]

TISSUES: dict[str, int] = {
    "air": 0,
    "scalp": 1,
    "bone": 2,
    "diploe": 3,
    "csf": 4,
    "cortex": 5,
    "white_matter": 6,
    "ventricle": 7,
    "falx": 8,
    "deep_grey": 9,
    "orbit_fat": 10,
    "globe": 11,
    "sinus_air": 12,
    "soft_tissue": 13,
    "fat": 14,
    "calcification": 15,
    "holder": 16,
    "brain_stem": 17,
    "venous_sinus": 18,
    "blood": 19,
    "oedema": 20,
    "cerebellum": 21,
    "tentorium": 22,
    "vessel": 23,
    "tumour": 24,
    "infarct": 25,
}
"""Tissue ids of `PhantomCase.tissues`."""


def cube(centre: Triple, r: float) -> Ranges:
    """The cube that reaches `r` mm from its centre."""
    z, y, x = ((c - r, c + r) for c in centre)
    return (z, y, x)


@dataclass(frozen=True)
class Part:
    """One small piece: an ellipsoid or a rod of one density."""

    kind: Literal["ellipsoid", "rod"]
    start: Triple  # centre of the ellipsoid, or one end of the rod
    end: Triple  # half axes of the ellipsoid, or the other end of the rod
    radii: tuple[float, float]  # rod only: radius at start and end
    hu: float
    tissue: str
    front_mm: float = -1e3  # nothing in front of this y
    texture: bool = False  # mixed with air by the texture noise: mastoid cells, ethmoid

    @property
    def ranges(self) -> Ranges:
        """Bounding box in head coordinates."""
        a, b = np.array(self.start), np.array(self.end)
        if self.kind == "ellipsoid":
            low, high = a - b, a + b
        else:
            r = max(self.radii)
            low, high = np.minimum(a, b) - r, np.maximum(a, b) + r
        low[1] = max(low[1], self.front_mm)
        z, y, x = ((float(p) - 1.5, float(q) + 1.5) for p, q in zip(low, high, strict=True))
        return (z, y, x)

    def distance(self, position: Position) -> Array:
        """Signed distance in mm, first order near the surface."""
        if self.kind == "ellipsoid":
            d = ellipsoid_distance(position, self.start, self.end)
        else:
            d = rod_distance(position, self.start, self.end, self.radii)
        return d if self.front_mm < -500 else np.maximum(d, np.float32(self.front_mm) - position[1])


def ellipsoid_distance(position: Position, centre: Triple, radii: Triple) -> Array:
    """Signed distance to an ellipsoid in mm, first order near its surface."""
    rho2: Array | float = 0.0
    grad2: Array | float = 0.0
    for p, c, r in zip(position, centre, radii, strict=True):
        q = (p - np.float32(c)) * np.float32(1 / r)
        q = q * q
        rho2 = rho2 + q
        grad2 = grad2 + q * np.float32(1 / (r * r))
    rho = np.sqrt(rho2)
    return np.asarray(rho * (rho - 1) / np.sqrt(np.maximum(grad2, np.float32(1e-9))), np.float32)


def rod_distance(position: Position, a: Triple, b: Triple, radii: tuple[float, float]) -> Array:
    """Signed distance in mm to a rod from `a` to `b` with round ends and a radius at each end."""
    axis = np.array(b) - np.array(a)
    unit = axis / float(axis @ axis)
    offsets = [p - np.float32(c) for p, c in zip(position, a, strict=True)]
    t = sum(o * np.float32(u) for o, u in zip(offsets, unit, strict=True))
    t = np.clip(t, np.float32(0), np.float32(1))
    square = sum((o - t * np.float32(d)) ** 2 for o, d in zip(offsets, axis, strict=True))
    return np.asarray(np.sqrt(square) - (np.float32(radii[0]) + t * np.float32(radii[1] - radii[0])), np.float32)
