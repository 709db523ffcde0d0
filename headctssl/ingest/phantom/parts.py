"""Parts: the small pieces of the face, the skull base and the brain of a synthetic head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headctssl.ingest.phantom.shapes import Part, Triple

__all__ = ["Densities", "HeadParts", "draw_parts"]


@dataclass(frozen=True)
class HeadParts:
    """Parts in the order in which they are painted."""

    face: tuple[Part, ...]
    base: tuple[Part, ...]
    brain: tuple[Part, ...]


@dataclass(frozen=True)
class Densities:
    """Densities in HU of one head."""

    grey: float
    csf: float
    bone: float  # compact
    vessel: float  # blood that flows
    calcified: float  # how large calcifications are against their usual size, no HU


def draw_parts(
    rng: np.random.Generator, scale: Triple, *, age: float, hu: Densities, widen_mm: float = 0.0
) -> HeadParts:
    """Draw the small pieces.

    Args:
        rng: generator of the subject.
        scale: size against the nominal head (z, y, x).
        age: 0 young to 1 old.
        hu: densities.
        widen_mm: added to the radii of the third and the fourth ventricle.
    """
    place = _Placer(scale)
    brain = _brain(rng, place, age, hu, widen_mm)
    return HeadParts(
        tuple(_face(rng, place, hu.bone)),
        tuple(_base(rng, place, hu.bone)),
        (*brain, *_vessels(place, hu.vessel), *_calcifications(rng, place, age, hu.calcified)),
    )


@dataclass(frozen=True)
class _Placer:
    scale: Triple

    def point(self, z: float, y: float, x: float) -> Triple:
        sz, sy, sx = self.scale
        return (z * sz, y * sy, x * sx)

    def ball(
        self, centre: Triple, radii: Triple, hu: float, tissue: str, *, front: float = -1e3, texture: bool = False
    ) -> Part:
        return Part("ellipsoid", self.point(*centre), radii, (0.0, 0.0), hu, tissue, front, texture)

    def rod(self, a: Triple, b: Triple, r0: float, r1: float, hu: float, tissue: str) -> Part:
        return Part("rod", self.point(*a), self.point(*b), (r0, r1), hu, tissue)


def _face(rng: np.random.Generator, place: _Placer, bone_hu: float) -> list[Part]:
    parts: list[Part] = []
    thin = 0.75 * bone_hu
    eye = float(rng.uniform(11.3, 12.5))
    out = float(rng.normal(0, 1.5))  # how far the eyes stand forward
    sinus = float(rng.uniform(0.75, 1.15))
    for side in (-1.0, 1.0):
        parts.append(place.ball((-46, -60, side * 31), (18.5, 27, 19), thin, "bone", front=-80 * place.scale[1]))
        parts.append(place.rod((-58, -72, side * 44), (-56, -20, side * 62), 5, 3.5, thin, "bone"))  # zygoma
        parts.append(place.ball((-70, -58, side * 27), (18, 21, 16), thin, "bone"))  # maxilla
    parts.append(place.ball((-50, -62, 0), (19, 24, 12), thin, "bone"))  # ethmoid
    parts.append(place.rod((-40, -94, 0), (-58, -106, 0), 3.5, 2.5, thin, "bone"))  # nasal bones
    for side in (-1.0, 1.0):
        parts.append(place.ball((-46, -66, side * 31), (16.5, 27, 17), -85, "orbit_fat"))
        globe = (-46.0, -80.0 - out, side * 31)
        parts.append(place.rod((-47, -68 - out, side * 31), (-44, -40, side * 17), 2.2, 2.0, 35, "soft_tissue"))
        parts.append(place.rod((-46, -80, side * 44), (-45, -42, side * 22), 2.2, 1.8, 45, "soft_tissue"))
        parts.append(place.rod((-46, -80, side * 19), (-45, -42, side * 15), 2.2, 1.8, 45, "soft_tissue"))
        parts.append(place.ball(globe, (eye, eye, eye), 50, "soft_tissue"))
        parts.append(place.ball(globe, (eye - 1.3, eye - 1.3, eye - 1.3), 12, "globe"))
        lens = (globe[0], globe[1] - 8.0, globe[2])
        parts.append(place.ball(lens, (4.5, 2.2, 4.5), 85, "soft_tissue"))
        wide = (15 * sinus, 18 * sinus, 13 * sinus)
        parts.append(place.ball((-71, -58, side * 27), wide, -1000, "sinus_air"))
        nose_y = -70.0
        parts.append(place.ball((-72, nose_y, side * 6), (18, 26, 3.0), -1000, "sinus_air"))
    parts.append(place.ball((-50, -62, 0), (17, 22.5, 10.6), -900, "sinus_air", texture=True))
    parts.append(place.ball((-112, 2, 0), (34, 6, 11), -1000, "sinus_air"))  # pharynx
    return parts


def _base(rng: np.random.Generator, place: _Placer, bone_hu: float) -> list[Part]:
    parts: list[Part] = []
    dense = 1.15 * bone_hu
    parts.append(place.rod((-36, -2, 0), (-64, 13, 0), 7, 5, 0.7 * bone_hu, "bone"))  # clivus
    for side in (-1.0, 1.0):
        parts.append(place.rod((-48, 20, side * 58), (-47, -2, side * 18), 10, 5.5, dense, "bone"))  # petrous
        parts.append(place.ball((-58, 26, side * 60), (19, 13, 9), 0.6 * bone_hu, "bone"))  # mastoid
        pneumatised = float(rng.uniform(0.8, 1.05))
        cells = (16 * pneumatised, 11 * pneumatised, 7 * pneumatised)
        parts.append(place.ball((-57, 26, side * 60), cells, -750, "sinus_air", texture=True))
        parts.append(place.rod((-50, 10, side * 46), (-50, 12, side * 78), 2.8, 3.6, -1000, "sinus_air"))  # canal
        parts.append(place.ball((-50, 10, side * 44), (5, 3, 3), -950, "sinus_air"))  # middle ear
    sphenoid = float(rng.uniform(0.7, 1.2))
    parts.append(place.ball((-46, -22, 0), (10, 14, 16), 0.7 * bone_hu, "bone"))
    for side in (-1.0, 1.0):
        air = (8 * sphenoid, 11 * sphenoid, 6.4 * sphenoid)
        parts.append(place.ball((-45, -23, side * 7.5), air, -1000, "sinus_air"))
    frontal = float(rng.uniform(0, 1))
    if frontal > 0.15:
        y, _, high = -87.0, 0, 8 + 10 * frontal
        for side in (-1.0, 1.0):
            wide = (high, 3.2 + 1.6 * frontal, 6 + 8 * frontal * float(rng.uniform(0.6, 1.1)))
            centre = (-22.0, y + 1.0, side * (wide[2] + 1.0))
            shell = (wide[0] + 2, wide[1] + 2.6, wide[2] + 2)
            parts.append(place.ball(centre, shell, bone_hu, "bone", front=-100 * place.scale[1]))
        for side in (-1.0, 1.0):
            wide = (high, 3.2 + 1.6 * frontal, 6 + 8 * frontal * 0.8)
            parts.append(place.ball((-22.0, y + 1.0, side * (wide[2] + 1.2)), wide, -1000, "sinus_air"))
    return parts


def _brain(rng: np.random.Generator, place: _Placer, age: float, hu: Densities, widen_mm: float) -> list[Part]:
    parts: list[Part] = []
    grey_hu, csf_hu = hu.grey, hu.csf
    deep = grey_hu - 0.5
    cistern = 1.0 + 1.6 * age
    third = 1.1 + 2.4 * age * float(rng.uniform(0.5, 1.2)) + 0.7 * widen_mm
    for side in (-1.0, 1.0):
        parts.append(place.ball((2, 0, side * 24), (11, 19, 7), deep, "deep_grey"))  # lentiform
        parts.append(place.ball((6, -20, side * 13), (9, 9, 5), deep, "deep_grey"))  # caudate head
        parts.append(place.ball((4, 9, side * 10), (9, 13, 8), deep - 1, "deep_grey"))  # thalamus
        parts.append(place.rod((-4, -22, side * 39), (8, 8, side * 41), 1.5 * cistern, cistern, csf_hu, "csf"))
        parts.append(place.rod((-4, -24, side * 40), (-6, -26, side * 66), 1.2 * cistern, 2 * cistern, csf_hu, "csf"))
        parts.append(place.rod((8, 8, side * 41), (14, 16, side * 66), 0.8 * cistern, 1.4 * cistern, csf_hu, "csf"))
    parts.append(place.ball((-29, -9, 0), (6 + cistern, 9 + cistern, 11 + cistern), csf_hu, "csf"))  # suprasellar
    parts.append(place.ball((-23, 16, 0), (13, 10.5 + 1.4 * cistern, 15 + 1.2 * cistern), csf_hu, "csf"))  # ambient
    parts.append(place.ball((-45, 8, 0), (20, 13 + cistern, 17 + cistern), csf_hu, "csf"))  # prepontine
    parts.append(place.ball((-24, 12, 0), (14, 11.5, 15), grey_hu - 4, "brain_stem"))  # midbrain
    parts.append(place.ball((-46, 11, 0), (19, 13, 16), grey_hu - 4, "brain_stem"))  # pons
    fourth = cistern + 0.4 * widen_mm
    parts.append(place.ball((-44, 30, 0), (8 + fourth, 4.5 + fourth, 6.5 + fourth), csf_hu, "ventricle"))  # fourth
    parts.append(place.ball((-4, 3, 0), (11, 13, third), csf_hu, "ventricle"))  # third
    return parts


def _vessels(place: _Placer, vessel_hu: float) -> list[Part]:
    """Large arteries of the base and venous sinuses behind the brain."""
    parts: list[Part] = []
    artery, sinus = "vessel", "venous_sinus"
    for side in (-1.0, 1.0):
        parts.append(place.rod((-42, -12, side * 9), (-26, -13, side * 9), 1.9, 1.7, vessel_hu, artery))  # carotid
        parts.append(place.rod((-26, -13, side * 9), (-22, -16, side * 27), 1.5, 1.3, vessel_hu, artery))  # middle
        parts.append(place.rod((-22, -16, side * 27), (-2, -20, side * 38), 1.3, 1.0, vessel_hu, artery))
        parts.append(place.rod((-25, -15, side * 6), (-8, -34, side * 1.5), 1.2, 1.0, vessel_hu, artery))  # anterior
        parts.append(place.rod((-31, 80, side * 6), (-33, 55, side * 54), 3.2, 3.4, vessel_hu, sinus))  # transverse
        parts.append(place.rod((-33, 55, side * 54), (-56, 34, side * 46), 3.6, 3.4, vessel_hu, sinus))  # sigmoid
    parts.append(place.rod((-54, -5, 0), (-28, -5, 0), 1.8, 1.7, vessel_hu, artery))  # basilar
    parts.append(place.rod((2, 36, 0), (-29, 80, 0), 1.8, 2.6, vessel_hu, sinus))  # straight
    return parts


def _calcifications(rng: np.random.Generator, place: _Placer, age: float, size: float) -> list[Part]:
    """Calcium as old heads have it: pineal body, choroid plexus, basal ganglia, falx."""
    parts: list[Part] = []

    def spot(centre: Triple, low: float, high: float, hu: tuple[float, float], stretch: float = 1.0) -> None:
        r = float(rng.uniform(low, high))
        parts.append(place.ball(centre, (r, r * stretch, r), float(rng.uniform(*hu)), "calcification"))

    if rng.uniform() < 0.3 + 0.5 * age:
        spot((2, 27, 0), 1.4, 2.2 + 0.5 * size, (90, 350))
    if rng.uniform() < 0.25 + 0.6 * age:
        for side in (-1.0, 1.0):
            spot((10, 32, side * 21), 1.4, 1.8 + 0.8 * size, (80, 300), 1.4)
    if rng.uniform() < 0.05 + 0.25 * age:
        for side in (-1.0, 1.0):
            spot((2, -2, side * 21), 1.5, 1.5 + 1.2 * size, (55, 160), 1.5)
    if rng.uniform() < 0.1 + 0.35 * age:
        for _ in range(int(rng.integers(1, 4))):
            centre = (float(rng.uniform(34, 60)), float(rng.uniform(-50, 30)), 0.0)
            spot(centre, 1.0, 1.0 + 0.8 * size, (150, 600), 1.8)
    return parts
