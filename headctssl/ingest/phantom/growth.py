"""Growth: what makes findings of a wanted volume in a given head, and those inside the brain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from headctssl.ingest.phantom.bleeds import Intraparenchymal, Intraventricular, UnderSkull
from headctssl.ingest.phantom.fields import Array, Frame, Position, Ranges, Waves
from headctssl.ingest.phantom.findings import Blob, Local, Side, side_sign
from headctssl.ingest.phantom.head_shape import HeadShape
from headctssl.ingest.phantom.shapes import Triple
from headctssl.ingest.phantom.warp import Mass, Shift, Warp

__all__ = [
    "Inside",
    "away_from_skull",
    "ball_radius_mm",
    "draw_blob",
    "fill_nodes",
    "make_iph",
    "make_ivh",
    "make_mass",
    "make_shift",
    "outwards",
    "pushed_mm",
    "ray_point",
    "solve_level",
    "triple",
    "unit",
]


@dataclass(frozen=True)
class Inside:
    """A head as a finding meets it: with what was put in before."""

    head: HeadShape
    warp: Warp = field(default_factory=Warp)
    dural: tuple[UnderSkull, ...] = ()  # bleeds under the skull, which push the brain inwards

    def local(self, position: Position, *, csf: bool = False) -> Local:
        """Evaluate at positions what a finding may ask for.

        Args:
            position: head coordinates.
            csf: also the share of subarachnoid CSF, which costs most of the time; zero without it.
        """
        inner = self.head.inner_table(position)
        own = tuple(np.asarray(np.broadcast_to(p, inner.shape), np.float32) for p in self.warp.back(position))
        brain = (own[0], own[1], own[2])
        ventricle = self.head.lateral_ventricle(brain)
        outer = inner - self.head.skull_thickness(position)
        bare = Local(position, brain, inner, inner, outer, ventricle, np.zeros_like(inner))
        surface = inner + pushed_mm(self.dural, bare)
        spaces = self.head.subarachnoid(position, brain, surface, ventricle) if csf else bare.subarachnoid
        return replace(bare, surface=surface, subarachnoid=spaces)


def pushed_mm(dural: tuple[UnderSkull, ...], local: Local) -> Array:
    """How far all bleeds under the skull push the surface of the brain inwards, in mm."""
    total = np.zeros_like(local.inner)
    for bleed in dural:
        np.maximum(total, bleed.pushed_mm(local), out=total)
    return total


def fill_nodes(ranges: Ranges, most: int) -> tuple[Position, float]:
    """Positions of about `most` nodes filling a box, and the volume of each in mL."""
    sizes = [b - a for a, b in ranges]
    step = float(np.prod(sizes) / most) ** (1 / 3)
    axes = [np.arange(a + step / 2, b, step) for (a, b) in ranges]
    frame = Frame(np.eye(3), np.zeros(3))
    return frame.position(axes[0], axes[1], axes[2]), step**3 / 1000


def solve_level(
    grow: Array, allowed: Array, node_ml: float, volume_ml: float, most: float = 0.9
) -> tuple[float, float]:
    """The level below which the allowed places have a volume; (level, volume), capped at a share of what there is."""
    order = np.argsort(grow, axis=None)
    weights = np.cumsum(allowed.ravel()[order].astype(np.float64)) * node_ml
    volume = min(volume_ml, most * float(weights[-1]))
    return float(np.interp(volume, weights, grow.ravel()[order])), volume


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector with length 1."""
    return np.asarray(vector / np.linalg.norm(vector))


def triple(vector: NDArray[np.float64]) -> Triple:
    """Three numbers."""
    return (float(vector[0]), float(vector[1]), float(vector[2]))


def outwards(side: Side, turn: float, rise: float) -> Triple:
    """Unit vector from the middle of the head to a side.

    Args:
        side: of the patient.
        turn: radians towards the back.
        rise: radians upwards.
    """
    away = side_sign(side) * np.cos(rise)
    return (float(np.sin(rise)), float(np.cos(rise) * np.sin(turn)), float(away * np.cos(turn)))


def ray_point(direction: Triple, reach_mm: tuple[int, int], distance: Callable[[Position], Array]) -> Triple:
    """Where a ray from the middle of the head leaves a surface, to a quarter of a mm.

    Args:
        direction: unit vector.
        reach_mm: where to begin and to end.
        distance: signed distance to the surface.
    """
    first, last = reach_mm
    r = np.linspace(first, last, 4 * (last - first) + 1, dtype=np.float32)
    position = (r * np.float32(direction[0]), r * np.float32(direction[1]), r * np.float32(direction[2]))
    at = float(r[int(np.argmax(distance(position) > 0))])
    return (direction[0] * at, direction[1] * at, direction[2] * at)


def ball_radius_mm(volume_ml: float) -> float:
    """Radius of a ball of a volume."""
    return float((volume_ml * 3000 / (4 * np.pi)) ** (1 / 3))


def make_shift(head: HeadShape, mm: float) -> Shift:
    """A shift of `mm` towards the left (negative: right) at the level of the frontal horns."""
    sz, sy, sx = head.scale
    return Shift(mm, (9.0 * sz, -6.0 * sy), (40.0 * sz, 48.0 * sy), 60.0 * sx)


def make_mass(centre: Triple, volume_ml: float, share: float) -> Mass:
    """A push that makes room for a share of a volume at a place."""
    radius = ball_radius_mm(volume_ml * share)
    return Mass(centre, radius, 14.0 + 1.8 * radius)


