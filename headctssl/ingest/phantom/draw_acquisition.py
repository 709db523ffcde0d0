"""Draw acquisition: a scan of a profile: which scanner, which settings, how the head lies."""

from __future__ import annotations

import numpy as np

from headctssl.ingest.phantom.acquisition import Acquisition
from headctssl.ingest.phantom.anatomy import Anatomy
from headctssl.ingest.phantom.base_head import BaseHead
from headctssl.ingest.phantom.profiles import Profile

__all__ = ["draw_acquisition"]


def draw_acquisition(rng: np.random.Generator, profile: Profile, anatomy: Anatomy | BaseHead) -> Acquisition:
    """Draw a scan: sizes, pose and noise as in practice, or coarse and quick for `laptop`.

    Args:
        rng: generator of the scan.
        profile: which scanner.
        anatomy: the head, for the vertex must be in the scan.
    """
    vertex = anatomy.vertex_mm + 6
    if profile.coarse:
        spacing = float(rng.choice([2.75, 3.0, 3.25]))
        rotation = (float(rng.normal(0, 4)), float(rng.normal(0, 2.5)), float(rng.normal(0, 4)))
        move = (float(rng.uniform(-4, 4)), float(rng.uniform(4, 12)), float(rng.uniform(-5, 5)))
        bottom = float(rng.uniform(-78, -70))
        return Acquisition(
            matrix=round(238 / spacing), pixel_mm=spacing, thickness_mm=spacing, bottom_mm=bottom,
            slices=int(np.ceil((vertex + move[0] - bottom + 6) / spacing)), rotation_deg=rotation, shift_mm=move,
            noise_hu=float(np.exp(rng.uniform(np.log(2.0), np.log(9.0)))), noise_seed=int(rng.integers(2**62)),
            offset_hu=float(rng.normal(0, 3)), cupping_hu=float(rng.uniform(1, 9)),
        )  # fmt: skip
    thickness = float(
        rng.choice([0.6, 1.0, 1.25, 2.0, 2.5, 3.0, 4.0, 5.0], p=[0.06, 0.14, 0.15, 0.05, 0.15, 0.1, 0.05, 0.3])
    )
    matrix = int(rng.choice([256, 320, 384, 512], p=[0.55, 0.2, 0.15, 0.1])) if thickness >= 2.5 else 256
    rotation = (float(rng.normal(0, 6)), float(rng.normal(0, 4)), float(rng.normal(0, 6)))
    move = (float(rng.uniform(-8, 8)), float(rng.uniform(2, 16)), float(rng.uniform(-8, 8)))
    tilt = float(rng.uniform(6, 20)) if rng.uniform() < 0.3 else 0.0
    sheared = bool(rng.uniform() < 0.5) and tilt > 0
    bottom = float(rng.uniform(-95, -70))
    top = vertex + move[0] + 4 + 0.25 * tilt
    normal = thickness / np.cos(np.deg2rad(tilt)) if sheared else thickness
    sharp = bool(rng.uniform() < 0.2)
    circle = bool(rng.uniform() < 0.5)
    slices = int(np.ceil((top - bottom) / normal))
    metal = None
    if rng.uniform() < 0.06:  # a clip or a shunt; teeth are below the scan
        metal = (float(rng.uniform(-30, 30)), float(rng.uniform(-40, 50)), float(rng.uniform(-50, 50)))
    moved = float(rng.uniform(1.5, 5)) if rng.uniform() < 0.12 else 0.0
    level = float(rng.uniform(-50, 50))
    return Acquisition(
        matrix=matrix, pixel_mm=float(rng.uniform(232, 262)) / matrix, thickness_mm=thickness, slices=slices,
        bottom_mm=bottom, rotation_deg=rotation, shift_mm=move, tilt_deg=round(tilt, 1), sheared=sheared, sharp=sharp,
        circle=circle, noise_hu=float(rng.uniform(2.5, 5.5) * (5 / thickness) ** 0.4 * (1.8 if sharp else 1.0)),
        padding_hu=int(rng.choice([-1024, -1500, -2000, -3024])) if circle else -1024,
        noise_seed=int(rng.integers(2**62)), cupping_hu=float(rng.uniform(0, 9)), offset_hu=float(rng.normal(0, 2.5)),
        kvp=int(rng.choice([80, 100, 120, 140], p=[0.06, 0.19, 0.65, 0.1])),
        ringing=float(rng.uniform(0.3, 0.9)) if sharp else 0.0, holder=bool(rng.uniform() < 0.9),
        streak_hu=float(rng.uniform(0, 14)), metal_mm=metal, motion_mm=moved,
        motion_span=(level, level + float(rng.uniform(8, 30))),
    )  # fmt: skip
