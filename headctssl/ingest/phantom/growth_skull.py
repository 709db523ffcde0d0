"""Growth in the skull: fractures of the vault and of the bones below it."""

from __future__ import annotations

import numpy as np

from headctssl.ingest.phantom.fields import Waves
from headctssl.ingest.phantom.findings import Side, side_sign
from headctssl.ingest.phantom.growth import outwards, ray_point, triple, unit
from headctssl.ingest.phantom.head_shape import HeadShape
from headctssl.ingest.phantom.lesions import Fracture, RodFracture
from headctssl.ingest.phantom.shapes import Triple

__all__ = ["make_fracture", "make_rod_fracture", "surface_point"]


def surface_point(head: HeadShape, direction: Triple) -> Triple:
    """Where a ray from the middle of the head leaves the outer table."""
    return ray_point(direction, (40, 125), lambda p: head.inner_table(p) - head.skull_thickness(p))


def make_fracture(rng: np.random.Generator, head: HeadShape, side: Side, length_mm: float, width_mm: float) -> Fracture:
    """A gap in the vault, roughly across the slices."""
    turn = rng.uniform(-0.75, 0.75) * np.pi / 2  # 0 = straight to the side, towards front or back
    rise = rng.uniform(0.0, 0.6)
    direction = unit(np.array(outwards(side, turn, rise)))
    centre = surface_point(head, triple(direction))
    lean = rng.uniform(-0.6, 0.6)
    up = np.array([1.0, 0.0, 0.0]) - direction[0] * direction
    up = unit(up)
    level = np.cross(direction, up)
    along = np.cos(lean) * up + np.sin(lean) * level
    across = np.cross(direction, along)
    t = np.linspace(-0.5, 0.5, 33) * length_mm
    line = np.array(centre)[:, None] + along[:, None] * t
    position = (line[0].astype(np.float32), line[1].astype(np.float32), line[2].astype(np.float32))
    width = width_mm * (1 - 0.6 * (2 * t / length_mm) ** 2)
    volume = float(np.mean(width * head.skull_thickness(position)) * length_mm / 1000)
    return Fracture(
        side=side, volume_ml=volume, hu=float(rng.uniform(20, 45)), centre=centre, along=triple(along),
        across=triple(across), length_mm=length_mm, width_mm=width_mm, wiggle=Waves.draw(rng, 0.8, 14, 50),
    )  # fmt: skip


def make_rod_fracture(rng: np.random.Generator, head: HeadShape, side: Side, width_mm: float) -> RodFracture:
    """A gap across the cheek bone or the petrous bone of one side.

    Args:
        rng: generator.
        head: a head whose bones below the vault are known pieces.
        side: of the patient.
        width_mm: of the gap.
    """
    sign = side_sign(side)
    rods = [
        part
        for part in (*head.face_parts, *head.base_parts)
        if part.kind == "rod" and part.tissue == "bone" and part.start[2] * sign > 20
    ]
    assert rods, "a parametric head has cheek and petrous bones"
    part = rods[int(rng.integers(len(rods)))]
    share = float(rng.uniform(0.3, 0.7))
    start, end = np.array(part.start), np.array(part.end)
    centre = start + share * (end - start)
    normal = unit(unit(end - start) + 0.35 * rng.normal(size=3))
    radius = part.radii[0] + share * (part.radii[1] - part.radii[0])
    lean = float(abs(normal @ unit(end - start)))
    volume = float(np.pi * radius**2 / lean * width_mm / 1000)
    return RodFracture(
        side=side, volume_ml=volume, hu=float(rng.uniform(20, 45)), part=part, centre=triple(centre),
        normal=triple(normal), width_mm=width_mm, wiggle=Waves.draw(rng, 0.4, 10, 30),
    )  # fmt: skip
