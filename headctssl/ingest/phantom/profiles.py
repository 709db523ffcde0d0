"""Profiles: what is drawn for a case: how often, how large, on which scanner."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from headctssl.contract import LabelSpec
from headctssl.errors import unknown_name
from headctssl.ingest.phantom.acquisition import Acquisition
from headctssl.ingest.phantom.anatomy import Anatomy, draw_anatomy
from headctssl.ingest.phantom.findings import FINDING_IDS, Finding, Side, Swelling
from headctssl.ingest.phantom.growth import make_fracture, make_iph, make_ivh, make_sdh, make_shift, surface_point
from headctssl.ingest.phantom.scene import Scene

__all__ = ["PROFILES", "Profile", "draw_acquisition", "draw_scene", "find_profile"]

_CLINICAL_LABELS = (
    LabelSpec(name="ICH", mirror="self"),
    LabelSpec(name="IPH", mirror="self"),
    LabelSpec(name="IVH", mirror="self"),
    LabelSpec(name="SDH", mirror="self"),
    LabelSpec(name="BleedLocation-Left", mirror="BleedLocation-Right"),
    LabelSpec(name="BleedLocation-Right", mirror="BleedLocation-Left"),
    LabelSpec(name="Fracture", mirror="self"),
    LabelSpec(name="MidlineShift", mirror="self"),
)
_LAPTOP_LABELS = tuple(spec for spec in _CLINICAL_LABELS if spec.name in ("IPH", "IVH", "SDH"))


@dataclass(frozen=True)
class Profile:
    """How cases are drawn. Shares are in [0, 1]; volumes in mL are log-uniform between two limits."""

    name: str
    labels: tuple[LabelSpec, ...]
    iph: float
    sdh: float
    ivh: float
    fracture: float
    shift: float  # without a large bleed
    shift_large: float  # with more than 25 mL on one side
    iph_ml: tuple[float, float]
    sdh_ml: tuple[float, float]
    ivh_ml: tuple[float, float]
    gap_mm: tuple[float, float]  # width of a fracture
    shift_mm: tuple[float, float]
    swelling: float  # scalp swelling without a fracture
    coarse: bool

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings that can occur, in the order of their values in the segmentation."""
        return tuple(kind for kind in FINDING_IDS if _shares(self)[kind] > 0)


PROFILES: dict[str, Profile] = {
    "clinical": Profile(
        "clinical", _CLINICAL_LABELS, iph=0.35, sdh=0.3, ivh=0.22, fracture=0.25, shift=0.1, shift_large=0.6,
        iph_ml=(0.5, 60), sdh_ml=(3, 90), ivh_ml=(1, 25), gap_mm=(1.5, 3.0), shift_mm=(4, 14), swelling=0.15,
        coarse=False,
    ),
    "laptop": Profile(
        "laptop", _LAPTOP_LABELS, iph=0.45, sdh=0.45, ivh=0.45, fracture=0.0, shift=0.0, shift_large=0.5,
        iph_ml=(8, 60), sdh_ml=(25, 110), ivh_ml=(8, 30), gap_mm=(4.5, 6.0), shift_mm=(5, 12), swelling=0.1,
        coarse=True,
    ),
}  # fmt: skip


def find_profile(name: str) -> Profile:
    """The profile of a name.

    Raises:
        UsageError: there is no such profile.
    """
    if name not in PROFILES:
        raise unknown_name("profile", name, PROFILES)
    return PROFILES[name]


