"""Tests of preprocessing what is not as it should be: sheared, missing, changed, withdrawn and refused sources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from small_heads import STORAGE, head, make_dataset

from headctssl.dataset.image_io import read, write_nifti
from headctssl.dataset.manifest import load_raw_dataset, write_raw_dataset
from headctssl.dataset.parallel import WorkerDied
from headctssl.errors import DataError, ImageReadError
from headctssl.inference.sources import Source, prepared
from headctssl.paths import preprocessed_dataset
from headctssl.planning.usable import require_hounsfield
from headctssl.preprocessing.case_job import CaseJob
from headctssl.preprocessing.index import CaseIndex, case_path, mask_path, rebuild_index
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import PreprocessingReport
from headctssl.types import Volume
from headctssl.volume.mask_store import StoredLabels


def storage() -> Path:
    return preprocessed_dataset(7) / STORAGE.storage_id


def run(**more: bool) -> PreprocessingReport:
    return preprocess(7, rule=STORAGE, num_workers=1, quiet=True, **more)


def write_sheared(path: Path, values: NDArray[np.int16]) -> None:
    """A NIfTI of 5 mm voxels (z, y, x) whose slices are shifted as under a gantry tilt of 15 degrees."""
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.radians(15))
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), affine, dtype=np.int16), path)


def test_a_sheared_image_that_is_not_in_hu_is_refused(roots: Path) -> None:
    folder = make_dataset(7, 2)
    path = folder / "images" / "case7_00.nii.gz"
    write_sheared(path, head(1, bleed=False).hu + np.int16(1024))
    volume = read(path)
    assert volume.info.straightened
    assert volume.hu.min() == -1024  # the air that straightening added
    with pytest.raises(DataError, match="not Hounsfield units") as refused:
        require_hounsfield(volume)
    assert "-1024" not in refused.value.message
    assert [f.case_id for f in run().failures] == ["case7_00"]
    ((_, outcome),) = prepared([Source("case7_00", path)], STORAGE, 0)
    assert isinstance(outcome, DataError)
    assert "Hounsfield" in outcome.what


def test_a_mask_of_a_sheared_image_holds_what_it_held(roots: Path) -> None:
    folder = make_dataset(7, 2)
    values = head(1, bleed=False).hu
    write_sheared(folder / "images" / "case7_00.nii.gz", values)
    lesion = np.zeros_like(values)
    lesion[18:26, 18:26, 18:26] = 1
    write_sheared(folder / "lesion.nii.gz", lesion)
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.assign(segmentation=["lesion.nii.gz", ""]))
    rule = STORAGE.model_copy(update={"masks": ("head", "segmentation")})
    assert not preprocess(7, rule=rule, num_workers=1, quiet=True).failures
    stored = StoredLabels(mask_path(preprocessed_dataset(7) / rule.storage_id, "case7_00", "segmentation"))
    assert stored.read(stored.whole).sum() * 8**3 == pytest.approx((8 * 5) ** 3, rel=0.3)


def everything() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in storage().rglob("*") if path.is_file()}


def test_sources_that_are_away_cost_no_stored_case(roots: Path) -> None:
    folder = make_dataset(7, 2)
    run()
    before = everything()
    (folder / "images").rename(folder / "away")
    with pytest.raises(DataError, match="No case"):
        run()
    assert everything() == before
    (folder / "away").rename(folder / "images")
    (folder / "images" / "case7_00.nii.gz").rename(folder / "elsewhere.nii.gz")
    assert [f.case_id for f in run().failures] == ["case7_00"]
    assert CaseIndex.open(storage()).case_ids == ["case7_01"]
    assert case_path(storage(), "case7_00").is_file()
    (folder / "elsewhere.nii.gz").rename(folder / "images" / "case7_00.nii.gz")
    assert run().num_kept == 2


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("a fault of ours")])
def test_what_is_no_fault_of_the_source_removes_nothing(
    roots: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = make_dataset(7, 2)
    run()
    before = everything()
    for image in (folder / "images").iterdir():
        os.utime(image, ns=(1, 1))

    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("headctssl.preprocessing.case_job.read", fail)
    with pytest.raises(DataError, match="No case"):
        run()
    assert everything() == before


def test_a_source_that_cannot_be_read_through_is_not_refused(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(7, 2)
    run()
    before = everything()

    def broken_share(path: Path) -> tuple[str, int, int]:
        raise OSError(116, "Stale file handle")

    def wrapped(path: Path) -> None:
        raise ImageReadError(f"{path} cannot be read as a volume.", got="Stale file handle")

    monkeypatch.setattr("headctssl.preprocessing.case_job.source_digest", broken_share)
    monkeypatch.setattr("headctssl.preprocessing.case_job.read", wrapped)
    with pytest.raises(DataError, match="No case"):
        run(overwrite=True)
    assert everything() == before


def test_refused_sources_leave_neither_files_nor_index(roots: Path) -> None:
    folder = make_dataset(7, 2)
    run()
    for image in (folder / "images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match="No case"):
        run()
    assert not everything()


def test_killed_workers_cost_no_index(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(7, 2)
    run()
    before = everything()

    def dead(job: object, items: Iterable[CaseJob], *_: int, **more: object) -> Iterator[tuple[CaseJob, WorkerDied]]:
        return ((item, WorkerDied()) for item in items)

    monkeypatch.setattr("headctssl.preprocessing.executors.run_in_processes", dead)
    with pytest.raises(DataError, match="No case") as told:
        preprocess(7, rule=STORAGE, num_workers=2, quiet=True)
    assert "memory" in told.value.message
    assert "__main__" in told.value.message
    assert "--num_workers" in told.value.message
    assert everything() == before


def test_a_changed_data_file_of_a_detached_header_is_noticed(roots: Path) -> None:
    folder = make_dataset(7, 2)
    volume = head(1, bleed=False)
    for seed in (1, 2):
        image = SimpleITK.GetImageFromArray(head(seed, bleed=False).hu)
        image.SetSpacing((5.0, 5.0, 5.0))
        SimpleITK.WriteImage(image, folder / f"new{seed}.mhd")
    (folder / "new1.mhd").rename(folder / "images" / "new.mhd")
    header = folder / "images" / "new.mhd"
    header.write_text(header.read_text().replace("new1.raw", "new.raw"))
    data = (folder / "new1.raw").rename(folder / "images" / "new.raw")
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.assign(image=["images/new.mhd", raw.cases["image"][1]]))
    assert not run().failures
    assert run().num_kept == 2
    data.write_bytes((folder / "new2.raw").read_bytes())
    assert data.stat().st_size == volume.hu.nbytes
    os.utime(data, ns=(header.stat().st_mtime_ns + 10**10,) * 2)
    report = run()
    assert (report.num_written, report.num_kept) == (1, 1)
    data.unlink()
    assert [f.case_id for f in run().failures] == ["case7_00"]
    assert case_path(storage(), "case7_00").is_file()


def test_files_of_withdrawn_cases_are_removed_and_named(roots: Path) -> None:
    folder = make_dataset(7, 3)
    run()
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:2])
    report = run()
    assert report.num_removed == 1
    assert [(n.case_id, "removed" in n.note) for n in report.notes] == [("case7_02", True)]
    assert not list(storage().rglob("case7_02*"))
    assert rebuild_index(storage()).case_ids == ["case7_00", "case7_01"]
    assert run().num_removed == 0


def test_nothing_is_withdrawn_without_a_list_of_cases_or_when_every_case_failed(roots: Path) -> None:
    folder = make_dataset(7, 3)
    run()
    raw = load_raw_dataset(7)
    (folder / "images" / "case7_00.nii.gz").write_bytes(b"no image")
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:1])
    with pytest.raises(DataError, match="No case"):
        run()
    assert case_path(storage(), "case7_02").is_file()
    (folder / "cases.csv").write_text("case_id,image\n")
    with pytest.raises(DataError, match="has no cases"):
        run()
    assert case_path(storage(), "case7_02").is_file()
    (folder / "cases.csv").unlink()
    (folder / "images" / "case7_02.nii.gz").unlink()
    assert run().num_removed == 0
    assert case_path(storage(), "case7_02").is_file()


def test_cases_with_dots_in_their_names_are_not_taken_for_files_of_others(roots: Path) -> None:
    """The folder of 1.2.840.113619.2.20 is by chance that of 1.2.840, as a fiftieth of such identifiers have it."""
    folder = make_dataset(7, 3)
    raw = load_raw_dataset(7)
    names = ["1.2.840.113619.2.20", "scan.199", "scan.17"]
    paths = [case_path(storage(), name) for name in names]
    assert paths[0].parent == case_path(storage(), "1.2.840").parent
    assert paths[1].parent == case_path(storage(), "scan").parent
    write_raw_dataset(folder, raw.info, raw.cases.assign(case_id=names))
    assert run().num_removed == 0
    assert all(path.is_file() for path in paths)
    assert all(mask_path(storage(), name, "head").is_file() for name in names)
    write_raw_dataset(folder, raw.info, raw.cases.assign(case_id=["other", *names[1:]]))
    assert [note.case_id for note in run().notes] == names[:1]
    assert not paths[0].exists()


def test_a_case_named_like_the_mask_of_another_is_rebuilt(roots: Path) -> None:
    folder = make_dataset(7, 2)
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.assign(case_id=["a", "a.head"]))
    run()
    rows = CaseIndex.open(storage()).rows
    assert rebuild_index(storage()).rows == rows
    mask_path(storage(), "b", "head").parent.mkdir(exist_ok=True)
    mask_path(storage(), "a", "head").rename(mask_path(storage(), "b", "head"))  # a mask whose case was never written
    assert [row.case_id for row in rebuild_index(storage()).rows] == ["a", "a.head"]
    write_raw_dataset(folder, raw.info, raw.cases.assign(case_id=["a", "c"]))
    assert [n.case_id for n in run().notes] == ["a.head", "b"]
    assert rebuild_index(storage()).case_ids == ["a", "c"]


def test_a_mask_that_cases_csv_no_longer_names_is_removed(roots: Path) -> None:
    folder = make_dataset(7, 2)
    volume = head(7000, bleed=False)
    write_nifti(folder / "seg.nii.gz", Volume((volume.hu > 200).astype(np.int16), volume.affine, volume.info))
    raw = load_raw_dataset(7)
    rule = STORAGE.model_copy(update={"masks": ("head", "segmentation")})
    for cell in ("seg.nii.gz", ""):
        write_raw_dataset(folder, raw.info, raw.cases.assign(segmentation=[cell, ""]))
        preprocess(7, rule=rule, num_workers=1, quiet=True)
        stored = mask_path(preprocessed_dataset(7) / rule.storage_id, "case7_00", "segmentation")
        assert stored.is_file() == bool(cell)
