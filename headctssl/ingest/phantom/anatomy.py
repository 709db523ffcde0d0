"""Anatomy: the shape and the densities of one synthetic head, as smooth fields and small parts.

All lengths in mm, densities in HU, positions in head coordinates (z, y, x) towards superior,
posterior, left. Nothing here knows of a scanner or of a disease.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headctssl.ingest.phantom.brain import brain_shares, subarachnoid_share
from headctssl.ingest.phantom.fields import Array, Position, Ranges, TextureNoise, Waves, smooth_max
from headctssl.ingest.phantom.parts import Densities, draw_parts
from headctssl.ingest.phantom.shapes import Part, ellipsoid_distance, rod_distance

__all__ = ["Anatomy", "Spread", "draw_anatomy"]

_NOMINAL = (72.0, 84.0, 67.0)  # half extents of the cranial cavity (z up, y, x) that part positions refer to
_VENTRICLE_PATHS = (  # lateral ventricle: (z, y, |x|, radius), nominal mm; horn by horn
    ((4.0, -34.0, 13.0, 2.0), (6.0, -24.0, 8.0, 3.6), (12.0, -8.0, 6.0, 3.4), (19.0, 10.0, 9.0, 3.6)),
    ((19.0, 10.0, 9.0, 3.6), (13.0, 30.0, 20.0, 5.4), (5.0, 42.0, 24.0, 4.0), (2.0, 55.0, 22.0, 1.6)),
    ((11.0, 30.0, 21.0, 4.6), (-8.0, 20.0, 31.0, 2.2), (-22.0, -8.0, 29.0, 1.2)),
)


@dataclass(frozen=True)
class Anatomy:
    """One head. Everything follows from the seed of the subject."""

    half_mm: tuple[float, float, float]  # half extents of the cranial cavity (z up, y, x)
    exponent: float  # of the superellipsoid
    taper: float  # widening towards the back
    skull_mm: float
    scalp_mm: float
    gap_mm: float  # CSF between skull and brain
    sulcus_mm: float  # half width of the sulci at the surface
    ventricle_mm: float  # added to the radii of the ventricles
    ventricle_asymmetry_mm: float  # added on the left, taken from the right
    grey_hu: float
    white_hu: float
    csf_hu: float
    bone_hu: float
    diploe_hu: float
    muscle_hu: float
    muscle_share: float  # of the neck and the face that is muscle, the rest is fat
    vessel_hu: float
    pale_hu: float  # how much darker the white matter next to the ventricles is
    contrast: bool  # vessels are bright with contrast medium
    shape: Waves
    thickness: Waves
    atrophy: Waves
    tissue_mix: Waves
    sulci: TextureNoise
    face_parts: tuple[Part, ...]  # painted before the skull
    base_parts: tuple[Part, ...]  # painted after the skull
    brain_parts: tuple[Part, ...]  # painted in the warped brain

    @property
    def scale(self) -> tuple[float, float, float]:
        """Size against the nominal head per axis."""
        a, b, c = (h / n for h, n in zip(self.half_mm, _NOMINAL, strict=True))
        return (a, b, c)

    @property
    def vertex_mm(self) -> float:
        """Height of the skin at the vertex."""
        return self.half_mm[0] + self.skull_mm + self.scalp_mm

    @property
    def head_ranges(self) -> Ranges:
        """A box in head coordinates that holds the head, open below."""
        z, y, x = self.half_mm
        shell = self.skull_mm + self.scalp_mm + 14
        return ((-260.0, z + shell), (-y - max(shell, 34.0), y + shell + 4), (-x - shell - 8, x + shell + 8))

    @property
    def cavity_ranges(self) -> Ranges:
        """A box in head coordinates that holds the cranial cavity and a piece of the canal."""
        z, y, x = self.half_mm
        return ((-130.0, z + 5), (-y - 5, y + 5), (-x - 7, x + 7))

    def inner_table(self, position: Position) -> Array:
        """Signed distance to the inner surface of the skull in mm, negative in the cavity."""
        z, y, x = position
        hz, hy, hx = self.half_mm
        n = np.float32(self.exponent)
        wide = np.float32(1 / hx) / (1 + np.clip(y, -hy, hy) * np.float32(self.taper / hy))
        qz = np.abs(z) * np.float32(1 / hz)
        qy = np.abs(y) * np.float32(1 / hy)
        qx = np.abs(x) * wide
        pz, py, px = qz ** (n - 1), qy ** (n - 1), qx ** (n - 1)
        r = (pz * qz + py * qy + px * qx + np.float32(1e-6)) ** (1 / n)
        grad = np.sqrt((pz / hz) ** 2 + (py / hy) ** 2 + (px * wide) ** 2) * r ** (1 - n)
        vault = r - 1
        vault /= np.maximum(grad, np.float32(0.004))
        vault += self.shape.at(position)
        inside = smooth_max(vault, self._above_floor(position), 5.0)
        canal = np.maximum(np.sqrt(x * x + (y - np.float32(27)) ** 2) - np.float32(12), z + np.float32(52))
        return np.asarray(np.minimum(inside, canal), np.float32)

    def _above_floor(self, position: Position) -> Array:
        """Distance below the floor of the three cranial fossae, positive below it."""
        z, y, x = position
        sz, sy, sx = self.scale

        def step(low: float, high: float, at: Array, soft: float) -> tuple[Array, Array]:
            s = 1 / (1 + np.exp(np.clip((at - y) * np.float32(1 / soft), -30, 30)))
            return (high - low) * s, (high - low) / soft * s * (1 - s)

        off = np.abs(x) * np.float32(1 / sx)
        # The sphenoid ridges are concave, the tuberculum sellae lies behind them; the petrous ridges
        # run obliquely from the clivus to the temples.
        ridge = -39 + 25 * np.exp(-((off / 15) ** 2)) + 0.018 * np.clip(off - 34, 0, None) ** 2
        petrous = 1 + 0.36 * off
        up, slope_up = step(-24 * sz, -47 * sz, np.asarray(ridge * sy, np.float32), 3.0)
        down, slope_down = step(-47 * sz, -67 * sz, np.asarray(petrous * sy, np.float32), 3.5)
        sella = 15 * np.exp(-((off / 12) ** 2) - ((y + 9 * sy) / 12) ** 2)
        roof = 8 * np.exp(-(((off - 33) / 13) ** 2) - ((y / sy + 60) / 20) ** 2) + 0.004 * off**2
        floor = -26 * sz + up + down + sella + roof
        return np.asarray((floor - z) / np.sqrt(1.15 + (slope_up + slope_down) ** 2), np.float32)

    def skull_thickness(self, position: Position) -> Array:
        """Thickness of the skull in mm: thinner at the temples, thicker at the occiput and the forehead."""
        z, y, x = position
        t = self.skull_mm + self.thickness.at(position)
        t = t - 0.42 * self.skull_mm * np.exp(-(((z + 12) / 22) ** 2) - ((y + 12) / 28) ** 2)
        t = t + 4 * np.exp(-((x / 9) ** 2) - ((z + 22) / 12) ** 2) * (y > 0)
        t = t + 1.5 * np.exp(-((x / 14) ** 2)) * (y < -40)
        return np.asarray(np.maximum(t, np.float32(2.2)), np.float32)

    def head_fields(self, position: Position) -> dict[str, Array]:
        """Signed distances `inner`, `outer` (skull) and `skin`, and `mix` (fat against muscle, about N(0, 1))."""
        inner = self.inner_table(position)
        outer = inner - self.skull_thickness(position)
        sz, sy, sx = self.scale
        skin = outer - (self.scalp_mm + 0.35 * self.thickness.at(position))
        for centre, radii, blend in (
            ((-66.0, -48.0, 0.0), (66.0, 54.0, 62.0), 22.0),  # face
            ((-62.0, -103.0, 0.0), (17.0, 13.0, 10.0), 12.0),  # nose
            ((-150.0, 18.0, 0.0), (110.0, 56.0, 56.0), 26.0),  # neck
        ):
            c = (centre[0] * sz, centre[1] * sy, centre[2] * sx)
            skin = -smooth_max(-skin, -ellipsoid_distance(position, c, radii), blend)
        for side in (-1.0, 1.0):
            ear = ellipsoid_distance(position, (-34 * sz, 14 * sy, side * 82 * sx), (27.0, 13.0, 7.0))
            skin = -smooth_max(-skin, -ear, 6.0)
        return {"inner": inner, "outer": outer, "skin": skin, "mix": self.tissue_mix.at(position)}

    def brain_fields(self, position: Position) -> dict[str, Array]:
        """In the brain's own coordinates: signed distances to the sulcal sheets and to the ventricles."""
        z, y, x = position
        below = self.cerebellum(position)
        # A wave of length L and standard deviation 1 leaves zero with a slope near 2 pi / L.
        sulci = self.sulci.at(position) * np.float32(15.0 / (2 * np.pi))
        # The fissures of the cerebellum are closer together and lie flat: the same noise, pressed together.
        folia = self.sulci.at((z * np.float32(3), y * np.float32(1.5), x)) * np.float32(15.0 / (2 * np.pi) / 2)
        return {
            "sulci": np.where(below > 0, folia, sulci),
            "cerebellum": below,
            "ventricle": self.lateral_ventricle(position),
        }

    def cerebellum(self, position: Position) -> Array:
        """Signed distance to the tentorium in mm, first order: positive below it, behind the petrous bones."""
        z, y, x = position
        sz, sy, sx = self.scale
        off = np.abs(x) * np.float32(1 / sx)
        back = np.clip(y * np.float32(1 / sy) - 32, 0, None)
        tent = np.float32(-5) - np.float32(0.42) * (np.sqrt(off**2 + 25) - 5) - np.float32(0.011) * back**2
        front = np.clip(np.float32(2) + np.float32(0.36) * off - y * np.float32(1 / sy), 0, None)
        return np.asarray((tent * sz - 3 * front - z) * np.float32(0.85), np.float32)

    def tentorium_edge(self, position: Position) -> Array:
        """Distance in mm from the sheet of the tentorium to its border, negative where there is a sheet."""
        _, y, x = position
        _, sy, sx = self.scale
        off, back = np.abs(x) * np.float32(1 / sx), y * np.float32(1 / sy)
        petrous = np.float32(4) + np.float32(0.36) * off - back
        notch = (1 - np.sqrt(((back - 12) / 27) ** 2 + (off / 19) ** 2)) * np.float32(20)
        return np.asarray(np.maximum(petrous, notch), np.float32)

    def lateral_ventricle(self, position: Position) -> Array:
        """Signed distance to the lateral ventricles in mm."""
        z, y, x = position
        sz, sy, sx = self.scale
        best: Array | None = None
        folded = (z, y, np.abs(x))
        for path in _VENTRICLE_PATHS:
            for (z0, y0, x0, r0), (z1, y1, x1, r1) in pairwise(path):
                d = rod_distance(folded, (z0 * sz, y0 * sy, x0 * sx), (z1 * sz, y1 * sy, x1 * sx), (r0, r1))
                best = d if best is None else -smooth_max(-best, -d, 1.5)
        assert best is not None
        side = np.float32(self.ventricle_asymmetry_mm) * np.tanh(x * np.float32(0.2))
        return np.asarray(best - np.float32(self.ventricle_mm) - side, np.float32)

    def subarachnoid(self, position: Position, own: Position, surface: Array, ventricle: Array) -> Array:
        """Share of each place that is CSF between brain and skull; arguments as of `HeadShape.subarachnoid`."""
        fields = self.brain_fields(own)
        shares = brain_shares(self, surface, self.gap(position), fields["sulci"], fields["cerebellum"], 1.0)
        return subarachnoid_share(self, shares.brain, surface, ventricle, own, 1.0)

    def gap(self, position: Position) -> Array:
        """Width of the CSF between skull and brain in mm."""
        return np.asarray(np.maximum(self.gap_mm * (1 + self.atrophy.at(position)), 0.6), np.float32)


