"""Growth of lesions: infarcts and tumours of a wanted volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headctssl.ingest.phantom.findings import Side, side_sign
from headctssl.ingest.phantom.growth import (
    Inside,
    ball_radius_mm,
    draw_blob,
    fill_nodes,
    inside_place,
    lobar_place,
    outwards,
    solve_level,
)
from headctssl.ingest.phantom.growth_dura import inner_point
from headctssl.ingest.phantom.lesions import Infarct, Tumour

__all__ = ["make_infarct", "make_tumour"]

_LACUNE_ML = 2.5  # smaller infarcts lie deep
_TERRITORIES = {  # place (z, y, |x|) in the nominal head from which an artery's infarct grows
    "middle": ((6.0, -6.0, 56.0), (22.0, 14.0, 56.0), (4.0, -28.0, 46.0)),
    "posterior": ((4.0, 68.0, 20.0),),
    "anterior": ((34.0, -50.0, 8.0),),
    "cerebellum": ((-50.0, 52.0, 28.0),),
}


def make_infarct(
    rng: np.random.Generator, inside: Inside, side: Side, volume_ml: float, nodes: int = 80_000
) -> Infarct:
    """An infarct in the territory of an artery, or a lacune in the basal ganglia."""
    sz, sy, sx = inside.head.scale
    radius = ball_radius_mm(volume_ml)
    if volume_ml < _LACUNE_ML:
        centre = (float(rng.normal(7, 4)), float(rng.normal(-2, 10)), float(rng.normal(23, 3)))
    else:
        name = str(rng.choice(list(_TERRITORIES), p=[0.62, 0.18, 0.1, 0.1]))
        places = _TERRITORIES[name]
        middle = places[int(rng.integers(len(places)))]
        centre = (middle[0] + float(rng.normal(0, 4)), middle[1] + float(rng.normal(0, 4)), middle[2])
    place = (centre[0] * sz, centre[1] * sy, side_sign(side) * centre[2] * sx)
    infarct = Infarct(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(14, 25)), blob=draw_blob(rng, place, radius, 0.12, 0.15),
        level=1.9 * radius + 4, blur_mm=float(rng.uniform(2.0, 5.0)), gap_mm=inside.head.gap_mm,
    )  # fmt: skip
    position, node_ml = fill_nodes(infarct.ranges, nodes)
    local = inside.local(position, csf=True)
    level, volume = solve_level(infarct.grow(local), infarct.allowed(local, 1.0), node_ml, volume_ml)
    return replace(infarct, level=level, volume_ml=volume)


def make_tumour(rng: np.random.Generator, inside: Inside, side: Side, volume_ml: float, nodes: int = 50_000) -> Tumour:
    """A tumour in a lobe, in half of the cases with a dead core, or (a third) one that grows on the dura."""
    radius = ball_radius_mm(volume_ml)
    dural = bool(rng.uniform() < 0.33)
    if dural:
        turn, rise = float(rng.uniform(-1.2, 1.2)), float(rng.uniform(0.0, 1.0))
        z, y, x = inner_point(inside.head, outwards(side, turn, rise))
        length = float(np.sqrt(z * z + y * y + x * x))
        inward = 1 - 0.55 * radius / length
        place = (z * inward, y * inward, x * inward)
    else:
        place = inside_place(inside.head, lobar_place(rng), side, radius)
    dead = not dural and bool(rng.uniform() < 0.5)
    tumour = Tumour(
        side=side, volume_ml=volume_ml, hu=float(rng.uniform(44, 60) if dural or dead else rng.uniform(20, 60)),
        blob=draw_blob(rng, place, radius, 0.05 if dural else 0.11, 0.1 if dural else 0.2), level=1.3 * radius + 2,
        core_level=0.0, core_hu=float(rng.uniform(10, 22)),
        oedema_mm=float(rng.uniform(0.5, 3) if dural else rng.uniform(4, 9) + 0.25 * radius), dural=dural,
        gap_mm=inside.head.gap_mm,
    )  # fmt: skip
    position, node_ml = fill_nodes(tumour.ranges, nodes)
    local = inside.local(position)
    level, volume = solve_level(tumour.grow(local), tumour.allowed(local, 0.7), node_ml, volume_ml)
    core = level - max(2.5, 0.28 * radius) if dead else 0.0
    return replace(tumour, level=level, volume_ml=volume, core_level=core)
