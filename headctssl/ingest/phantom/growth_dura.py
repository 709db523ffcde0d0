"""Growth under the dura: subdural, epidural and subarachnoid bleeds of a wanted volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headctssl.ingest.phantom.bleeds import Epidural, Subarachnoid, Subdural
from headctssl.ingest.phantom.fields import Ranges, Waves
from headctssl.ingest.phantom.findings import Side
from headctssl.ingest.phantom.growth import Inside, fill_nodes, outwards, ray_point, solve_level
from headctssl.ingest.phantom.head_shape import HeadShape
from headctssl.ingest.phantom.shapes import Triple

__all__ = ["inner_point", "make_edh", "make_sah", "make_sdh"]


def make_sdh(
    rng: np.random.Generator,
    head: HeadShape,
    side: Side,
    volume_ml: float,
    nodes: int = 60_000,
    *,
    chronic: bool = False,
) -> Subdural:
    """A crescent over the convexity of one hemisphere; a chronic one is darker than brain, denser at the back."""
    hz, hy, hx = head.half_mm
    wanted = float(np.clip(2.1 * volume_ml**0.4 * rng.uniform(0.85, 1.15), 3.0, 16.0))
    area = 1000 * volume_ml / wanted * 2.0
    long = float(np.clip(np.sqrt(area / np.pi) * rng.uniform(1.0, 1.35), 12, 0.93 * hy))
    high = float(np.clip(area / np.pi / long, 10, 46))
    centre = (float(rng.uniform(16, 30)), float(rng.uniform(-0.35, 0.35) * max(hy - long, 8) * 2))
    x_range = (1.0, hx + 6) if side == "left" else (-hx - 6, -1.0)
    hu = float(rng.uniform(12, 26) if chronic else rng.uniform(54, 74))
    settled = float(rng.uniform(0, 26)) if chronic and rng.uniform() < 0.5 else 0.0
    bleed = Subdural(
        side=side, volume_ml=volume_ml, hu=hu, centre=centre, extent=(high, long), thickness=wanted, floor_mm=-22.0,
        bounds=((-26.0, hz + 4), (-hy - 5, hy + 5), x_range), chronic=chronic, settled_hu=settled,
    )  # fmt: skip
    position, node_ml = fill_nodes(bleed.bounds, nodes)
    local = Inside(head).local(position)
    allowed = bleed.allowed(local, 1.0)
    level, volume = wanted, volume_ml
    for _ in range(4):
        level, volume = solve_level(bleed.grow(local), allowed, node_ml, volume_ml)
        bleed = replace(bleed, thickness=level, volume_ml=volume)
        if level < 1.35 * wanted:
            break
        factor = float(np.clip(np.sqrt(level / wanted), 1.05, 1.4))
        bleed = replace(bleed, extent=(min(high * factor, 48.0), min(long * factor, 1.1 * hy)))
        high, long = bleed.extent
    return bleed


def inner_point(head: HeadShape, direction: Triple) -> Triple:
    """Where a ray from the middle of the head meets the inner table."""
    return ray_point(direction, (20, 115), head.inner_table)


def make_edh(rng: np.random.Generator, head: HeadShape, side: Side, volume_ml: float, nodes: int = 60_000) -> Epidural:
    """A lens under the temporal or parietal bone, seldom the frontal or occipital."""
    turn = float(rng.normal(0, 0.5))  # 0 = straight to the side
    rise = float(rng.uniform(-0.1, 0.75))
    centre = inner_point(head, outwards(side, turn, rise))
    # A paraboloid of height h over a disc of radius R holds pi R^2 h / 2; a lens is about half as high as it is wide.
    radius = float((1000 * volume_ml / (np.pi / 2 * rng.uniform(0.5, 0.8))) ** (1 / 3))
    bleed = Epidural(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(56, 76)), centre=centre, radius_mm=radius,
        thickness=1.2 * radius,
    )  # fmt: skip
    position, node_ml = fill_nodes(bleed.ranges, nodes)
    local = Inside(head).local(position)
    allowed = bleed.allowed(local, 0.7)
    level, volume = solve_level(bleed.grow(local), allowed, node_ml, volume_ml)
    return replace(bleed, thickness=level, volume_ml=volume)


def make_sah(
    rng: np.random.Generator, inside: Inside, side: Side, volume_ml: float, nodes: int = 160_000
) -> Subarachnoid:
    """Blood in the cisterns of the base (side: both) or over one hemisphere, in at most 70 % of the CSF there."""
    sz, sy, sx = inside.head.scale
    hz, hy, hx = inside.head.half_mm
    bounds: Ranges = ((-62.0, hz + 3), (-hy - 4, hy + 4), (-hx - 5, hx + 5))
    if side == "both":
        source: Triple = (float(rng.uniform(-28, -22)) * sz, -10.0 * sy, float(rng.normal(0, 4)) * sx)
    else:
        turn, rise = float(rng.uniform(-1.0, 1.0)), float(rng.uniform(0.0, 0.7))
        source = inner_point(inside.head, outwards(side, turn, rise))
    bleed = Subarachnoid(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(48, 66)), source=source,
        lumps=Waves.draw(rng, 3.0, 15, 50), level=0.0, bounds=bounds,
    )  # fmt: skip
    position, node_ml = fill_nodes(bounds, nodes)
    local = inside.local(position, csf=True)
    allowed = bleed.allowed(local, 1.0)
    level, volume = solve_level(bleed.grow(local), allowed, node_ml, volume_ml, 0.7)
    return replace(bleed, level=level, volume_ml=volume)