@dataclass(frozen=True)
class Spread:
    """How different heads are from one another; limits of uniform draws."""

    grey_hu: tuple[float, float] = (34.0, 42.0)
    contrast_medium: float = 0.08  # share of heads with contrast medium in the vessels
    muscle_hu: tuple[float, float] = (46.0, 62.0)
    bone_hu: tuple[float, float] = (950.0, 1650.0)
    coarse: bool = False  # texture of 3 mm instead of 2 mm, for coarse scans


def draw_anatomy(rng: np.random.Generator, spread: Spread = Spread(), *, hydrocephalus_mm: float = 0.0) -> Anatomy:
    """Draw a head.

    Args:
        rng: generator of the subject.
        spread: how different heads are.
        hydrocephalus_mm: added to the radii of all ventricles; above 0 the sulci are pressed together.
    """
    age = float(rng.uniform(0, 1))  # young to old: wider sulci and ventricles
    half = (float(rng.normal(72, 2.5)), float(rng.normal(84, 3.5)), float(rng.normal(67, 2.5)))
    grey = float(rng.uniform(*spread.grey_hu))
    scale = (half[0] / _NOMINAL[0], half[1] / _NOMINAL[1], half[2] / _NOMINAL[2])
    contrast = bool(rng.uniform() < spread.contrast_medium)
    vessel = float(rng.uniform(42, 60) + (rng.uniform(50, 160) if contrast else 0.0))
    hu = Densities(
        grey=grey, csf=float(rng.uniform(2, 11)), bone=float(rng.uniform(*spread.bone_hu)), vessel=vessel,
        calcified=1.0 + 1.5 * age,
    )  # fmt: skip
    parts = draw_parts(rng, scale, age=age, hu=hu, widen_mm=hydrocephalus_mm)
    tight = 1.0 if hydrocephalus_mm == 0 else 0.55
    coarse = spread.coarse
    return Anatomy(
        half_mm=half,
        exponent=float(rng.uniform(2.1, 2.5)),
        taper=float(rng.uniform(0.04, 0.12)),
        skull_mm=float(rng.uniform(4.5, 8.5)),
        scalp_mm=float(rng.uniform(3.5, 9.0)),
        gap_mm=tight * (0.9 + 2.6 * age * float(rng.uniform(0.6, 1.2))),
        sulcus_mm=tight * (0.45 + 0.8 * age * float(rng.uniform(0.6, 1.3))),
        ventricle_mm=-0.6 + 3.6 * age * float(rng.uniform(0.5, 1.2)) + hydrocephalus_mm,
        ventricle_asymmetry_mm=float(np.clip(rng.normal(0, 0.5), -1.2, 1.2)),
        grey_hu=grey,
        white_hu=grey - float(rng.uniform(6.5, 10.5)),
        csf_hu=hu.csf,
        bone_hu=hu.bone,
        diploe_hu=float(rng.uniform(0.28, 0.55)) * hu.bone,
        muscle_hu=float(rng.uniform(*spread.muscle_hu)),
        muscle_share=float(rng.uniform(0.35, 0.9)),
        vessel_hu=vessel,
        pale_hu=float(max(0.0, rng.uniform(-4, 12) * age)),
        contrast=contrast,
        shape=Waves.draw(rng, 0.9, 110, 220),
        thickness=Waves.draw(rng, 0.7, 45, 110),
        atrophy=Waves.draw(rng, 0.35, 40, 120),
        tissue_mix=Waves.draw(rng, 1.0, 12, 40, n=8),
        sulci=TextureNoise.draw(rng, 15.0, 3.0 if coarse else 2.0, 64 if coarse else 80),
        face_parts=parts.face,
        base_parts=parts.base,
        brain_parts=parts.brain,
    )
