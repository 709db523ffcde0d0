"""Profiles: how often, how large and on which scanner: the numbers that make a dataset of phantoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headctssl.contract import LabelSpec
from headctssl.errors import unknown_name
from headctssl.ingest.phantom.anatomy import Spread
from headctssl.ingest.phantom.findings import FINDING_IDS

__all__ = ["PROFILES", "Limits", "Profile", "find_profile"]

Limits = tuple[float, float]

_MIRROR = {"BleedLocation-Left": "BleedLocation-Right", "BleedLocation-Right": "BleedLocation-Left"}
_CLINICAL = (
    "ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "Fracture",
    "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift", "Hydrocephalus", "Infarct", "Edema", "Tumor",
)  # fmt: skip
_LAPTOP = ("IPH", "IVH", "SDH")


def _specs(names: tuple[str, ...]) -> tuple[LabelSpec, ...]:
    return tuple(LabelSpec(name=name, mirror=_MIRROR.get(name, "self")) for name in names)


@dataclass(frozen=True)
class Profile:
    """How cases are drawn. Shares are in [0, 1]; volumes in mL are log-uniform between two limits."""

    name: str
    labels: tuple[LabelSpec, ...]
    share: Mapping[str, float]  # of subjects with a finding of `FINDING_IDS`
    volume_ml: Mapping[str, Limits]
    chronic: float  # of subdural bleeds
    fracture_below: float  # of fractures: not in the vault
    hydrocephalus: float
    mass: float  # of bleeds in the brain and tumours: tissue is pushed away from them
    shift: float  # without anything large
    shift_large: float  # with more than 25 mL on one side
    shift_mm: Limits
    gap_mm: Limits  # width of a fracture
    swelling: float  # scalp swelling without a fracture
    coarse: bool
    nodes: int  # at which growth is evaluated
    spread: Spread = field(default_factory=Spread)

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings that can occur, in the order of their values in the segmentation."""
        return tuple(kind for kind in FINDING_IDS if self.share.get(kind, 0.0) > 0)


PROFILES: dict[str, Profile] = {
    "clinical": Profile(
        "clinical",
        _specs(_CLINICAL),
        share={
            "IPH": 0.22, "SDH": 0.24, "IVH": 0.18, "Fracture": 0.24, "EDH": 0.14, "SAH": 0.2, "Infarct": 0.22,
            "Tumor": 0.16,
        },
        volume_ml={
            "IPH": (0.5, 60), "SDH": (3, 60), "IVH": (0.5, 25), "EDH": (2, 60), "SAH": (1, 25), "Infarct": (0.5, 60),
            "Tumor": (0.5, 60),
        },
        chronic=0.35, fracture_below=0.3, hydrocephalus=0.18, mass=0.65, shift=0.06, shift_large=0.65,
        shift_mm=(4, 14), gap_mm=(1.5, 3.0), swelling=0.2, coarse=False, nodes=50_000,
    ),
    "laptop": Profile(
        "laptop",
        _specs(_LAPTOP),
        share={"IPH": 0.45, "SDH": 0.45, "IVH": 0.45},
        volume_ml={"IPH": (8, 60), "SDH": (25, 110), "IVH": (8, 30)},
        chronic=0.0, fracture_below=0.0, hydrocephalus=0.0, mass=0.0, shift=0.0, shift_large=0.5, shift_mm=(5, 12),
        gap_mm=(4.5, 6.0), swelling=0.1, coarse=True, nodes=14_000, spread=Spread(contrast_medium=0.25, coarse=True),
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