def draw_blob(rng: np.random.Generator, centre: Triple, radius_mm: float, roughness: float, spread: float) -> Blob:
    """A lumpy ellipsoid.

    Args:
        rng: generator.
        centre: where it grows from.
        radius_mm: of a ball of its volume.
        roughness: height of the lumps over the radius.
        spread: standard deviation of the logarithm of the half axes.
    """
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    relative = np.exp(rng.normal(0, spread, 3))
    relative /= relative.prod() ** (1 / 3)
    rows = rotation / relative[:, None]
    lumps = Waves.draw(rng, roughness * radius_mm, 1.0 * radius_mm + 3, 2.6 * radius_mm + 4)
    return Blob(centre, (triple(rows[0]), triple(rows[1]), triple(rows[2])), lumps)


def make_iph(
    rng: np.random.Generator, inside: Inside, side: Side, volume_ml: float, nodes: int = 40_000
) -> Intraparenchymal:
    """A bleed in the basal ganglia, the thalamus, a lobe or the cerebellum."""
    radius = ball_radius_mm(volume_ml)
    site = rng.choice(4, p=[0.35, 0.15, 0.42, 0.08])
    if site == 0:
        centre = (rng.normal(4, 3), rng.normal(0, 5), rng.normal(28, 2))
    elif site == 1:
        centre = (rng.normal(6, 2), rng.normal(9, 3), rng.normal(15, 1.5))
    elif site == 3 and volume_ml < 25:
        centre = (rng.normal(-50, 2), rng.normal(46, 3), rng.normal(24, 4))
    else:
        centre = lobar_place(rng)
    place = inside_place(inside.head, centre, side, radius)
    blob = draw_blob(rng, place, radius, 0.13, 0.2)
    bleed = Intraparenchymal(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(56, 76)), blob=blob, level=radius * 1.25,
        oedema_mm=float(rng.uniform(1.5, 3.0) + 0.22 * radius), gap_mm=inside.head.gap_mm,
    )  # fmt: skip
    position, node_ml = fill_nodes(bleed.ranges, nodes)
    local = inside.local(position)
    level, volume = solve_level(bleed.grow(local), bleed.allowed(local, 0.7), node_ml, volume_ml)
    return replace(bleed, level=level, volume_ml=volume)


def lobar_place(rng: np.random.Generator) -> tuple[float, float, float]:
    """A place (z, y, |x|) in a lobe of the nominal head."""
    angle = rng.uniform(0.15, 0.92) * np.pi
    return (float(rng.uniform(8, 44)), float(-62 * np.cos(angle) * 0.85), float(22 + 24 * np.sin(angle)))


def inside_place(head: HeadShape, centre: tuple[float, float, float], side: Side, radius_mm: float) -> Triple:
    """A nominal place brought to a head and a side, clear of the midline and of the skull when the finding is large."""
    sz, sy, sx = head.scale
    aside = float(np.clip(centre[2], min(radius_mm * 0.9 + 4, 33), 50))
    place = (float(centre[0] * sz), float(centre[1] * sy), float(side_sign(side) * aside * sx))
    return away_from_skull(head, place, 0.85 * radius_mm + head.gap_mm + 2)


def away_from_skull(head: HeadShape, place: Triple, wanted_mm: float) -> Triple:
    """Move a place inwards, in its sagittal plane, until it is deep enough."""
    f = np.linspace(1.0, 0.0, 21, dtype=np.float32)
    position = (place[0] * f, place[1] * f, np.full_like(f, place[2]))
    depth = -head.inner_table(position)
    best = int(np.argmax(depth >= wanted_mm)) if (depth >= wanted_mm).any() else int(np.argmax(depth))
    return (float(place[0] * f[best]), float(place[1] * f[best]), place[2])


def make_ivh(
    rng: np.random.Generator, inside: Inside, side: Side, volume_ml: float, nodes: int = 60_000
) -> Intraventricular:
    """Blood in one or both lateral ventricles, at most 85 % of their volume."""
    sz, sy, sx = inside.head.scale
    bounds: Ranges = ((-44.0 * sz, 44.0 * sz), (-54.0 * sy, 76.0 * sy), (-60.0 * sx, 60.0 * sx))
    source = (8.0 * sz, float(rng.choice([-24.0, 24.0])) * sy, 12.0 * sx)
    bleed = Intraventricular(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(54, 74)), source=source, cast=bool(rng.uniform() < 0.35),
        lumps=Waves.draw(rng, 1.5, 12, 40), level=0.0, bounds=bounds,
    )  # fmt: skip
    position, node_ml = fill_nodes(bounds, nodes)
    local = inside.local(position)
    level, volume = solve_level(bleed.grow(local), bleed.allowed(local, 1.5), node_ml, volume_ml, 0.85)
    bleed = replace(bleed, level=level, volume_ml=volume)
    if side == "both":
        cover = bleed.cover(local, 1.5)
        share = float(cover[local.brain[2] > 0].sum() / cover.sum())
        if not 0.1 < share < 0.9:  # Two levels differ in unequal ventricles: say what is there.
            bleed = replace(bleed, side="left" if share >= 0.9 else "right")
            level, volume = solve_level(bleed.grow(local), bleed.allowed(local, 1.5), node_ml, volume_ml, 0.85)
            bleed = replace(bleed, level=level, volume_ml=volume)
    return bleed
