"""Test phantom findings: every finding, label, mask and displacement against the geometry that made it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from headctssl.ingest.phantom.acquisition import Acquisition, Scan, acquire
from headctssl.ingest.phantom.anatomy import Anatomy, draw_anatomy
from headctssl.ingest.phantom.draw_scene import draw_scene
from headctssl.ingest.phantom.findings import FINDING_IDS, Finding
from headctssl.ingest.phantom.growth import Inside, make_iph, make_mass, make_shift
from headctssl.ingest.phantom.growth_dura import make_edh, make_sah, make_sdh
from headctssl.ingest.phantom.growth_lesions import make_infarct, make_tumour
from headctssl.ingest.phantom.growth_skull import make_fracture, make_rod_fracture
from headctssl.ingest.phantom.labels import MASS_EFFECT_MM, labels_of, mass_effect_mm
from headctssl.ingest.phantom.profiles import PROFILES
from headctssl.ingest.phantom.scene import Scene
from headctssl.ingest.phantom.shapes import TISSUES
from headctssl.ingest.phantom.warp import Mass, Warp

SCAN = Acquisition(
    matrix=150, pixel_mm=1.6, thickness_mm=1.6, slices=112, bottom_mm=-92, noise_hu=0.0, cupping_hu=0.0,
    rotation_deg=(8.0, -4.0, 6.0), shift_mm=(2.0, -4.0, 3.0),
)  # fmt: skip
MAKE = {
    "EDH": (lambda rng, head, side: make_edh(rng, head, side, 30.0), 30.0, 0.1),
    "Infarct": (lambda rng, head, side: make_infarct(rng, Inside(head), side, 35.0), 35.0, 0.12),
    "Tumor": (lambda rng, head, side: make_tumour(rng, Inside(head), side, 20.0), 20.0, 0.1),
    "SAH": (lambda rng, head, side: make_sah(rng, Inside(head), side, 12.0), 12.0, 0.45),
}


@cache
def head(seed: int = 0) -> Anatomy:
    return replace(draw_anatomy(np.random.default_rng(seed)), ventricle_mm=2.0)


@cache
def normal() -> Scan:
    return acquire(Scene(head()), SCAN, tissues=True)


def places(mask: np.ndarray) -> np.ndarray:
    """Head coordinates (3, n) of a mask's voxels."""
    return SCAN.frame.matrix @ np.argwhere(mask).T + SCAN.frame.offset[:, None]


def tissue_at(scan: Scan, points: np.ndarray) -> np.ndarray:
    """Tissue of the voxels nearest to head coordinates (3, n)."""
    index = np.rint(np.linalg.solve(SCAN.frame.matrix, points - SCAN.frame.offset[:, None])).astype(int)
    return scan.tissues[tuple(index)]


def as_position(points: np.ndarray):
    return tuple(p.astype(np.float32) for p in points)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MAKE)
def test_finding_has_its_volume_side_and_place(kind: str, side: str) -> None:
    make, wanted, tolerance = MAKE[kind]
    finding: Finding = make(np.random.default_rng(4), head(), side)
    scan = acquire(Scene(head(), (finding,)), SCAN)
    mask = scan.segmentation == FINDING_IDS[kind]
    assert finding.volume_ml == pytest.approx(wanted, rel=0.02)
    assert mask.sum() * SCAN.pixel_mm**3 / 1000 == pytest.approx(wanted, rel=tolerance)
    z, y, x = places(mask)
    assert np.mean(x > -3) > 0.98 if side == "left" else np.mean(x < 3) > 0.98
    assert np.mean(head().inner_table(as_position(np.array([z, y, x]))) < 1) > 0.99
    before = normal().tissues[mask]
    if kind == "SAH":  # blood is where CSF was, and where CSF shared a voxel with brain
        spaces = head().subarachnoid(*[as_position(np.array([z, y, x]))] * 2, *surfaces(z, y, x))
        assert spaces.mean() > 0.5
        assert np.median(scan.hu[mask] - normal().hu[mask]) > 8
    if kind == "Infarct":  # brain that is darker than it was, in grey and in white matter; CSF is as it was
        brain = [before == TISSUES[name] for name in ("cortex", "white_matter", "cerebellum", "deep_grey")]
        assert np.any(brain, axis=0).mean() > 0.85
        for there in brain:
            if there.sum() > 50:
                assert np.median(scan.hu[mask][there]) == pytest.approx(finding.hu, abs=7)  # edges are soft
        assert np.mean(before == TISSUES["ventricle"]) < 0.03
    if kind == "EDH":
        assert np.median(scan.hu[mask]) == pytest.approx(finding.hu, abs=3)


