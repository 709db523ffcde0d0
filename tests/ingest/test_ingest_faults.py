"""Faults of a conversion: told before the work, and nothing that is done is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from crude_heads import crude_head
from stacks import write_series

import headctssl.ingest.conversion as module
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.table import read_table, write_table
from headctssl.errors import DataError
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.report import IngestReport
from headctssl.settings import read_json
from headctssl.types import Volume


def head(seed: int) -> Volume:
    return crude_head(seed, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0))


def folder(source: Path, **options: object) -> ConvertResult:
    return convert(source, 900, source_format="folder", num_workers=1, quiet=True, **options)


@pytest.fixture
def source(tmp_path: Path, roots: Path) -> Path:
    for seed in (1, 2, 3):
        write_nifti(tmp_path / f"in/s{seed}.nii.gz", head(seed))
    return tmp_path / "in"


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("scans were read before the fault was told")

    monkeypatch.setattr(module, "map_items", fail)


def labels(source: Path, text: str) -> Path:
    path = source.parent / "labels.csv"
    path.write_text(text)
    return path


def test_a_new_scan_inherits_the_split_of_its_subject(source: Path) -> None:
    text = "image,subject_id\ns1,P1\ns2,P1\ns3,P2\n"
    (source / "s2.nii.gz").rename(source.parent / "s2.nii.gz")
    folder(source, labels=labels(source, text))
    table = source.parent / "raw/Dataset900_HeadCT/cases.csv"
    cases = read_table(table)
    cases["split"] = ["test", "train"]
    write_table(table, cases)
    (source.parent / "s2.nii.gz").rename(source / "s2.nii.gz")
    result = folder(source, labels=labels(source, text))
    assert len(result.accepted) == 1
    assert list(load_raw_dataset(900).cases["split"]) == ["test", "train", "test"]


@pytest.mark.usefixtures("no_work")
def test_labels_that_fit_no_image_are_refused_before_the_work(source: Path) -> None:
    with pytest.raises(DataError, match=r"No line of .* belongs to an image") as error:
        folder(source, labels=labels(source, "image,bleed\nx1,1\nx2,0\n"))
    assert "'x1'" in str(error.value.got)
    assert "'s1.nii.gz'" in str(error.value.expected)


@pytest.mark.usefixtures("no_work")
def test_a_bad_cell_of_labels_is_told_before_the_work(source: Path) -> None:
    with pytest.raises(DataError, match=r"'s2.nii.gz'.*'age' is not a number"):
        folder(source, labels=labels(source, "image,age\ns1,50\ns2,old\n"))
    assert not list((source.parent / "raw").glob("Dataset*"))


def test_a_faulty_table_is_told_before_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = folder(source / "s1.nii.gz").folder / "cases.csv"
    good = table.read_text()
    monkeypatch.setattr(module, "map_items", lambda *_: pytest.fail("scans were read"))
    for bad in (good + good.splitlines()[1] + "\n", good.replace("image", "picture")):
        table.write_text(bad)
        with pytest.raises(DataError, match="cannot be added to"):
            folder(source)
        assert table.read_text() == bad


def test_an_interrupted_conversion_keeps_what_is_done(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_scan, seen = module.convert_scan, []

    def interrupted(job: object) -> object:
        seen.append(job)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return convert_scan(job)  # type: ignore[arg-type]  # a Job, as convert makes it

    monkeypatch.setattr(module, "convert_scan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder(source)
    data = load_raw_dataset(900)
    assert len(data.cases) == 2
    assert len(read_json(data.folder / "ingest_report.json", IngestReport).scans) == 2
    result = folder(source)
    assert (len(result.accepted), len(result.skipped)) == (1, 2)


def test_labels_written_as_decimals_and_a_remark_on_copied_columns(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "s1.nii.gz").write_bytes(b"damaged")
    (source / "s2.mhd").write_text("NDims = 3\nElementDataFile = LIST\n")
    text = "image,bleed,name,age,subject_id\ns1,1.0,Doe,50,P1\ns3,0.0,Roe,51,P2\n"
    convert(source, 900, source_format="folder", num_workers=1, labels=labels(source, text))
    data = load_raw_dataset(900)
    assert [spec.name for spec in data.info.labels] == ["bleed"]
    assert sorted(data.labels()["bleed"].fillna(-1)) == [-1, 0]
    out = capsys.readouterr().out
    assert "Columns copied as they are: age." in out
    assert "'name' was left out" in out
    assert "several files" in out


def test_when_every_labelled_scan_is_rejected_the_others_stay(source: Path) -> None:
    (source / "s1.nii.gz").write_bytes(b"damaged")
    result = folder(source, labels=labels(source, "image,bleed\ns1,1\n"))
    assert len(result.accepted) == 2
    assert list(load_raw_dataset(900).labels()["bleed"].isna()) == [True, True]


def head_series(folder: Path, seed: int, **tags: object) -> None:
    positions = np.arange(24)[:, None] * np.array([0.0, 0.0, 8.0])
    row, column = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    write_series(folder, head(seed).hu, positions, row, column, 6.0, **tags)


def test_a_series_is_known_by_study_and_series_or_by_its_slices(tmp_path: Path, roots: Path) -> None:
    source = tmp_path / "in"
    for seed, study in ((1, "1.2.3"), (2, "1.2.4")):  # one series UID in two studies
        head_series(source / f"s{seed}", seed, SeriesInstanceUID="1.2.9", StudyInstanceUID=study)
    for seed in (3, 4):  # no UIDs
        head_series(source / f"s{seed}", seed, SeriesInstanceUID=None, StudyInstanceUID=None)
    result = convert(source, 900, source_format="dicom", num_workers=1, quiet=True)
    assert [len(result.accepted), len(result.rejected), len(result.skipped)] == [4, 0, 0]
    source.rename(tmp_path / "moved")
    again = convert(tmp_path / "moved", 900, source_format="dicom", num_workers=1, quiet=True)
    assert [len(again.accepted), len(again.skipped)] == [0, 4]


def test_two_tube_voltages_do_not_fault_the_table(tmp_path: Path, roots: Path) -> None:
    head_series(tmp_path / "in", 1, KVP=["80", "140"])
    convert(tmp_path / "in", 900, source_format="dicom", num_workers=1, quiet=True)
    assert "kvp" not in load_raw_dataset(900).cases.columns


def test_a_damaged_header_rejects_one_file(tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head_series(tmp_path / "in", 1)
    read_header = pydicom.dcmread

    def odd(path: Path, **options: object) -> object:
        if Path(path).name == "odd":
            raise NotImplementedError("odd")
        return read_header(path, **options)

    (tmp_path / "in/odd").write_bytes((tmp_path / "in/0001.dcm").read_bytes())
    monkeypatch.setattr(pydicom, "dcmread", odd)
    result = convert(tmp_path / "in", 900, source_format="dicom", num_workers=1, quiet=True)
    assert [v.source for v in result.rejected] == ["odd"]
    assert len(result.accepted) == 1