def draw_scene(rng: np.random.Generator, profile: Profile) -> Scene:
    """Draw a subject: head and findings.

    Args:
        rng: generator of the subject.
        profile: how often and how large.
    """
    anatomy = draw_anatomy(rng, coarse=profile.coarse)
    nodes = 14_000 if profile.coarse else 50_000
    present = {kind: bool(rng.uniform() < share) for kind, share in _shares(profile).items()}
    volumes = {
        "IPH": _log_uniform(rng, profile.iph_ml),
        "SDH": _log_uniform(rng, profile.sdh_ml),
        "IVH": _log_uniform(rng, profile.ivh_ml),
    }
    sides: dict[str, Side] = {kind: _draw_side(rng) for kind in ("IPH", "SDH", "IVH", "Fracture")}
    if rng.uniform() < 0.4:
        sides["IVH"] = "both"
    if present["IVH"]:
        # Blood in the ventricles widens them.
        wider = anatomy.ventricle_mm + 0.05 * volumes["IVH"] + rng.uniform(0.2, 1.2)
        anatomy = replace(anatomy, ventricle_mm=max(wider, 1.0))
    shift_mm = _draw_shift(rng, profile, present, volumes, sides)
    shift = make_shift(anatomy, shift_mm) if shift_mm else None
    findings: list[Finding] = []
    if present["IVH"]:
        findings.append(make_ivh(rng, anatomy, shift, sides["IVH"], volumes["IVH"], nodes))
    if present["IPH"]:
        findings.append(make_iph(rng, anatomy, shift, sides["IPH"], volumes["IPH"], nodes))
    if present["SDH"]:
        findings.append(make_sdh(rng, anatomy, sides["SDH"], volumes["SDH"], nodes))
    swellings: list[Swelling] = []
    if present["Fracture"]:
        fracture = make_fracture(
            rng, anatomy, sides["Fracture"], float(rng.uniform(35, 90)), float(rng.uniform(*profile.gap_mm))
        )
        findings.append(fracture)
        if rng.uniform() < 0.7:
            swellings.append(Swelling(fracture.centre, float(rng.uniform(2.5, 9)), float(rng.uniform(16, 26))))
    elif rng.uniform() < profile.swelling:
        direction = np.append(rng.uniform(0, 0.6), rng.normal(size=2))
        direction /= np.linalg.norm(direction)
        centre = surface_point(anatomy, (float(direction[0]), float(direction[1]), float(direction[2])))
        swellings.append(Swelling(centre, float(rng.uniform(2.5, 9)), float(rng.uniform(16, 26))))
    return Scene(anatomy, tuple(findings), shift, tuple(swellings))


def _shares(profile: Profile) -> dict[str, float]:
    return {"IPH": profile.iph, "SDH": profile.sdh, "IVH": profile.ivh, "Fracture": profile.fracture}


def _draw_side(rng: np.random.Generator) -> Side:
    return "left" if rng.uniform() < 0.5 else "right"


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _draw_shift(
    rng: np.random.Generator,
    profile: Profile,
    present: dict[str, bool],
    volumes: dict[str, float],
    sides: dict[str, Side],
) -> float:
    """Shift in mm, away from the larger bleed; without one to either side."""
    load = {"left": 0.0, "right": 0.0}
    for kind in ("IPH", "SDH"):
        if present[kind]:
            load[sides[kind]] += volumes[kind]
    large = max(load.values()) > 25
    chance, mm, coin = rng.uniform(), _log_uniform(rng, profile.shift_mm), rng.uniform()
    if chance >= (profile.shift_large if large else profile.shift):
        return 0.0
    if load["left"] == load["right"]:
        return mm if coin < 0.5 else -mm
    return -mm if load["left"] > load["right"] else mm


def draw_acquisition(rng: np.random.Generator, profile: Profile, anatomy: Anatomy) -> Acquisition:
    """Draw a scan: sizes, pose and noise as in practice, or coarse and quick for `laptop`.

    Args:
        rng: generator of the scan.
        profile: which scanner.
        anatomy: the head, for the vertex must be in the scan.
    """
    vertex = anatomy.half_mm[0] + anatomy.skull_mm + anatomy.scalp_mm + 6
    if profile.coarse:
        spacing = float(rng.choice([2.75, 3.0, 3.25]))
        rotation = (float(rng.normal(0, 4)), float(rng.normal(0, 2.5)), float(rng.normal(0, 4)))
        move = (float(rng.uniform(-4, 4)), float(rng.uniform(4, 12)), float(rng.uniform(-5, 5)))
        bottom = float(rng.uniform(-78, -70))
        return Acquisition(
            matrix=round(238 / spacing), pixel_mm=spacing, thickness_mm=spacing, bottom_mm=bottom,
            slices=int(np.ceil((vertex + move[0] - bottom + 6) / spacing)), rotation_deg=rotation, shift_mm=move,
            noise_hu=float(rng.uniform(2.0, 4.0)), noise_seed=int(rng.integers(2**62)),
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
    return Acquisition(
        matrix=matrix, pixel_mm=float(rng.uniform(238, 258)) / matrix, thickness_mm=thickness,
        slices=int(np.ceil((top - bottom) / normal)), bottom_mm=bottom, rotation_deg=rotation, shift_mm=move,
        tilt_deg=round(tilt, 1), sheared=sheared, sharp=sharp, circle=circle,
        noise_hu=float(rng.uniform(3.0, 4.5) * (5 / thickness) ** 0.4 * (1.6 if sharp else 1.0)),
        padding_hu=int(rng.choice([-1024, -1500, -2000, -3024])) if circle else -1024,
        noise_seed=int(rng.integers(2**62)),
    )  # fmt: skip
