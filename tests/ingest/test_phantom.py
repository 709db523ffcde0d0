"""Test phantom: the scans against the geometry that made them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import UsageError
from headctssl.ingest.phantom.acquisition import Acquisition, acquire
from headctssl.ingest.phantom.anatomy import Anatomy, draw_anatomy
from headctssl.ingest.phantom.draw_scene import draw_scene
from headctssl.ingest.phantom.fields import Block, CoarseGrid, Frame, TextureNoise, Waves, coverage, sheet_coverage
from headctssl.ingest.phantom.findings import FINDING_IDS
from headctssl.ingest.phantom.growth import Inside, make_iph, make_ivh, make_shift
from headctssl.ingest.phantom.growth_dura import make_sdh
from headctssl.ingest.phantom.growth_skull import make_fracture
from headctssl.ingest.phantom.make import make_case, subject_of
from headctssl.ingest.phantom.profiles import PROFILES
from headctssl.ingest.phantom.scene import Scene
from headctssl.ingest.phantom.shapes import TISSUES, Part
from headctssl.ingest.phantom.warp import Warp

STRAIGHT = Acquisition(matrix=150, pixel_mm=1.6, thickness_mm=1.6, slices=112, bottom_mm=-92, noise_hu=0.0)
POSED = replace(STRAIGHT, rotation_deg=(14.0, -6.0, 9.0), shift_mm=(3.0, -5.0, 4.0))


def _head(seed: int = 0) -> Anatomy:
    return replace(draw_anatomy(np.random.default_rng(seed)), ventricle_mm=2.0)


def _to_head(acquisition: Acquisition, mask: np.ndarray) -> np.ndarray:
    """Centroid of a mask in head coordinates."""
    frame = acquisition.frame
    return frame.matrix @ np.argwhere(mask).mean(axis=0) + frame.offset


def _millilitres(acquisition: Acquisition, mask: np.ndarray) -> float:
    return float(mask.sum() * abs(np.linalg.det(acquisition.affine[:3, :3])) / 1000)


def test_phantom_case_is_a_function_of_seed_and_case() -> None:
    first, again = make_case(3, "laptop", case=2), make_case(3, "laptop", case=2)
    assert np.array_equal(first.volume.hu, again.volume.hu)
    assert np.array_equal(first.segmentation, again.segmentation)
    other = make_case(4, "laptop", case=2)
    assert first.volume.hu.shape != other.volume.hu.shape or not np.array_equal(first.volume.hu, other.volume.hu)


def test_phantom_every_fifth_case_is_a_second_scan() -> None:
    subjects = [subject_of(7, case) for case in range(1, 26)]
    assert len({s for s, _ in subjects}) == 20
    assert len(set(subjects)) == 25
    for case in (5, 10, 15, 20, 25):
        subject, session = subjects[case - 1]
        assert session == 2
        assert (subject, 1) in subjects[case - 5 : case - 1]
    first = next(c for c in range(1, 5) if subject_of(7, c)[0] == subject_of(7, 5)[0])
    a, b = make_case(7, "laptop", case=first), make_case(7, "laptop", case=5)
    assert a.scene.findings == b.scene.findings
    assert a.scene.anatomy.half_mm == b.scene.anatomy.half_mm
    assert np.array_equal(a.scene.anatomy.sulci.values, b.scene.anatomy.sulci.values)
    assert a.labels == b.labels
    assert a.acquisition != b.acquisition


@pytest.mark.parametrize(("kind", "side"), [("IPH", "left"), ("IPH", "right"), ("SDH", "left"), ("SDH", "right")])
@pytest.mark.parametrize("acquisition", [STRAIGHT, POSED], ids=["straight", "posed"])
def test_phantom_bleed_has_its_volume_and_side(kind: str, side: str, acquisition: Acquisition) -> None:
    rng = np.random.default_rng(11)
    head = _head()
    warp = Warp(make_shift(head, -7.0 if side == "left" else 7.0))
    make = {
        "IPH": lambda: make_iph(rng, Inside(head, warp), side, 12.0),
        "SDH": lambda: make_sdh(rng, head, side, 45.0),
    }
    bleed = make[kind]()
    scan = acquire(Scene(head, (bleed,), warp), acquisition)
    mask = scan.segmentation == FINDING_IDS[kind]
    assert bleed.volume_ml == pytest.approx(12.0 if kind == "IPH" else 45.0, rel=0.02)
    assert _millilitres(acquisition, mask) == pytest.approx(bleed.volume_ml, rel=0.1)
    x = _to_head(acquisition, mask)[2]
    assert x > 8 if side == "left" else x < -8
    assert np.median(scan.hu[mask]) == pytest.approx(bleed.hu, abs=5)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_phantom_ventricular_blood_is_in_the_ventricle_of_its_side(side: str) -> None:
    head = _head(2)
    bleed = make_ivh(np.random.default_rng(5), Inside(head), side, 9.0)
    acquisition = replace(STRAIGHT, matrix=170, pixel_mm=1.2, thickness_mm=1.2, slices=75, bottom_mm=-42)
    with_blood = acquire(Scene(head, (bleed,)), acquisition, tissues=True)
    without = acquire(Scene(head), acquisition, tissues=True)
    mask = with_blood.segmentation == FINDING_IDS["IVH"]
    assert _millilitres(acquisition, mask) == pytest.approx(bleed.volume_ml, rel=0.1)
    assert without.tissues is not None
    inside = np.isin(without.tissues[mask], [TISSUES["ventricle"], TISSUES["white_matter"], TISSUES["calcification"]])
    assert inside.mean() > 0.99
    assert (without.tissues[mask] == TISSUES["ventricle"]).mean() > 0.9
    points = acquisition.frame.matrix @ np.argwhere(mask).T + acquisition.frame.offset[:, None]
    left = float((points[2] > 0).mean())
    assert {"left": left > 0.98, "right": left < 0.02, "both": 0.08 < left < 0.92}[side]


@pytest.mark.parametrize("mm", [-9.0, 5.0, 13.0])
def test_phantom_midline_moves_by_the_stated_distance(mm: float) -> None:
    """The septum pellucidum between the two ventricles is found in the scan itself."""
    head = _head(1)
    shift = make_shift(head, mm)
    fine = replace(STRAIGHT, matrix=200, pixel_mm=0.4, thickness_mm=0.8, slices=3)
    z, y = shift.centre
    fine = replace(fine, bottom_mm=z - 0.8, shift_mm=(0.0, -y, 0.0))
    scan = acquire(Scene(head, (), Warp(shift)), fine, tissues=True)
    assert scan.tissues is not None
    frame = fine.frame
    row = round((y - frame.offset[1]) / frame.matrix[1, 1])
    x = frame.offset[2] + frame.matrix[2, 2] * np.arange(fine.matrix)
    line = scan.tissues[1, row] == TISSUES["ventricle"]
    septum = ~line & (np.abs(x - mm) < 2.5)
    assert septum.any()
    assert float(x[septum].mean()) == pytest.approx(mm, abs=0.3)


def test_phantom_midline_stays_without_a_shift() -> None:
    fine = replace(STRAIGHT, matrix=300, pixel_mm=0.8, thickness_mm=0.8, slices=5, bottom_mm=45)
    scan = acquire(Scene(_head(1)), fine, tissues=True)
    assert scan.tissues is not None
    x = _to_head(fine, scan.tissues == TISSUES["falx"])[2]
    assert abs(x) < 0.4


def test_phantom_fracture_is_a_dark_gap_through_the_skull() -> None:
    head = _head(3)
    fracture = make_fracture(np.random.default_rng(8), head, "left", 60.0, 2.5)
    acquisition = replace(STRAIGHT, matrix=220, pixel_mm=1.0, thickness_mm=1.0, slices=150, bottom_mm=-60)
    scan = acquire(Scene(head, (fracture,)), acquisition)
    whole = acquire(Scene(head), acquisition)
    mask = scan.segmentation == FINDING_IDS["Fracture"]
    assert np.median(whole.hu[mask]) > 400
    assert np.median(scan.hu[mask]) < 250
    assert _to_head(acquisition, mask)[2] > 0
    points = (acquisition.frame.matrix @ np.argwhere(mask).T + acquisition.frame.offset[:, None]).T
    t = (points - np.array(fracture.centre)) @ np.array(fracture.along)
    assert np.ptp(t) == pytest.approx(fracture.length_mm, rel=0.15)
    assert _millilitres(acquisition, mask) == pytest.approx(fracture.volume_ml, rel=0.35)


@pytest.mark.parametrize("seed", [0, 1])
def test_phantom_tissues_have_their_hounsfield_units(seed: int) -> None:
    acquisition = replace(POSED, matrix=200, pixel_mm=1.2, thickness_mm=1.2, slices=150)
    scan = acquire(Scene(_head(seed)), acquisition, tissues=True)
    assert scan.tissues is not None
    ranges = {
        "air": (-1024, -980),
        "bone": (500, 1900),
        "diploe": (250, 1200),
        "csf": (0, 30),
        "cortex": (32, 46),
        "white_matter": (24, 38),
        "ventricle": (0, 18),
        "deep_grey": (34, 44),
        "orbit_fat": (-110, -50),
        "globe": (5, 25),
        "sinus_air": (-1024, -200),
        "fat": (-110, 10),
        "falx": (30, 65),
        "holder": (-960, 300),
    }
    for name, (low, high) in ranges.items():
        hu = scan.hu[scan.tissues == TISSUES[name]]
        assert hu.size > 40, name
        assert low <= np.median(hu) <= high, (name, float(np.median(hu)))
    brain = scan.hu[scan.tissues == TISSUES["white_matter"]]
    assert np.median(brain) < np.median(scan.hu[scan.tissues == TISSUES["cortex"]]) - 3


def test_phantom_left_is_the_larger_column() -> None:
    """Axes grow to superior, posterior, left: eyes in front, the vertex at the end."""
    head = _head(0)
    bleed = make_iph(np.random.default_rng(1), Inside(head), "left", 10.0)
    scan = acquire(Scene(head, (bleed,)), STRAIGHT, tissues=True)
    assert np.argwhere(scan.segmentation > 0)[:, 2].mean() > STRAIGHT.matrix / 2 + 5
    assert scan.tissues is not None
    eyes = np.argwhere(scan.tissues == TISSUES["globe"])
    assert eyes[:, 1].mean() < STRAIGHT.matrix / 2 - 25
    assert eyes[:, 0].mean() < STRAIGHT.slices / 2
    holder = np.argwhere(scan.tissues == TISSUES["holder"])
    assert holder[:, 1].mean() > STRAIGHT.matrix / 2 + 20


def test_phantom_thick_slices_are_means_of_thin_ones() -> None:
    scene = Scene(_head(4))
    thin = acquire(scene, replace(STRAIGHT, thickness_mm=1.25, slices=40, bottom_mm=-20.0))
    thick = acquire(scene, replace(STRAIGHT, thickness_mm=5.0, slices=10, bottom_mm=-20.0 + 1.875))
    mean = thin.hu.astype(np.float32).reshape(10, 4, 150, 150).mean(axis=1)
    assert np.abs(mean - thick.hu).mean() < 12
    assert np.corrcoef(mean.ravel(), thick.hu.ravel())[0, 1] > 0.998


def test_phantom_noise_is_correlated_and_as_large_as_said() -> None:
    quiet = replace(STRAIGHT, matrix=256, pixel_mm=0.5, slices=30, bottom_mm=-5)
    noisy = replace(quiet, noise_hu=6.0, noise_seed=3)
    noise = acquire(Scene(_head()), noisy).hu.astype(float) - acquire(Scene(_head()), quiet).hu
    inner = noise[:, 100:156, 100:156]
    assert inner.std() == pytest.approx(6.0, rel=0.08)
    assert np.corrcoef(inner[:, :, 1:].ravel(), inner[:, :, :-1].ravel())[0, 1] > 0.5
    assert abs(np.corrcoef(inner[1:].ravel(), inner[:-1].ravel())[0, 1]) < 0.05


def test_phantom_sheared_and_straight_scans_show_the_same_head() -> None:
    head = _head(6)
    bleed = make_iph(np.random.default_rng(2), Inside(head), "right", 20.0)
    sheared = replace(POSED, tilt_deg=18.0, sheared=True)
    assert abs(float(sheared.affine[:3, 0] @ sheared.affine[:3, 1])) > 0.5
    scan = acquire(Scene(head, (bleed,)), sheared)
    straight = acquire(Scene(head, (bleed,)), POSED)
    a, b = (_to_head(q, s.segmentation > 0) for q, s in ((sheared, scan), (POSED, straight)))
    assert np.abs(a - b).max() < 0.3
    assert _millilitres(sheared, scan.segmentation > 0) == pytest.approx(20.0, rel=0.1)
    tilted = replace(POSED, tilt_deg=18.0)
    assert np.allclose(tilted.affine, POSED.affine)
    assert np.rad2deg(np.arccos((np.trace(tilted.rotation.T @ POSED.rotation) - 1) / 2)) == pytest.approx(18.0)


def test_phantom_profiles_draw_what_they_say() -> None:
    scenes = [draw_scene(np.random.default_rng(s), PROFILES["laptop"]) for s in range(30)]
    for kind in ("IPH", "SDH", "IVH"):
        share = np.mean([any(f.kind == kind for f in s.findings) for s in scenes])
        assert 0.2 < share < 0.7
    assert any(len(s.findings) > 1 for s in scenes)
    assert any(not s.findings for s in scenes)
    for scene in scenes:
        if scene.warp.shift is not None:
            loads = {"left": 0.0, "right": 0.0}
            for f in scene.findings:
                if f.kind in ("IPH", "SDH"):
                    loads[f.side] += f.volume_ml
            assert (scene.warp.shift.mm < 0) == (loads["left"] > loads["right"])


@pytest.mark.parametrize("profile", ["clinical", "laptop"])
def test_phantom_labels_say_what_the_masks_show(profile: str) -> None:
    for case in range(1, 11):
        made = make_case(21, profile, case=case, acquisition=POSED if profile == "clinical" else None)
        labels = made.labels
        present = {name for name, value in FINDING_IDS.items() if (made.segmentation == value).any()}
        assert {k for k in FINDING_IDS if labels[k]} == present
        assert set(made.masks) == present
        blood = {k: m for k, m in made.masks.items() if k != "Fracture"}
        assert labels["ICH"] == bool(blood)
        sides = set()
        for finding in made.scene.findings:
            if finding.kind != "Fracture":
                x = _to_head(made.acquisition, made.masks[finding.kind])[2]
                if finding.side != "both":
                    assert (x > 0) == (finding.side == "left")
                sides |= {"left", "right"} if finding.side == "both" else {finding.side}
        assert labels["BleedLocation-Left"] == ("left" in sides)
        assert labels["BleedLocation-Right"] == ("right" in sides)
        assert labels["MidlineShift"] == (abs(made.scene.midline_mm) >= 3)


def test_phantom_unknown_profile_lists_the_known() -> None:
    with pytest.raises(UsageError, match="clinical, laptop"):
        make_case(0, "labtop")


@settings(max_examples=20, deadline=None)
@given(st.floats(-5, 5), st.floats(0.3, 3))
def test_phantom_coverage_is_a_share(distance: float, width: float) -> None:
    value = float(coverage(np.array([distance], np.float32), width)[0])
    assert value == pytest.approx(min(max(0.5 - distance / width, 0), 1), abs=1e-5)
    thin = sheet_coverage(np.array([0.0], np.float32), 0.1, width)
    assert float(thin[0]) == pytest.approx(min(1.0, 0.2 / width), abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_phantom_coarse_grid_follows_a_smooth_field(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    frame = Frame(turn * np.array([2.0, 0.7, 0.7]), rng.normal(0, 20, 3))
    waves = Waves.draw(rng, 1.0, 80, 160)
    grid = CoarseGrid(frame, np.array([[0, 20], [0, 60], [0, 50]]), 4.0, lambda p: {"f": waves.at(p)})
    k, j, i = np.arange(3.0, 6.0), np.arange(10.0, 50.0), np.arange(0.0, 50.0)
    assert np.abs(grid.at("f", k, j, i) - waves.at(frame.position(k, j, i))).max() < 0.03
    # A part of a block is cut from what was made for all of it, or made by itself where the grid does not reach.
    k, j, i = np.arange(-4.0, 24.0), np.arange(70.0), np.arange(-3.0, 60.0)
    block = Block(frame, k, j, i, width=1.0, background=0.0)
    for window in np.s_[6:9, 20:30, 5:50], np.s_[5:24, 0:61, 4:54], np.s_[0:28, 0:70, 0:63], np.s_[0:2, 0:3, 0:1]:
        z, y, x = window
        np.testing.assert_array_equal(block.field(grid, "f", window), grid.at("f", k[z], j[y], i[x]))


def test_phantom_texture_has_its_wavelength() -> None:
    noise = TextureNoise.draw(np.random.default_rng(0), 16.0, 2.0, 48)
    power = np.abs(np.fft.rfftn(noise.values)) ** 2
    f = np.sqrt(sum(q**2 for q in np.meshgrid(*[np.fft.fftfreq(48, 2.0)] * 2, np.fft.rfftfreq(48, 2.0), indexing="ij")))
    assert power[(f < 1 / 24.5) | (f > 1 / 11)].sum() < 1e-3 * power.sum()
    assert float(noise.values.std()) == pytest.approx(1.0, abs=1e-3)


def test_phantom_parts_have_signed_distances() -> None:
    line = np.linspace(-20, 20, 81, dtype=np.float32)
    zero = np.zeros_like(line)
    ball = Part("ellipsoid", (0.0, 0.0, 0.0), (6.0, 6.0, 6.0), (0.0, 0.0), 0.0, "csf")
    assert np.allclose(ball.distance((line, zero, zero))[line != 0], (np.abs(line) - 6)[line != 0], atol=1e-3)
    rod = Part("rod", (0.0, -5.0, 0.0), (0.0, 5.0, 0.0), (2.0, 2.0), 0.0, "csf")
    assert np.allclose(rod.distance((line, zero, zero)), np.abs(line) - 2, atol=1e-4)
