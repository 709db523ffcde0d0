"""Growth: makes findings of a wanted volume in a given head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headctssl.ingest.phantom.anatomy import Anatomy
from headctssl.ingest.phantom.fields import Array, Frame, Position, Ranges, Waves
from headctssl.ingest.phantom.findings import (
    Fracture,
    Intraparenchymal,
    Intraventricular,
    Local,
    Shift,
    Side,
    Subdural,
)
from headctssl.ingest.phantom.shapes import Triple

__all__ = ["local_fields", "make_fracture", "make_iph", "make_ivh", "make_sdh", "make_shift", "surface_point"]


def local_fields(anatomy: Anatomy, shift: Shift | None, position: Position) -> Local:
    """Evaluate at positions what a finding may ask for."""
    inner = anatomy.inner_table(position)
    z, y, x = position
    brain_x = x - shift.at(position) if shift is not None else np.broadcast_to(x, inner.shape)
    return Local(
        position,
        np.asarray(brain_x, np.float32),
        inner,
        inner - anatomy.skull_thickness(position),
        anatomy.lateral_ventricle((z, y, np.asarray(brain_x, np.float32))),
    )


def _nodes(ranges: Ranges, most: int) -> tuple[Position, float]:
    """Positions of about `most` nodes filling a box, and the volume of each in mL."""
    sizes = [b - a for a, b in ranges]
    step = float(np.prod(sizes) / most) ** (1 / 3)
    axes = [np.arange(a + step / 2, b, step) for (a, b) in ranges]
    frame = Frame(np.eye(3), np.zeros(3))
    return frame.position(axes[0], axes[1], axes[2]), step**3 / 1000


def _solve_level(
    grow: Array, allowed: Array, node_ml: float, volume_ml: float, most: float = 0.9
) -> tuple[float, float]:
    """The level below which the allowed places have a volume; (level, volume), capped at a share of what there is."""
    order = np.argsort(grow, axis=None)
    weights = np.cumsum(allowed.ravel()[order].astype(np.float64)) * node_ml
    volume = min(volume_ml, most * float(weights[-1]))
    return float(np.interp(volume, weights, grow.ravel()[order])), volume


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


def make_shift(anatomy: Anatomy, mm: float) -> Shift:
    """A shift of `mm` towards the left (negative: right) at the level of the frontal horns."""
    sz, sy, sx = anatomy.scale
    return Shift(mm, (9.0 * sz, -6.0 * sy), (40.0 * sz, 48.0 * sy), 60.0 * sx)


def make_iph(
    rng: np.random.Generator, anatomy: Anatomy, shift: Shift | None, side: Side, volume_ml: float, nodes: int = 40_000
) -> Intraparenchymal:
    """A bleed in the basal ganglia, the thalamus, a lobe or the cerebellum."""
    sz, sy, sx = anatomy.scale
    sign = 1.0 if side == "left" else -1.0
    radius = (volume_ml * 3000 / (4 * np.pi)) ** (1 / 3)
    site = rng.choice(4, p=[0.35, 0.15, 0.42, 0.08])
    if site == 0:
        centre = (rng.normal(4, 3), rng.normal(0, 5), rng.normal(28, 2))
    elif site == 1:
        centre = (rng.normal(6, 2), rng.normal(9, 3), rng.normal(15, 1.5))
    elif site == 3 and volume_ml < 25:
        centre = (rng.normal(-50, 2), rng.normal(42, 4), rng.normal(24, 4))
    else:
        angle = rng.uniform(0.15, 0.92) * np.pi
        centre = (rng.uniform(8, 44), -62 * np.cos(angle) * 0.85, 22 + 24 * np.sin(angle))
    # A large bleed keeps clear of the midline and of the skull.
    aside = float(np.clip(centre[2], min(radius * 0.9 + 4, 33), 50))
    place = (float(centre[0] * sz), float(centre[1] * sy), float(sign * aside * sx))
    place = _away_from_skull(anatomy, place, 0.85 * radius + anatomy.gap_mm + 2)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    relative = np.exp(rng.normal(0, 0.2, 3))
    relative /= relative.prod() ** (1 / 3)
    rows = rotation / relative[:, None]
    axes = (_triple(rows[0]), _triple(rows[1]), _triple(rows[2]))
    lumps = Waves.draw(rng, 0.13 * radius, 1.0 * radius + 3, 2.6 * radius + 4)
    bleed = Intraparenchymal(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(58, 76)), centre=place, axes=axes, lumps=lumps,
        level=radius * 1.25, oedema_mm=float(rng.uniform(1.5, 3.0) + 0.22 * radius), gap_mm=anatomy.gap_mm,
    )  # fmt: skip
    position, node_ml = _nodes(bleed.ranges, nodes)
    local = local_fields(anatomy, shift, position)
    level, volume = _solve_level(bleed.grow(local), bleed.allowed(local, 0.7), node_ml, volume_ml)
    return replace(bleed, level=level, volume_ml=volume)


def _away_from_skull(anatomy: Anatomy, place: Triple, wanted_mm: float) -> Triple:
    """Move a place inwards, in its sagittal plane, until it is deep enough."""
    f = np.linspace(1.0, 0.0, 21, dtype=np.float32)
    position = (place[0] * f, place[1] * f, np.full_like(f, place[2]))
    depth = -anatomy.inner_table(position)
    best = int(np.argmax(depth >= wanted_mm)) if (depth >= wanted_mm).any() else int(np.argmax(depth))
    return (float(place[0] * f[best]), float(place[1] * f[best]), place[2])


def make_sdh(rng: np.random.Generator, anatomy: Anatomy, side: Side, volume_ml: float, nodes: int = 60_000) -> Subdural:
    """A crescent over the convexity of one hemisphere."""
    hz, hy, hx = anatomy.half_mm
    sign = 1.0 if side == "left" else -1.0
    wanted = float(np.clip(2.1 * volume_ml**0.4 * rng.uniform(0.85, 1.15), 3.0, 16.0))
    area = 1000 * volume_ml / wanted * 2.0
    long = float(np.clip(np.sqrt(area / np.pi) * rng.uniform(1.0, 1.35), 12, 0.93 * hy))
    high = float(np.clip(area / np.pi / long, 10, 46))
    centre = (float(rng.uniform(16, 30)), float(rng.uniform(-0.35, 0.35) * max(hy - long, 8) * 2))
    x_range = (1.0, hx + 6) if sign > 0 else (-hx - 6, -1.0)
    bleed = Subdural(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(56, 74)), centre=centre, extent=(high, long),
        thickness=wanted, floor_mm=-22.0, bounds=((-26.0, hz + 4), (-hy - 5, hy + 5), x_range),
    )  # fmt: skip
    position, node_ml = _nodes(bleed.bounds, nodes)
    local = local_fields(anatomy, None, position)
    allowed = bleed.allowed(local, 1.0)
    level, volume = wanted, volume_ml
    for _ in range(4):
        level, volume = _solve_level(bleed.grow(local), allowed, node_ml, volume_ml)
        bleed = replace(bleed, thickness=level, volume_ml=volume)
        if level < 1.35 * wanted:
            break
        factor = float(np.clip(np.sqrt(level / wanted), 1.05, 1.4))
        bleed = replace(bleed, extent=(min(high * factor, 48.0), min(long * factor, 1.1 * hy)))
        high, long = bleed.extent
    return bleed


def make_ivh(
    rng: np.random.Generator, anatomy: Anatomy, shift: Shift | None, side: Side, volume_ml: float, nodes: int = 60_000
) -> Intraventricular:
    """Blood in one or both lateral ventricles, at most 85 % of their volume."""
    sz, sy, sx = anatomy.scale
    bounds: Ranges = ((-40.0 * sz, 40.0 * sz), (-50.0 * sy, 72.0 * sy), (-56.0 * sx, 56.0 * sx))
    source = (8.0 * sz, float(rng.choice([-24.0, 24.0])) * sy, 12.0 * sx)
    bleed = Intraventricular(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(56, 74)), source=source, cast=bool(rng.uniform() < 0.35),
        lumps=Waves.draw(rng, 1.5, 12, 40), level=0.0, bounds=bounds,
    )  # fmt: skip
    position, node_ml = _nodes(bounds, nodes)
    local = local_fields(anatomy, shift, position)
    level, volume = _solve_level(bleed.grow(local), bleed.allowed(local, 1.5), node_ml, volume_ml, 0.85)
    bleed = replace(bleed, level=level, volume_ml=volume)
    if side == "both":
        cover = bleed.cover(local, 1.5)
        share = float(cover[local.brain_x > 0].sum() / cover.sum())
        if not 0.1 < share < 0.9:  # Two levels differ in unequal ventricles: say what is there.
            bleed = replace(bleed, side="left" if share >= 0.9 else "right")
            level, volume = _solve_level(bleed.grow(local), bleed.allowed(local, 1.5), node_ml, volume_ml, 0.85)
            bleed = replace(bleed, level=level, volume_ml=volume)
    return bleed


def surface_point(anatomy: Anatomy, direction: Triple) -> Triple:
    """Where a ray from the middle of the head leaves the outer table."""
    r = np.linspace(40, 125, 341, dtype=np.float32)
    position = (r * np.float32(direction[0]), r * np.float32(direction[1]), r * np.float32(direction[2]))
    outer = anatomy.inner_table(position) - anatomy.skull_thickness(position)
    at = float(r[int(np.argmax(outer > 0))])
    return (direction[0] * at, direction[1] * at, direction[2] * at)


def make_fracture(
    rng: np.random.Generator, anatomy: Anatomy, side: Side, length_mm: float, width_mm: float
) -> Fracture:
    """A gap in the vault, roughly across the slices."""
    sign = 1.0 if side == "left" else -1.0
    turn = rng.uniform(-0.75, 0.75) * np.pi / 2  # 0 = straight to the side, towards front or back
    rise = rng.uniform(0.0, 0.6)
    direction = _unit(np.array([np.sin(rise), np.cos(rise) * np.sin(turn), sign * np.cos(rise) * np.cos(turn)]))
    centre = surface_point(anatomy, _triple(direction))
    lean = rng.uniform(-0.6, 0.6)
    up = np.array([1.0, 0.0, 0.0]) - direction[0] * direction
    up = _unit(up)
    level = np.cross(direction, up)
    along = np.cos(lean) * up + np.sin(lean) * level
    across = np.cross(direction, along)
    t = np.linspace(-0.5, 0.5, 33) * length_mm
    line = np.array(centre)[:, None] + along[:, None] * t
    position = (line[0].astype(np.float32), line[1].astype(np.float32), line[2].astype(np.float32))
    width = width_mm * (1 - 0.6 * (2 * t / length_mm) ** 2)
    volume = float(np.mean(width * anatomy.skull_thickness(position)) * length_mm / 1000)
    return Fracture(
        side=side, volume_ml=volume, hu=float(rng.uniform(20, 45)), centre=centre, along=_triple(along),
        across=_triple(across), length_mm=length_mm, width_mm=width_mm, wiggle=Waves.draw(rng, 0.8, 14, 50),
    )  # fmt: skip


def _triple(vector: NDArray[np.float64]) -> Triple:
    return (float(vector[0]), float(vector[1]), float(vector[2]))
