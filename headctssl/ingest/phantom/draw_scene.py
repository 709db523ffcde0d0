"""Draw scene: a subject of a profile: a head, what is wrong with it, and what that does to its brain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from headctssl.ingest.phantom.anatomy import Anatomy, draw_anatomy
from headctssl.ingest.phantom.base_head import BaseHead, vary_base
from headctssl.ingest.phantom.bleeds import Epidural, Subdural
from headctssl.ingest.phantom.findings import Finding, Side, Swelling
from headctssl.ingest.phantom.growth import Inside, make_iph, make_ivh, make_mass, make_shift
from headctssl.ingest.phantom.growth_dura import make_edh, make_sah, make_sdh
from headctssl.ingest.phantom.growth_lesions import make_infarct, make_tumour
from headctssl.ingest.phantom.growth_skull import make_fracture, make_rod_fracture, surface_point
from headctssl.ingest.phantom.head_shape import HeadShape
from headctssl.ingest.phantom.lesions import Fracture
from headctssl.ingest.phantom.profiles import Limits, Profile
from headctssl.ingest.phantom.scene import Scene
from headctssl.ingest.phantom.warp import Mass, Warp

__all__ = ["draw_scene"]

_STREAMS = (
    "head", "present", "size", "side", "shift", "IPH", "SDH", "IVH", "Fracture", "EDH", "SAH", "Infarct", "Tumor",
    "mass", "swelling", "hydrocephalus",
)  # fmt: skip
_SPACE = ("IPH", "SDH", "EDH", "Tumor", "Infarct")  # what takes up room
_LEAST_MASS_ML = 4.0  # smaller findings displace nothing that could be seen
_LARGE_ML = 25.0  # on one side, from which a shift is likely


@dataclass
class _Subject:
    """What was drawn for a subject before any finding is grown."""

    profile: Profile
    rng: Mapping[str, np.random.Generator]
    present: dict[str, bool] = field(default_factory=dict)
    volume_ml: dict[str, float] = field(default_factory=dict)
    side: dict[str, Side] = field(default_factory=dict)


def draw_scene(rng: np.random.Generator, profile: Profile, base: BaseHead | None = None) -> Scene:
    """Draw a subject: head and findings. Every kind of finding has random numbers of its own.

    Args:
        rng: generator of the subject.
        profile: how often and how large.
        base: a real head to vary instead of a parametric one; then no hydrocephalus, no fracture below the vault and
            no swelling of the scalp are drawn.
    """
    streams = dict(zip(_STREAMS, rng.spawn(len(_STREAMS)), strict=True))
    subject = _Subject(profile, streams)
    for kind, share in profile.share.items():
        subject.present[kind] = bool(streams["present"].uniform() < share)
        subject.volume_ml[kind] = _log_uniform(streams["size"], profile.volume_ml.get(kind, (1.0, 1.0)))
        subject.side[kind] = "left" if streams["side"].uniform() < 0.5 else "right"
    _settle_sides(subject)
    water = streams["hydrocephalus"]
    widened = float(water.uniform(3.5, 8.0)) if water.uniform() < profile.hydrocephalus else 0.0
    anatomy: Anatomy | BaseHead
    if base is not None:
        anatomy, widened = vary_base(base, streams["head"]), 0.0
    else:
        anatomy = draw_anatomy(streams["head"], profile.spread, hydrocephalus_mm=widened)
        if subject.present.get("IVH", False):
            # Blood in the ventricles widens them.
            wider = anatomy.ventricle_mm + 0.05 * subject.volume_ml["IVH"] + water.uniform(0.2, 1.2)
            anatomy = replace(anatomy, ventricle_mm=max(wider, 1.0))
    mm = _draw_shift(subject)
    warp = Warp(make_shift(anatomy, mm) if mm else None)
    findings, masses = _grow(subject, anatomy, warp)
    warp = replace(warp, masses=masses)
    swellings = () if isinstance(anatomy, BaseHead) else _swellings(subject, anatomy, findings)
    return Scene(anatomy, findings, warp, swellings, widened)


def _settle_sides(subject: _Subject) -> None:
    """Blood in the ventricles and in the cisterns is often on both sides; two dural bleeds are on different sides."""
    coin = subject.rng["side"].uniform(size=2)
    if coin[0] < 0.4:
        subject.side["IVH"] = "both"
    if coin[1] < 0.5:
        subject.side["SAH"] = "both"
    if subject.present.get("SDH", False) and subject.present.get("EDH", False):
        subject.side["EDH"] = "left" if subject.side["SDH"] == "right" else "right"


def _grow(subject: _Subject, anatomy: HeadShape, warp: Warp) -> tuple[tuple[Finding, ...], tuple[Mass, ...]]:
    """Grow what is present, in the order in which it is painted, after the bleeds that push the brain.

    A mass pushes tissue away from its own centre: it changes where everything else in the brain is found.
    """
    profile, present, ml, side = subject.profile, subject.present, subject.volume_ml, subject.side
    nodes = profile.nodes
    dural: list[Subdural | Epidural] = []
    if present.get("SDH", False):
        rng = subject.rng["SDH"]
        chronic = bool(rng.uniform() < profile.chronic)
        dural.append(make_sdh(rng, anatomy, side["SDH"], ml["SDH"], nodes, chronic=chronic))
    if present.get("EDH", False):
        dural.append(make_edh(subject.rng["EDH"], anatomy, side["EDH"], ml["EDH"], nodes))
    masses: list[Mass] = []
    inside = Inside(anatomy, warp, tuple(dural))
    solid: dict[str, Finding] = {}
    for kind, make in (("Tumor", make_tumour), ("IPH", make_iph)):
        if present.get(kind, False):
            grown = make(subject.rng[kind], inside, side[kind], ml[kind], nodes)
            solid[kind] = grown
            if ml[kind] > _LEAST_MASS_ML and subject.rng["mass"].uniform() < profile.mass:
                masses.append(make_mass(grown.blob.centre, grown.volume_ml, float(subject.rng["mass"].uniform(0.4, 1))))
                inside = replace(inside, warp=replace(warp, masses=tuple(masses)))
    soft: tuple[tuple[str, Callable[..., Finding]], ...] = (
        ("Infarct", make_infarct), ("IVH", make_ivh), ("SAH", make_sah),
    )  # fmt: skip
    for kind, grow in soft:
        if present.get(kind, False):
            solid[kind] = grow(subject.rng[kind], inside, side[kind], ml[kind])
    order = ("Infarct", "Tumor", "IVH", "SAH", "IPH")
    findings: list[Finding] = [solid[kind] for kind in order if kind in solid]
    findings.extend(dural)
    if present.get("Fracture", False):
        findings.extend(_fractures(subject, anatomy))
    return tuple(findings), tuple(masses)


def _fractures(subject: _Subject, anatomy: HeadShape) -> list[Finding]:
    rng, profile = subject.rng["Fracture"], subject.profile
    side = subject.side["Fracture"]
    kind = float(rng.uniform())
    vault = make_fracture(rng, anatomy, side, float(rng.uniform(35, 90)), float(rng.uniform(*profile.gap_mm)))
    if not anatomy.base_parts:  # the bones below the vault of a real head are not known piece by piece
        return [vault]
    below = make_rod_fracture(rng, anatomy, side, float(rng.uniform(1.5, 4.0)))
    if kind < profile.fracture_below:
        return [below]
    return [vault, below] if kind < 1.5 * profile.fracture_below else [vault]


def _swellings(subject: _Subject, anatomy: HeadShape, findings: tuple[Finding, ...]) -> tuple[Swelling, ...]:
    """A scalp haematoma over most fractures of the vault, and over some heads without one."""
    rng = subject.rng["swelling"]
    height, spread, coin = float(rng.uniform(2.5, 9)), float(rng.uniform(16, 26)), rng.uniform()
    direction = np.append(rng.uniform(0, 0.6), rng.normal(size=2))
    direction /= np.linalg.norm(direction)
    for finding in findings:
        if isinstance(finding, Fracture) and coin < 0.7:
            return (Swelling(finding.centre, height, spread),)
    if coin < subject.profile.swelling:
        centre = surface_point(anatomy, (float(direction[0]), float(direction[1]), float(direction[2])))
        return (Swelling(centre, height, spread),)
    return ()


def _log_uniform(rng: np.random.Generator, limits: Limits) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _draw_shift(subject: _Subject) -> float:
    """Shift in mm, away from what takes up more room; without anything to either side."""
    load = {"left": 0.0, "right": 0.0}
    for kind in _SPACE:
        if subject.present.get(kind, False):
            load[subject.side[kind]] += subject.volume_ml[kind]
    rng, profile = subject.rng["shift"], subject.profile
    large = max(load.values()) > _LARGE_ML
    chance, mm, coin = rng.uniform(), _log_uniform(rng, profile.shift_mm), rng.uniform()
    if chance >= (profile.shift_large if large else profile.shift):
        return 0.0
    if load["left"] == load["right"]:
        return mm if coin < 0.5 else -mm
    return -mm if load["left"] > load["right"] else mm
