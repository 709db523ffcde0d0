"""Test phantom on a real head: the base's skull and ventricles are found, findings and displacements are in it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from headctssl.dataset.image_io import read, write_nifti
from headctssl.errors import DataError, UsageError
from headctssl.ingest.phantom.acquisition import Acquisition, acquire
from headctssl.ingest.phantom.anatomy import Anatomy, draw_anatomy
from headctssl.ingest.phantom.base_head import BaseHead, base_of, load_base, vary_base
from headctssl.ingest.phantom.findings import FINDING_IDS
from headctssl.ingest.phantom.growth import Inside, make_iph, make_ivh, make_shift
from headctssl.ingest.phantom.growth_dura import make_edh, make_sdh
from headctssl.ingest.phantom.make import make_case, make_phantom
from headctssl.ingest.phantom.scene import Scene
from headctssl.ingest.phantom.warp import Warp
from headctssl.types import Volume, VolumeInfo

SCAN = Acquisition(matrix=120, pixel_mm=2.0, thickness_mm=2.0, slices=90, bottom_mm=-90, noise_hu=0.0)


@cache
def known() -> Anatomy:
    """A parametric head that is written as an image and read as if it were a real one."""
    return replace(draw_anatomy(np.random.default_rng(2)), ventricle_mm=3.0)


@cache
def image() -> Volume:
    scan = acquire(Scene(known()), SCAN)
    return Volume(scan.hu, scan.affine, VolumeInfo("test", scan.hu.shape, (2.0, 2.0, 2.0)))


@cache
def base() -> BaseHead:
    return base_of(image(), "image")


def millilitres(mask: np.ndarray) -> float:
    return float(mask.sum() * SCAN.pixel_mm**3 / 1000)


def test_skull_and_ventricles_are_those_of_the_image() -> None:
    found = base()
    for got, true in zip(found.half_mm[1:], known().half_mm[1:], strict=True):
        assert got == pytest.approx(true, abs=5)
    rng = np.random.default_rng(0)
    points = rng.uniform(-75, 75, (3, 9000)).astype(np.float32)
    middle = np.array(found.origin_mm) + image().affine[:3, 3]  # in head coordinates of the parametric head
    there = tuple((points[a] + np.float32(middle[a])).astype(np.float32) for a in range(3))
    position = (points[0], points[1], points[2])
    above = there[0] > 10
    true = known().inner_table(there)
    near = above & (np.abs(true) < 10)  # the parametric distance is one to first order near the surface
    assert near.sum() > 100
    assert np.percentile(np.abs(found.inner_table(position) - true)[near], 90) < 4
    ventricle = known().lateral_ventricle(there)
    assert np.mean(found.lateral_ventricle(position)[ventricle < -2] < 1) > 0.8
    assert np.mean(found.lateral_ventricle(position)[(ventricle > 5) & above] > 0) > 0.97


@pytest.mark.parametrize("side", ["left", "right"])
def test_findings_have_their_volume_and_side(side: str) -> None:
    head = vary_base(base(), np.random.default_rng(1))
    rng = np.random.default_rng(3)
    for finding, tolerance in (
        (make_iph(rng, Inside(head), side, 15.0), 0.1),
        (make_sdh(rng, head, side, 40.0), 0.12),
        (make_edh(rng, head, side, 25.0), 0.12),
        (make_ivh(rng, Inside(head), side, 5.0), 0.15),
    ):
        scan = acquire(Scene(head, (finding,)), SCAN)
        mask = scan.segmentation == FINDING_IDS[finding.kind]
        assert millilitres(mask) == pytest.approx(finding.volume_ml, rel=tolerance)
        x = (SCAN.frame.matrix @ np.argwhere(mask).mean(axis=0) + SCAN.frame.offset)[2]
        assert x > 4 if side == "left" else x < -4
        assert np.median(scan.hu[mask]) == pytest.approx(finding.hu, abs=5)


def test_shift_moves_the_image_inside_the_skull_only() -> None:
    head = base()
    still, moved = (acquire(Scene(head, (), w), SCAN).hu.astype(float) for w in (Warp(), Warp(make_shift(head, 8.0))))
    change = np.abs(moved - still)
    index = np.argwhere(np.ones(still.shape, bool)).T
    position = SCAN.frame.matrix @ index + SCAN.frame.offset[:, None]
    inner = head.inner_table(tuple(p.astype(np.float32) for p in position)).reshape(still.shape)
    assert change[inner > 2].max() <= 1
    assert np.percentile(change[inner < -20], 95) > 4
    line = np.arange(-30, 30, 0.5, dtype=np.float32)
    z, y = Warp(make_shift(head, 8.0)).shift.centre
    own = Warp(make_shift(head, 8.0)).back((np.full_like(line, z), np.full_like(line, y), line))[2]
    assert float(np.interp(0, own, line)) == pytest.approx(8.0, abs=0.1)


def test_subjects_differ_and_cases_are_functions_of_their_numbers() -> None:
    a, b, again = (make_case(5, "clinical", case=c, acquisition=SCAN, base=base()) for c in (1, 2, 1))
    assert np.array_equal(a.volume.hu, again.volume.hu)
    assert a.scene.anatomy.stretch != b.scene.anatomy.stretch
    with pytest.raises(UsageError, match="tissues"):
        make_case(5, "clinical", base=base(), tissues=True)


def test_what_is_no_head_is_refused() -> None:
    hu = np.full((60, 80, 80), -1000, np.int16)
    hu[10:50, 15:65, 15:65] = 40
    with pytest.raises(DataError, match="no closed skull"):
        base_of(Volume(hu, np.diag([3.0, 3.0, 3.0, 1.0]), VolumeInfo("test", hu.shape, (3.0, 3.0, 3.0))), "ball")


def test_command_makes_a_dataset_of_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    write_nifti(tmp_path / "patient.nii.gz", image())
    folder = make_phantom(
        3, n=1, profile="laptop", base=tmp_path / "patient.nii.gz", num_workers=1, quiet=True, name="Based"
    )
    text = (folder / "dataset.json").read_text()
    assert "variations of one real head" in text
    assert "CC0" not in text
    for file in (folder / "dataset.json", folder / "cases.csv"):
        assert "patient" not in file.read_text().replace("No patient", "")
    made = read(next((folder / "images").glob("*.nii.gz")))
    assert 20 < float(np.median(made.hu[(made.hu > 0) & (made.hu < 90)])) < 60
    with pytest.raises(DataError):
        make_phantom(4, n=1, profile="laptop", base=tmp_path / "absent.nii.gz", num_workers=1, quiet=True)
    assert load_base(tmp_path / "patient.nii.gz").half_mm == pytest.approx(base().half_mm)
