"""Resume: a conversion killed at any point goes on, and scans that are added later are all that is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from converter_sources import image, series

import headctssl.ingest.conversion as conversion
import headctssl.ingest.growing as growing
from headctssl.dataset.table import read_table
from headctssl.errors import UsageError
from headctssl.ingest.convert import ConvertResult, convert
from headctssl.ingest.journal import Entry, Journal, write_sources
from headctssl.ingest.report import ScanRecord, read_report
from headctssl.ingest.room import NoRoomError

KILLED_AT_THE_THIRD = """
import os, signal, sys
import headctssl.ingest.conversion as conversion
from headctssl.ingest.convert import convert

convert_scan, seen = conversion.convert_scan, []

def killed(job):
    seen.append(job)
    if len(seen) == 3:
        (job.folder / "images" / ".half.nii.gz.1.tmp.nii.gz").write_bytes(b"half")
        (job.folder / "masks/segmentation").mkdir(parents=True)
        (job.folder / "masks/segmentation/.half.nii.gz.1.tmp.nii.gz").write_bytes(b"half")
        (job.folder / ".cases.csv.1.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return convert_scan(job)

conversion.convert_scan = killed
convert(sys.argv[1], 900, source_format="folder", num_workers=1, quiet=True)
"""


def add_lines(folder: Path, dataset: str) -> None:
    for number in range(40):
        entry = Entry(record=ScanRecord(case_id=f"case_{number}", status="accept"), source="s", path="/s")
        write_sources(folder, dataset, [entry])


def run(source: Path, dataset: int = 900, **options: object) -> ConvertResult:
    return convert(source, dataset, num_workers=1, quiet=True, **{"source_format": "folder", **options})


def content(raw: Path, dataset: int) -> dict[str, bytes]:
    folder = raw / f"Dataset{dataset}_HeadCT"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for seed in (1, 2, 3, 4):
        image(tmp_path / f"in/s{seed}.nii.gz", seed)
    (tmp_path / "in/damaged.nii.gz").write_bytes(b"x" * 60)
    return tmp_path / "in"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that are read in full, as they are read."""
    names: list[str] = []
    convert_scan = conversion.convert_scan

    def noted(job: conversion.Job) -> conversion.Outcome:
        names.append(job.candidate.scan.source)
        return convert_scan(job)

    monkeypatch.setattr(conversion, "convert_scan", noted)
    return names


def test_a_killed_conversion_goes_on_where_it_stopped(source: Path, roots: Path, read: list[str]) -> None:
    run(source, 901)  # makes the key, and what an undisturbed conversion leaves
    done = subprocess.run([sys.executable, "-c", KILLED_AT_THE_THIRD, source], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    folder = roots / "Dataset900_HeadCT"
    assert not (folder / "cases.csv").exists()
    read.clear()
    result = run(source)
    assert read == ["s2.nii.gz", "s3.nii.gz", "s4.nii.gz"]  # the damaged one and the first were done
    assert [len(result.accepted), len(result.skipped), len(result.rejected)] == [3, 1, 1]
    assert content(roots, 900) == content(roots, 901)
    assert sorted(path.name for path in roots.iterdir() if path.is_file()) == [".subject_key", "ingest_sources.csv"]


@pytest.mark.parametrize("killed", ["write_raw_dataset", "write_report", "write_sources"])
def test_a_kill_while_the_files_are_written_loses_nothing(
    source: Path, roots: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    run(source, 901)

    class KillError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KillError

    with monkeypatch.context() as patch:
        patch.setattr(growing, killed, kill)
        with pytest.raises(KillError):
            run(source)
    read.clear()
    assert len(run(source).skipped) == 4
    assert read == []
    assert content(roots, 900) == content(roots, 901)


def test_the_order_in_which_workers_finish_leaves_no_trace(
    source: Path, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, 901)
    map_items = conversion.map_items

    def interrupted(function: object, items: list[object], workers: int) -> Iterator[tuple[int, object]]:
        for position, item in reversed(list(enumerate(items))[-3:]):
            yield position, next(iter(map_items(function, [item], workers)))[1]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "map_items", interrupted)
        patch.setattr(growing.GrowingDataset, "save", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source)
    assert len(run(source).skipped) == 3
    assert content(roots, 900) == content(roots, 901)


def test_a_line_of_the_journal_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "Dataset900_HeadCT")
    record = {"case_id": "c", "status": "reject"}
    journal.path.write_text(f'{{"record": {str(record).replace(chr(39), chr(34))}}}\n{{"record": {{"case_')
    assert [entry.record.case_id for entry in journal.entries()] == ["c"]
    with pytest.raises(UsageError, match="Another conversion into Dataset900_HeadCT is running"):
        Journal(tmp_path, "Dataset900_HeadCT")
    with journal:
        journal.add(Entry(record=ScanRecord(case_id="d", status="accept")))
    with Journal(tmp_path, "Dataset900_HeadCT") as again:
        assert [entry.record.case_id for entry in again.entries()] == ["c", "d"]
        again.done = True
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_read_before_the_dataset_is_held(source: Path, roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that begins while another one ends must not overwrite its cases with what was there before."""
    seen = []
    read_report = growing.read_report

    def noted(folder: Path) -> object:
        with pytest.raises(UsageError, match="Another conversion"):
            Journal(roots, folder.name)
        seen.append(folder)
        return read_report(folder)

    monkeypatch.setattr(growing, "read_report", noted)
    run(source)
    assert len(seen) == 1


def test_conversions_into_two_datasets_lose_no_line_of_the_sources(tmp_path: Path) -> None:
    script = "import sys; sys.path[:0] = sys.argv[3:]; from pathlib import Path; import test_ingest_resume as m; "
    script += "m.add_lines(Path(sys.argv[1]), sys.argv[2])"
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "dataset")]
    running = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, name, *here]) for name in ("Dataset1_A", "Dataset2_B")
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert len(read_table(tmp_path / "ingest_sources.csv")) == 80
    assert [path.name for path in tmp_path.iterdir()] == ["ingest_sources.csv"]


def test_a_journal_of_a_dataset_of_the_same_name_elsewhere_adds_no_cases(
    source: Path, roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "safe/key"
    with monkeypatch.context() as patch:
        patch.setattr(growing.GrowingDataset, "save", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, key=key)
    monkeypatch.setenv("headctssl_raw", str(tmp_path / "other_raw"))
    image(tmp_path / "more/s9.nii.gz", 9)
    folder = run(tmp_path / "more", key=key).folder
    cases = read_table(folder / "cases.csv")
    assert [(folder / name).is_file() for name in cases["image"]] == [True]


def test_only_what_is_new_is_read(source: Path, roots: Path, read: list[str]) -> None:
    run(source)
    assert len(read) == 5
    read.clear()
    again = run(source)
    assert read == []
    assert [len(again.skipped), len(again.rejected), again.exit_code] == [4, 1, 1]
    assert "not read again" in again.rejected[0].reasons[-1]
    image(source / "s5.nii.gz", 5)
    (source / "damaged.nii.gz").write_bytes(b"y" * 61)  # another file now
    added = run(source)
    assert read == ["damaged.nii.gz", "s5.nii.gz"]
    assert len(added.accepted) == 1
    assert len(read_table(roots / "Dataset900_HeadCT/cases.csv")) == 5


def test_a_rejection_is_reconsidered_when_scans_are_read_another_way(
    tmp_path: Path, roots: Path, read: list[str]
) -> None:
    import nibabel as nib

    path = image(tmp_path / "in/a.nii.gz")
    picture = nib.load(path)
    nib.save(nib.Nifti1Image((np.asarray(picture.dataobj) + 1024).astype(np.int16), picture.affine), path)
    image(tmp_path / "in/b.nii.gz", 2)
    assert [v.source for v in run(tmp_path / "in").rejected] == ["a.nii.gz"]
    repaired = run(tmp_path / "in", repair_intensity=True)
    assert read == ["a.nii.gz", "b.nii.gz", "a.nii.gz"]
    assert [v.source for v in repaired.accepted] == ["a.nii.gz"]
    records = {record.status: record for record in read_report(repaired.folder).scans}
    assert set(records) == {"accept"} or set(records) == {"accept", "review"}
    assert "repair_intensity" in read_report(repaired.folder).scans[0].read_with


def test_a_source_that_has_changed_since_is_told(tmp_path: Path, roots: Path, read: list[str]) -> None:
    files = series(tmp_path / "in", 1, head=True)
    last = files[-1].read_bytes()
    files[-1].unlink()
    run(tmp_path / "in", source_format="dicom")
    files[-1].write_bytes(last)  # the export is complete now
    read.clear()
    (told,) = run(tmp_path / "in", source_format="dicom").skipped
    assert "its source has changed since: --overwrite converts it again" in told.reason
    assert read == []
    result = run(tmp_path / "in", source_format="dicom", overwrite=True)
    assert read_report(result.folder).scans[0].shape[0] == 24
    (told,) = run(tmp_path / "in", source_format="dicom").skipped
    assert "has changed" not in told.reason


def test_a_failure_that_says_nothing_of_the_scan_is_not_remembered(
    source: Path, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_scan = conversion.convert_scan

    def full_disk(job: conversion.Job) -> conversion.Outcome:
        if job.candidate.scan.source == "s2.nii.gz":
            raise OSError(28, "No space left on device")
        return convert_scan(job)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert_scan", full_disk)
        result = run(source)
    assert sorted(v.source for v in result.rejected) == ["damaged.nii.gz", "s2.nii.gz"]
    again = run(source)
    assert [v.source for v in again.accepted] == ["s2.nii.gz"]


def test_a_full_disk_stops_the_conversion_and_the_same_call_goes_on(
    source: Path, roots: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import headctssl.ingest.one_scan as one_scan

    run(source, 901)
    write_nifti = one_scan.write_nifti

    def full_disk(path: Path, volume: object) -> None:
        if len(list(path.parent.glob("*.nii.gz"))) == 2:
            raise OSError(28, "No space left on device")
        write_nifti(path, volume)

    read.clear()
    with monkeypatch.context() as patch:
        patch.setattr(one_scan, "write_nifti", full_disk)
        with pytest.raises(NoRoomError, match="There is no room for the dataset"):
            run(source)
    assert read == ["damaged.nii.gz", "s1.nii.gz", "s2.nii.gz", "s3.nii.gz"]  # not the fourth
    assert len(read_table(roots / "Dataset900_HeadCT/cases.csv")) == 2
    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_raw_dataset", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(NoRoomError):
            run(source)
    assert [len(run(source).skipped), content(roots, 900) == content(roots, 901)] == [4, True]
