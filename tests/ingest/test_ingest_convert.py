"""Convert: what comes in, what is refused and why, and that nothing identifying is kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from crude_heads import crude_head
from stacks import write_series

from headctssl.cli.main import run_command
from headctssl.dataset.image_io import read, write_nifti
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.table import read_table, write_table
from headctssl.dataset.verify import verify_dataset
from headctssl.errors import DataError, UsageError
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.converters import CONVERTERS, load_converter
from headctssl.ingest.privacy import keyed_hash, subject_key
from headctssl.ingest.report import IngestReport
from headctssl.ingest.verdict import judge
from headctssl.settings import read_json
from headctssl.types import Volume

ROW, COLUMN = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])


def head(seed: int) -> Volume:
    return crude_head(seed, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0))


def head_series(folder: Path, seed: int, **tags: object) -> np.ndarray:
    volume = head(seed)
    positions = np.arange(24)[:, None] * np.array([0.0, 0.0, 8.0])
    write_series(folder, volume.hu, positions, ROW, COLUMN, 6.0, **tags)
    return volume.hu


def dicom(source: Path, **options: object) -> ConvertResult:
    return convert(source, 900, source_format="dicom", num_workers=1, quiet=True, **options)


def folder(source: Path, **options: object) -> ConvertResult:
    return convert(source, 900, source_format="folder", num_workers=1, quiet=True, **options)


def test_a_dicom_tree_becomes_one_straight_file_per_series(tmp_path: Path, roots: Path) -> None:
    source = tmp_path / "Doe^Jane"
    first = head_series(source / "visit1", 1)
    names = [f"b{k:02d}.dcm" for k in range(24)]
    second = head_series(source / "visit1", 2, names=names)  # two series in one folder
    head_series(source / "visit2/scout", 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    head_series(source / "visit2/mr", 4, Modality="MR")
    write_series(source / "short", head(5).hu[:4], np.arange(4)[:, None] * np.array([0, 0, 8.0]), ROW, COLUMN, 6.0)
    (source / "readme.txt").write_text("x")
    (source / "broken.dcm").write_bytes(b"x" * 300)
    (source / "copy.dcm").write_bytes((source / "visit1/0001.dcm").read_bytes())
    result = dicom(source)
    assert result.folder == roots / "Dataset900_HeadCT"
    assert [v.status for v in result.accepted] == ["accept", "accept"]
    assert sorted(v.source for v in result.rejected) == ["broken.dcm", "short (4 slices)"]
    assert "at least 10" in " ".join(v.reasons[0] for v in result.rejected)
    ignored = sorted(entry.reason for entry in result.ignored)
    assert ignored == ["1 files that are not DICOM", "24 files of modality MR", "24 localisers"]
    assert result.exit_code == 1
    data = load_raw_dataset(900)
    found = [read(data.image_path(case)).hu for case in data.case_ids]
    assert any(np.array_equal(hu, first) for hu in found)
    assert any(np.array_equal(hu, second) for hu in found)
    row = data.cases.iloc[0]
    assert row["kvp"] == "120"
    assert row["age"] == "90"  # 93 in the header
    assert row["sex"] == "F"
    assert row["study_description"] == "CT HEAD"
    assert row["gantry_tilt_deg"] == "0"
    assert data.cases["subject_id"].nunique() == 1
    assert data.cases["session_id"].nunique() == 2
    assert verify_dataset(900, num_workers=1, quiet=True).faults == ()


def test_nothing_identifying_is_kept(tmp_path: Path, roots: Path) -> None:
    head_series(tmp_path / "export/PAT_4711_Doe", 1)
    series = str(pydicom.dcmread(tmp_path / "export/PAT_4711_Doe/0001.dcm").SeriesInstanceUID)
    result = dicom(tmp_path / "export/PAT_4711_Doe")
    kept = [p for p in result.folder.rglob("*") if p.is_file() and p.name != "ingest_report.json"]
    assert len(kept) == 3
    for path in kept:
        content = path.read_bytes() + path.name.encode()
        for word in (b"Doe", b"Jane", b"4711", b"20200229", series.encode(), str(tmp_path).encode()):
            assert word not in content, (path.name, word)
    key = roots / ".subject_key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_ids_depend_on_the_key_and_only_on_it(roots: Path) -> None:
    key = subject_key(roots / ".subject_key", create=True)
    assert subject_key(roots / ".subject_key", create=True) == key
    assert keyed_hash(key, "4711") == keyed_hash(key, "4711")
    assert keyed_hash(key, "4711") != keyed_hash(bytes(32), "4711")
    (roots / ".subject_key").write_text("zz")
    with pytest.raises(DataError, match="does not hold a key"):
        subject_key(roots / ".subject_key", create=True)


def test_imports_add_up_and_the_same_scan_is_skipped(tmp_path: Path, roots: Path) -> None:
    head_series(tmp_path / "a", 1)
    head_series(tmp_path / "b", 2)
    write_nifti(tmp_path / "one.nii.gz", head(3))
    assert len(dicom(tmp_path / "a").accepted) == 1
    again = dicom(tmp_path / "a")
    assert (len(again.accepted), len(again.skipped), again.exit_code) == (0, 1, 0)
    dicom(tmp_path / "b")
    result = folder(tmp_path / "one.nii.gz")
    assert result.accepted[0].source == "one.nii.gz"
    assert folder(tmp_path / "one.nii.gz").skipped[0].reason.startswith("in the dataset already")
    data = load_raw_dataset(900)
    assert len(data.cases) == 3
    # The same PatientID in two imports is one subject; the file without one is its own.
    assert data.cases["subject_id"].nunique() == 2
    assert len(read_json(roots / "Dataset900_HeadCT/ingest_report.json", IngestReport).scans) == 3


def test_overwrite_converts_again_and_keeps_cells_filled_by_hand(tmp_path: Path, roots: Path) -> None:
    write_nifti(tmp_path / "one.nii.gz", head(3))
    result = folder(tmp_path / "one.nii.gz")
    table = roots / "Dataset900_HeadCT/cases.csv"
    cases = read_table(table)
    cases["subject_id"], cases["site"] = "person_7", "north"
    write_table(table, cases)
    image = result.folder / cases["image"].iloc[0]
    image.write_bytes(b"damaged")
    assert len(folder(tmp_path / "one.nii.gz", overwrite=True).accepted) == 1
    np.testing.assert_array_equal(read(image).hu, head(3).hu)
    again = read_table(table)
    assert again.loc[0, "subject_id"] == "person_7"
    assert again.loc[0, "site"] == "north"
    assert len(again) == 1


def test_good_files_go_through_when_others_fail(tmp_path: Path, roots: Path) -> None:
    source = tmp_path / "files"
    write_nifti(source / "good.nii.gz", head(1))
    write_nifti(source / "twin.nii.gz", head(1))
    content = (source / "good.nii.gz").read_bytes()
    (source / "truncated.nii.gz").write_bytes(content[: len(content) // 2])
    (source / "picture.nii.gz").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    volume = head(2)
    write_nifti(source / "cormack.nii.gz", Volume((volume.hu + 1000).astype(np.int16), volume.affine, volume.info))
    result = folder(source)
    assert [v.source for v in result.accepted] == ["good.nii.gz"]
    assert [v.source for v in result.rejected] == ["cormack.nii.gz", "picture.nii.gz", "truncated.nii.gz"]
    assert [entry.reason for entry in result.skipped] == ["the same scan as good.nii.gz"]
    assert "not Hounsfield units" in result.rejected[0].reasons[0]
    assert not any(str(tmp_path) in reason for v in result.rejected for reason in v.reasons)
    assert len(load_raw_dataset(900).cases) == 1
    report = read_json(roots / "Dataset900_HeadCT/ingest_report.json", IngestReport)
    assert sorted(v.status for v in report.scans) == ["accept", "reject", "reject", "reject"]
    assert run_command("convert", [str(source), "-d", "901", "--from", "folder", "--quiet", "--num_workers", "1"]) == 1


def test_labels_come_from_a_csv_by_file_name(tmp_path: Path, roots: Path) -> None:
    for seed in (1, 2, 3):
        write_nifti(tmp_path / f"in/s{seed}.nii.gz", head(seed))
    labels = tmp_path / "labels.csv"
    labels.write_text("bleed,image,subject_id,age,site\n1,s1.nii.gz,P1,50,north\n,s2,P1,,south\n0,gone.nii,P2,,x\n")
    result = folder(tmp_path / "in", labels=labels)
    assert len(result.accepted) == 3
    data = load_raw_dataset(900)
    assert [spec.name for spec in data.info.labels] == ["bleed"]
    assert sorted(data.labels()["bleed"].fillna(-1)) == [-1, -1, 1]
    assert "P1" not in (result.folder / "cases.csv").read_text()
    assert data.cases["subject_id"].nunique() == 2
    assert set(data.cases["site"]) == {"north", "south", ""}
    labels.write_text("bleed,name\n1,s1\n")
    with pytest.raises(DataError, match="names the images"):
        folder(tmp_path / "in", labels=labels, overwrite=True)
    labels.write_text("bleed,image\n1,s1\n0,s1.nii.gz\n")
    with pytest.raises(DataError, match="does not name one image"):
        folder(tmp_path / "in", labels=labels, overwrite=True)
    labels.write_text("image,segmentation\ns1,a.nii\n")
    with pytest.raises(DataError, match=r"segmentation .a\.nii. cannot be read"):
        folder(tmp_path / "in", labels=labels, overwrite=True)
    with pytest.raises(UsageError, match="--labels"):
        dicom(tmp_path / "in", labels=labels)


def test_a_dry_run_writes_nothing(tmp_path: Path, roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nifti(tmp_path / "in/a.nii.gz", head(1))
    assert run_command("convert", [str(tmp_path / "in"), "-d", "5", "--from", "folder", "--dry_run"]) == 0
    assert not roots.exists()
    out = capsys.readouterr().out
    assert "1 accept" in out
    assert "nothing was written" in out


def test_when_every_scan_is_rejected_the_code_is_2_and_no_dataset_is_made(tmp_path: Path, roots: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"x" * 50)
    assert run_command("convert", [str(tmp_path / "a.nii.gz"), "-d", "5", "--from", "folder"]) == 2
    assert list(roots.glob("Dataset*")) == []


@pytest.mark.parametrize("source_format", sorted(CONVERTERS))
def test_an_empty_source_is_told(tmp_path: Path, roots: Path, source_format: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"No scan was found|is not laid out"):
        convert(tmp_path / "in", 1, source_format=source_format, quiet=True)
    with pytest.raises(UsageError, match="does not exist"):
        convert(tmp_path / "nowhere", 1, source_format=source_format, quiet=True)


def test_names(tmp_path: Path, roots: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", head(1))
    assert folder(tmp_path / "a.nii.gz", name="Mine").folder.name == "Dataset900_Mine"
    with pytest.raises(UsageError, match="another name"):
        folder(tmp_path / "a.nii.gz", name="Other")
    with pytest.raises(UsageError, match="plain name"):
        convert(tmp_path / "a.nii.gz", 1, source_format="folder", name="a b", quiet=True)
    with pytest.raises(UsageError, match=r"Unknown source format 'dcm'"):
        convert(tmp_path / "a.nii.gz", 1, source_format="dcm", quiet=True)
    assert all(callable(load_converter(name)) for name in CONVERTERS)


def test_several_processes_give_the_same_dataset(tmp_path: Path, roots: Path) -> None:
    for seed in (1, 2, 3):
        write_nifti(tmp_path / f"in/s{seed}.nii.gz", head(seed))
    convert(tmp_path / "in", 900, source_format="folder", num_workers=2, quiet=True)
    convert(tmp_path / "in", 901, source_format="folder", num_workers=1, quiet=True)
    one, other = load_raw_dataset(900), load_raw_dataset(901)
    pd.testing.assert_frame_equal(one.cases, other.cases)
    for case in one.case_ids:
        assert one.image_path(case).read_bytes() == other.image_path(case).read_bytes()


def test_verdicts() -> None:
    good = head(1)
    assert judge(good) == ("accept", ())

    def with_notes(*notes: str) -> Volume:
        return Volume(good.hu, good.affine, type(good.info)("nifti", (1, 1, 1), (1.0, 1.0, 1.0), notes=notes))

    status, reasons = judge(with_notes("A gap of 10.00 mm where slices are 5.00 mm apart: 1 slice(s) may be missing."))
    assert status == "review"
    assert "may be missing" in reasons[0]
    assert judge(with_notes("The file states no orientation: x"))[0] == "review"
    assert judge(with_notes("The values may not be Hounsfield units: x"))[0] == "review"
    assert judge(with_notes("The values are not Hounsfield units: x"))[0] == "reject"
    assert judge(with_notes("Resampled to straight slices."))[0] == "accept"
    assert judge(Volume(good.hu[:9], good.affine, good.info))[0] == "reject"
    assert judge(Volume(good.hu[:, :, :6], good.affine, good.info))[0] == "reject"
    empty = np.full_like(good.hu, -1000)
    assert judge(Volume(empty, good.affine, good.info))[0] == "reject"


def test_help_is_fast_and_light() -> None:
    code = (
        "import sys\nfrom headctssl.cli.main import run_command\n"
        "try:\n    run_command('convert', ['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'SimpleITK', 'pandas', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.realdata
def test_real_sources_go_into_one_dataset(roots: Path) -> None:
    real = os.environ.get("headctssl_test_data", "")
    if not real:
        pytest.skip("headctssl_test_data is not set")
    assert dicom(Path(real) / "head_ct_ge_tilt").exit_code == 0
    assert folder(Path(real) / "scct_template/scct_hu.nii.gz").exit_code == 0
    assert folder(Path(real) / "scct_template/scct_cormack_units.nii").exit_code == 2
    data = load_raw_dataset(900)
    assert len(data.cases) == 2
    assert list(data.cases["gantry_tilt_deg"]) == ["18.5", "0"]
    tilted = read(data.image_path(data.case_ids[0]))
    assert not tilted.info.straightened  # what was written is straight
    assert tilted.hu.shape == (37, 611, 512)
