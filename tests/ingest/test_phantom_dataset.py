"""Test phantom dataset: what make_phantom and its command write."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headctssl.cli.main import run_command
from headctssl.dataset.image_io import read, read_label_map
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import UsageError
from headctssl.ingest.convert import convert
from headctssl.ingest.phantom.acquisition import Acquisition
from headctssl.ingest.phantom.findings import FINDING_IDS
from headctssl.ingest.phantom.make import _Job, _write_case, make_case, make_phantom


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    return tmp_path


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*.nii.gz"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_phantom_dataset_does_not_depend_on_workers_or_n(roots: Path) -> None:
    alone = make_phantom(1, n=6, seed=5, profile="laptop", num_workers=1, quiet=True)
    spread = make_phantom(2, n=5, seed=5, profile="laptop", num_workers=2, quiet=True)
    a, b = _digests(alone), _digests(spread)
    assert len(a) == 12
    assert {k: a[k] for k in b} == b
    assert (alone / "cases.csv").read_text().splitlines()[:6] == (spread / "cases.csv").read_text().splitlines()


def test_phantom_dataset_is_a_sound_raw_dataset(roots: Path) -> None:
    folder = make_phantom(3, n=5, seed=1, profile="laptop", num_workers=1, quiet=True, name="Small")
    assert folder == roots / "raw" / "Dataset003_Small"
    assert sorted(p.name for p in folder.iterdir()) == ["cases.csv", "dataset.json", "images", "segmentations"]
    assert verify_dataset(3, num_workers=1, quiet=True).faults == ()
    raw = load_raw_dataset(3)
    assert raw.info.profile == "laptop"
    assert list(raw.labels().columns) == ["IPH", "IVH", "SDH"]
    assert [spec.name for spec in raw.info.segmentation_classes] == ["IPH", "SDH", "IVH"]
    assert raw.cases["subject_id"].nunique() == 4
    for case_id in raw.case_ids:
        made = make_case(1, "laptop", case=int(case_id[-4:]))
        volume = read(raw.image_path(case_id))
        assert np.array_equal(volume.hu, made.volume.hu)
        assert np.allclose(volume.affine, made.volume.affine, atol=1e-4)
        assert raw.labels().loc[case_id].to_dict() == {k: made.labels[k] for k in ("IPH", "IVH", "SDH")}
        marks = read_label_map(folder / "segmentations" / f"{case_id}.nii.gz")
        assert np.array_equal(marks.values, made.segmentation)


def test_phantom_sheared_file_is_read_straight_and_padding_is_clamped(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tilted scan written as a sheared file: the bleed is where it was put, the padding is -1024."""
    import headctssl.ingest.phantom.make as module

    sheared = Acquisition(
        matrix=128, pixel_mm=1.9, thickness_mm=2.5, slices=74, bottom_mm=-90, rotation_deg=(9.0, 3.0, -5.0),
        shift_mm=(2.0, 4.0, -6.0), tilt_deg=16.0, sheared=True, padding_hu=-3024, circle=True, noise_hu=2.0,
    )  # fmt: skip
    monkeypatch.setattr(module, "draw_acquisition", lambda *_: sheared)
    case = next(c for c in range(1, 60) if set(make_case(9, "laptop", case=c).masks) == {"IPH"})
    row = _write_case(_Job(roots, 9, case, "laptop"))
    assert row["gantry_tilt_deg"] == "16"
    volume = read(roots / row["image"])
    assert volume.info.tilt_deg == pytest.approx(16.0, abs=0.05)
    assert volume.info.straightened
    assert int(volume.hu.min()) == -1024
    marks = read_label_map(roots / row["segmentation"])
    assert marks.values.shape == volume.hu.shape
    assert set(np.unique(marks.values)) == {0, 1}
    centre = np.append(np.argwhere(marks.values == 1).mean(axis=0), 1.0)
    found = sheared.rotation.T @ ((marks.affine @ centre)[:3] - np.array(sheared.shift_mm))
    straight = make_case(9, "laptop", case=case, acquisition=replace(sheared, sheared=False, tilt_deg=0.0))
    frame = straight.acquisition.frame
    expected = frame.matrix @ np.argwhere(straight.masks["IPH"]).mean(axis=0) + frame.offset
    assert np.abs(found - expected).max() < 0.6