def surfaces(z: np.ndarray, y: np.ndarray, x: np.ndarray):
    position = as_position(np.array([z, y, x]))
    return head().inner_table(position), head().lateral_ventricle(position)


def test_epidural_is_a_lens_and_subdural_a_crescent() -> None:
    """Of the same volume, the lens is thick and round, the crescent thin and long."""
    rng = np.random.default_rng(2)
    lens, crescent = make_edh(rng, head(), "left", 35.0), make_sdh(rng, head(), "left", 35.0)
    extents = []
    for bleed in (lens, crescent):
        mask = acquire(Scene(head(), (bleed,)), SCAN).segmentation > 0
        points = places(mask)
        depth = -head().inner_table(as_position(points))
        assert depth.max() == pytest.approx(bleed.thickness, abs=2.0)
        extents.append((float(depth.max()), float(np.ptp(points[1]))))
    (deep, wide), (shallow, long) = extents
    assert deep > 1.5 * shallow
    assert long > 1.3 * wide


def test_brain_lies_under_blood_that_pushes_it() -> None:
    """Where a subdural bleed is 12 mm thick, cortex begins 12 mm deeper than without it."""
    bleed = make_sdh(np.random.default_rng(1), head(), "right", 55.0)
    scan = acquire(Scene(head(), (bleed,)), SCAN, tissues=True)
    brain = np.isin(scan.tissues, [TISSUES["cortex"], TISSUES["white_matter"]])
    points = as_position(places(brain))
    local = Inside(head()).local(points)
    under = bleed.pushed_mm(local)
    thick = under > 6
    assert thick.sum() > 2000
    assert np.mean(-local.inner[thick] > under[thick] - 1) > 0.99


def test_chronic_bleed_is_darker_than_brain() -> None:
    bleed = make_sdh(np.random.default_rng(5), head(), "left", 40.0, chronic=True)
    scene = Scene(head(), (bleed,))
    mask = acquire(scene, SCAN).segmentation == FINDING_IDS["SDH"]
    assert np.percentile(acquire(scene, SCAN).hu[mask], 10) < head().white_hu - 3
    labels = labels_of(scene)
    assert (labels["SDH"], labels["ChronicBleed"], labels["ICH"], labels["BleedLocation-Left"]) == (1, 1, 1, 1)


def test_fracture_below_the_vault_is_a_gap_in_a_bone_there() -> None:
    fracture = make_rod_fracture(np.random.default_rng(3), head(), "left", 3.0)
    fine = replace(SCAN, matrix=160, pixel_mm=0.8, thickness_mm=0.8, slices=100, rotation_deg=(0.0, 0.0, 0.0))
    z, y, x = fracture.centre
    fine = replace(fine, bottom_mm=z - 40, shift_mm=(0.0, -y, -x))
    scan, whole = acquire(Scene(head(), (fracture,)), fine), acquire(Scene(head()), fine)
    mask = scan.segmentation == FINDING_IDS["Fracture"]
    assert mask.sum() * 0.8**3 / 1000 == pytest.approx(fracture.volume_ml, rel=0.35)
    assert np.median(whole.hu[mask]) > 450
    assert np.median(scan.hu[mask]) < 250
    labels = labels_of(Scene(head(), (fracture,)))
    assert (labels["Fracture"], labels["OtherFracture"], labels["CalvarialFracture"]) == (1, 1, 0)
    vault = make_fracture(np.random.default_rng(3), head(), "left", 50.0, 2.0)
    labels = labels_of(Scene(head(), (vault,)))
    assert (labels["Fracture"], labels["OtherFracture"], labels["CalvarialFracture"]) == (1, 0, 1)
    assert labels["ICH"] == labels["BleedLocation-Left"] == 0


