"""Labels: what the geometry of a scene says about every label of the phantom."""

from __future__ import annotations

import numpy as np

from headctssl.ingest.phantom.bleeds import Subdural
from headctssl.ingest.phantom.findings import BLEEDS, Finding
from headctssl.ingest.phantom.lesions import Fracture, RodFracture
from headctssl.ingest.phantom.lump import Lump
from headctssl.ingest.phantom.scene import Scene

__all__ = ["EDEMA_MM", "MASS_EFFECT_MM", "MIDLINE_MM", "labels_of", "mass_effect_mm"]

MIDLINE_MM = 3.0
"""A midline further than this from the middle of the skull is shifted."""

MASS_EFFECT_MM = 5.0
"""Brain displaced by this much or more is mass effect."""

EDEMA_MM = 5.0
"""Oedema that reaches this far around a bleed or a tumour is told as such."""


def mass_effect_mm(scene: Scene) -> float:
    """The largest displacement of brain in mm: sideways, away from a mass, or under blood below the skull."""
    pushes = [0.0, abs(scene.midline_mm), *(bleed.thickness for bleed in scene.dural)]
    for mass in scene.warp.masses:
        pushes.append(float(mass.push_mm(np.linspace(0, 2 * mass.radius_mm, 81, dtype=np.float32)).max()))
    return max(pushes)


def labels_of(scene: Scene) -> dict[str, int]:
    """All labels of the phantom, 0 or 1, by the names of CQ500 and HeadCT-Foundation where they have one."""
    kinds = {f.kind for f in scene.findings}
    blood = [f for f in scene.findings if f.kind in BLEEDS]
    sides = {f.side for f in blood}
    labels = {
        "ICH": bool(blood),
        **{kind: kind in kinds for kind in BLEEDS},
        "BleedLocation-Left": bool(sides & {"left", "both"}),
        "BleedLocation-Right": bool(sides & {"right", "both"}),
        "ChronicBleed": any(isinstance(f, Subdural) and f.chronic for f in scene.findings),
        "Fracture": "Fracture" in kinds,
        "CalvarialFracture": any(isinstance(f, Fracture) for f in scene.findings),
        "OtherFracture": any(isinstance(f, RodFracture) for f in scene.findings),
        "MassEffect": mass_effect_mm(scene) >= MASS_EFFECT_MM,
        "MidlineShift": abs(scene.midline_mm) >= MIDLINE_MM,
        "Hydrocephalus": scene.hydrocephalus_mm > 0,
        "Infarct": "Infarct" in kinds,
        "Edema": any(_oedema_mm(f) >= EDEMA_MM for f in scene.findings),
        "Tumor": "Tumor" in kinds,
    }
    return {name: int(value) for name, value in labels.items()}


def _oedema_mm(finding: Finding) -> float:
    return finding.oedema_mm if isinstance(finding, Lump) else 0.0