def test_phantom_clinical_labels_mirror_each_other(roots: Path) -> None:
    make_phantom(4, n=1, seed=0, num_workers=1, quiet=True)
    info = load_raw_dataset(4).info
    mirror = {spec.name: spec.mirror for spec in info.labels}
    assert {spec.name: spec.value for spec in info.segmentation_classes} == FINDING_IDS
    assert info.profile == "clinical"
    assert mirror["BleedLocation-Left"] == "BleedLocation-Right"
    assert mirror["BleedLocation-Right"] == "BleedLocation-Left"
    assert all(m == "self" for name, m in mirror.items() if not name.startswith("Bleed"))


def test_phantom_existing_dataset_is_refused_unless_overwrite(roots: Path) -> None:
    make_phantom(5, n=1, profile="laptop", num_workers=1, quiet=True)
    with pytest.raises(UsageError, match="--overwrite"):
        make_phantom(5, n=1, profile="laptop", num_workers=1, quiet=True, name="Other")
    folder = make_phantom(5, n=1, profile="laptop", num_workers=1, quiet=True, name="Other", overwrite=True)
    assert os.listdir(roots / "raw") == [folder.name]
    with pytest.raises(UsageError, match="1 or more"):
        make_phantom(6, n=0, profile="laptop", quiet=True)


def test_phantom_bad_call_keeps_the_existing_dataset(roots: Path) -> None:
    folder = make_phantom(5, n=1, profile="laptop", num_workers=1, quiet=True)
    with pytest.raises(UsageError):
        make_phantom(5, n=1, profile="laptop", num_workers=1, quiet=True, name="no/slash", overwrite=True)
    assert (folder / "dataset.json").exists()


@pytest.mark.parametrize("profile", ["laptop", "clinical"])
def test_phantom_is_marked_as_synthetic_under_any_name(roots: Path, profile: str) -> None:
    make_phantom(5, n=1, profile=profile, num_workers=1, quiet=True, name="Hospital")
    assert load_raw_dataset(5).info.synthetic
    assert any("synthetic" in remark for remark in verify_dataset(5, num_workers=1, quiet=True).remarks)


def test_patients_are_not_converted_into_a_phantom(roots: Path) -> None:
    folder = make_phantom(5, n=1, profile="laptop", num_workers=1, quiet=True)
    before = (folder / "cases.csv").read_bytes()
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="has synthetic scans"):
            convert(folder / "images", 5, source_format="folder", dry_run=dry_run, num_workers=1, quiet=True)
    assert (folder / "cases.csv").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"cases.csv", "dataset.json", "images", "segmentations"}


def test_phantom_never_replaces_real_data(roots: Path) -> None:
    image = roots / "raw" / "Dataset008_Hospital" / "images" / "scan.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"precious")
    with pytest.raises(UsageError, match="not replaced"):
        make_phantom(8, n=1, profile="laptop", num_workers=1, quiet=True, overwrite=True)
    assert image.read_bytes() == b"precious"


def test_phantom_command(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["-d", "7", "-n", "1", "--seed", "2", "--profile", "laptop", "--num_workers", "1"]
    assert run_command("make_phantom", call) == 0
    out = capsys.readouterr().out
    assert "wrote" in out
    assert "cases.csv" in out
    assert run_command("make_phantom", call) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run_command("make_phantom", [*call[:-4], "--profile", "labtop", "--overwrite"]) == 2
    assert "laptop" in capsys.readouterr().err
    assert (roots / "raw" / "Dataset007_Phantom" / "cases.csv").exists()