def test_hydrocephalus_widens_all_ventricles() -> None:
    narrow = draw_anatomy(np.random.default_rng(8))
    wide = draw_anatomy(np.random.default_rng(8), hydrocephalus_mm=6.0)
    volumes, thirds = [], []
    for anatomy in (narrow, wide):
        scan = acquire(Scene(anatomy), SCAN, tissues=True)
        inside = scan.tissues == TISSUES["ventricle"]
        volumes.append(inside.sum() * SCAN.pixel_mm**3 / 1000)
        z, y, x = places(inside)
        thirds.append(float(((np.abs(x) < 8) & (np.abs(z + 4) < 6) & (np.abs(y - 3) < 8)).sum()))
    assert volumes[1] > 2 * volumes[0]
    assert thirds[1] > 1.5 * thirds[0]
    assert wide.sulcus_mm < narrow.sulcus_mm
    assert labels_of(Scene(wide, hydrocephalus_mm=6.0))["Hydrocephalus"] == 1
    assert labels_of(Scene(narrow))["Hydrocephalus"] == 0


def test_mass_keeps_the_volume_of_what_it_pushes() -> None:
    """Far from the ball, r0^3 = r^3 - R^3: the tissue of a shell stays the tissue of a shell."""
    mass = Mass((3.0, -4.0, 20.0), 10.0, 1e6)
    r = np.linspace(18, 60, 50, dtype=np.float32)
    assert np.allclose(mass.push_mm(r), r - (r**3 - 10.0**3) ** (1 / 3), atol=0.06)
    inner = np.linspace(0, 60, 600, dtype=np.float32)
    assert (np.diff(inner - mass.push_mm(inner)) > -1e-3).all()  # squeezed, never folded
    faded = Mass(mass.centre, 10.0, 30.0)
    assert float(faded.push_mm(np.float32(90.0) * np.ones(1, np.float32))[0]) < 0.01


def test_painted_brain_is_displaced_as_the_warp_says() -> None:
    """The tissue at a place is the one that a brain at rest has where the warp says it came from."""
    bleed = make_iph(np.random.default_rng(6), Inside(head()), "left", 35.0)
    mass = make_mass(bleed.blob.centre, bleed.volume_ml, 0.9)
    warp = Warp(make_shift(head(), -6.0), (mass,))
    pushed = acquire(Scene(head(), (), warp), SCAN, tissues=True)
    points = places(np.isin(pushed.tissues, [TISSUES["ventricle"], TISSUES["deep_grey"]]))
    came = np.array(warp.back(as_position(points)))
    moved = np.linalg.norm(came - points, axis=0)
    assert moved.max() > 5
    found, at_rest = tissue_at(pushed, points), tissue_at(normal(), points)
    assert np.mean(tissue_at(normal(), came) == found) > 0.88
    assert np.mean(at_rest == found) < 0.7  # as it would be if nothing had moved
    assert warp.midline_mm(9.0 * head().scale[0], -6.0 * head().scale[1]) < -6.0


def test_midline_is_found_where_the_scene_says() -> None:
    """A mass and a shift together: the septum between the ventricles is at `midline_mm` in the scan."""
    anatomy = head(1)
    centre = (9.0 * anatomy.scale[0], -6.0 * anatomy.scale[1], 34.0)
    scene = Scene(anatomy, (), Warp(make_shift(anatomy, -5.0), (make_mass(centre, 40.0, 0.8),)))
    assert scene.midline_mm < -5.5
    z, y, _ = centre
    fine = Acquisition(
        matrix=200, pixel_mm=0.4, thickness_mm=0.8, slices=3, bottom_mm=z - 0.8, shift_mm=(0.0, -y, 0.0), noise_hu=0.0
    )
    scan = acquire(scene, fine, tissues=True)
    frame = fine.frame
    row = round((y - frame.offset[1]) / frame.matrix[1, 1])
    x = frame.offset[2] + frame.matrix[2, 2] * np.arange(fine.matrix)
    septum = (scan.tissues[1, row] != TISSUES["ventricle"]) & (np.abs(x - scene.midline_mm) < 2.5)
    assert septum.any()
    assert float(x[septum].mean()) == pytest.approx(scene.midline_mm, abs=0.5)


def test_posterior_fossa_has_a_tentorium_and_a_cerebellum() -> None:
    tissues = normal().tissues
    z, y, x = places(tissues == TISSUES["cerebellum"])
    assert 60 < len(z) * SCAN.pixel_mm**3 / 1000 < 200
    assert np.mean(head().cerebellum(as_position(np.array([z, y, x]))) > -1) > 0.99
    assert np.mean(y > 0) > 0.97
    sheet = places(tissues == TISSUES["tentorium"])
    assert sheet.shape[1] > 200
    assert np.abs(head().cerebellum(as_position(sheet))).max() < 2.5
    assert (head().tentorium_edge(as_position(sheet)) < 2).all()


def test_labels_follow_from_the_scene() -> None:
    seen: dict[str, set[int]] = {}
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed), PROFILES["clinical"])
        labels = labels_of(scene)
        assert set(labels) == {spec.name for spec in PROFILES["clinical"].labels}
        kinds = {f.kind for f in scene.findings}
        assert labels["Fracture"] == max(labels["CalvarialFracture"], labels["OtherFracture"])
        assert labels["ICH"] == int(bool(kinds & {"IPH", "IVH", "SDH", "EDH", "SAH"}))
        assert labels["ChronicBleed"] <= labels["SDH"]
        assert labels["MassEffect"] == int(mass_effect_mm(scene) >= MASS_EFFECT_MM)
        assert labels["MidlineShift"] <= 1 if abs(scene.midline_mm) >= 3 else labels["MidlineShift"] == 0
        for finding in scene.findings:
            low, high = PROFILES["clinical"].volume_ml.get(finding.kind, (0.0, 60.0))
            assert 0.3 * low <= finding.volume_ml <= 1.001 * high
        for name, value in labels.items():
            seen.setdefault(name, set()).add(value)
    assert all(values == {0, 1} for values in seen.values())


def test_energy_kernel_and_motion_do_what_they_say() -> None:
    base = replace(SCAN, slices=40, bottom_mm=-10.0)
    plain = acquire(Scene(head()), base).hu.astype(float)
    bone = plain > 700
    low = acquire(Scene(head()), replace(base, kvp=80)).hu.astype(float)
    assert np.median((low[bone] - 100) / (plain[bone] - 100)) == pytest.approx(1.32, abs=0.01)
    soft = (plain > 0) & (plain < 90)
    assert np.abs(low - plain)[soft].max() <= 1
    offset = acquire(Scene(head()), replace(base, offset_hu=4.0)).hu.astype(float)
    assert np.median((offset - plain)[soft]) == 4
    assert np.abs((offset - plain)[plain < -990]).max() <= 1
    ringing = acquire(Scene(head()), replace(base, ringing=0.8)).hu.astype(float)
    assert np.percentile(np.abs(np.diff(ringing, axis=2)), 99) > 1.1 * np.percentile(np.abs(np.diff(plain, axis=2)), 99)
    moved = acquire(Scene(head()), replace(base, motion_mm=6.0, motion_span=(0.0, 16.0))).hu.astype(float)
    changed = np.flatnonzero(np.abs(moved - plain).max(axis=(1, 2)) > 1)
    level = base.bottom_mm + base.thickness_mm * changed
    assert (level.min(), level.max()) == (pytest.approx(0, abs=1.6), pytest.approx(16, abs=1.6))
    low_slices = replace(SCAN, slices=20, bottom_mm=-58.0, streak_hu=12.0)
    change = acquire(Scene(head()), low_slices).hu - acquire(Scene(head()), replace(low_slices, streak_hu=0.0)).hu
    assert change.min() < -8
    metal = replace(low_slices, streak_hu=0.0, bottom_mm=-10.0, metal_mm=(5.0, -20.0, 10.0))
    assert acquire(Scene(head()), metal).hu.max() > 2500
