"""Tests of preprocessing whole datasets: what is stored, skipped, left out and named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from preprocessing_jobs import double
from small_heads import STORAGE, head, make_dataset, make_encoder

from headctssl.contract import StorageRule
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import load_raw_dataset, write_raw_dataset
from headctssl.dataset.parallel import WorkerDied, run_in_processes
from headctssl.dataset.splits import load_splits
from headctssl.errors import ContractError, CorruptCaseError, DataError, UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.index import CaseIndex, case_path, mask_path, rebuild_index, write_index
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed, plan_and_preprocess, storage_of_checkpoint
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import PreprocessingReport
from headctssl.types import Volume
from headctssl.volume.mask_store import StoredLabels, StoredMask
from headctssl.volume.store import StoredCase

Command = Callable[..., tuple[int, str, str]]


def storage() -> Path:
    return preprocessed_dataset(7) / STORAGE.storage_id


def run(**more: bool) -> PreprocessingReport:
    return preprocess(7, rule=STORAGE, num_workers=1, quiet=True, **more)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_dataset_is_stored_with_index_and_report(roots: Path) -> None:
    make_dataset(7, 4)
    report = run()
    assert (report.num_cases, report.num_written, report.num_kept, report.failures) == (4, 4, 0, ())
    index = CaseIndex.open(storage())
    assert index.case_ids == [f"case7_{k:02d}" for k in range(4)]
    assert index.spacing_mm == pytest.approx((8.0, 8.0, 8.0))
    for i, case_id in enumerate(index.case_ids):
        case = StoredCase(index.path(i))
        assert case.shape[1:] == tuple(index.shapes[i])
        assert case.meta.head_box == tuple(map(tuple, index.head_boxes[i].tolist()))
        assert case.meta.storage_digest == STORAGE.digest()
        assert len(case.meta.source_sha256) == 64
        assert StoredMask(mask_path(storage(), case_id, "head")).shape[1:] == case.shape[1:]
    expected = {"cases.csv"}
    for case_id in index.case_ids:
        expected |= {str(case_path(Path(), case_id)), str(mask_path(Path(), case_id, "head"))}
    assert files(storage()) == expected


def test_index_and_stored_files_hold_no_path(roots: Path) -> None:
    make_dataset(7, 2)
    run()
    for file in storage().rglob("*"):
        if file.is_file():
            assert str(roots).encode() not in file.read_bytes()
            assert b"images/" not in file.read_bytes()


def test_subset_digest_position(roots: Path) -> None:
    make_dataset(7, 4)
    run()
    index = CaseIndex.open(storage())
    part = index.subset(["case7_02", "case7_00", "unknown"])
    assert part.case_ids == ["case7_00", "case7_02"]
    assert part.position("case7_02") == 1
    assert part.digest() != index.digest()
    assert part.digest() == index.subset(["case7_00", "case7_02"]).digest()
    with pytest.raises(DataError, match="case7_03"):
        part.position("case7_03")
    assert len(index.subset([])) == 0
    with pytest.raises(DataError):
        _ = index.subset([]).spacing_mm


def test_unchanged_cases_are_kept_and_changed_ones_written(roots: Path) -> None:
    folder = make_dataset(7, 3)
    run()
    stamps = {p: p.stat().st_mtime_ns for p in storage().rglob("*.b2nd")}
    report = run()
    assert (report.num_written, report.num_kept) == (0, 3)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    write_nifti(folder / "images" / "case7_01.nii.gz", head(99, bleed=True))
    report = run()
    assert (report.num_written, report.num_kept) == (1, 2)
    assert run(overwrite=True).num_written == 3


def test_another_rule_lies_beside_the_first(roots: Path) -> None:
    make_dataset(7, 2)
    run()
    other = StorageRule(spacing_mm=(6.0, 6.0, 6.0))
    preprocess(7, rule=other, num_workers=1, quiet=True)
    assert other.storage_id != STORAGE.storage_id
    assert CaseIndex.open(preprocessed_dataset(7) / other.storage_id).spacing_mm == pytest.approx((6, 6, 6))
    assert len(CaseIndex.open(storage())) == 2


def test_without_index_the_stored_files_speak_for_themselves(roots: Path) -> None:
    make_dataset(7, 3)
    run()
    rows = CaseIndex.open(storage()).rows
    (storage() / "cases.csv").unlink()
    assert run().num_kept == 3
    (storage() / "cases.csv").write_text("nonsense\n")
    assert run().num_kept == 3
    (storage() / "cases.csv").unlink()
    assert rebuild_index(storage()).rows == rows


def test_bad_cases_are_named_and_the_good_go_through(roots: Path, command: Command) -> None:
    folder = make_dataset(7, 3)
    (folder / "images" / "case7_00.nii.gz").write_bytes(b"no image")
    volume = head(1, bleed=False)
    write_nifti(folder / "images" / "case7_01.nii.gz", Volume(volume.hu + np.int16(1024), volume.affine, volume.info))
    report = run()
    assert (report.num_written, [f.case_id for f in report.failures]) == (1, ["case7_00", "case7_01"])
    assert "Hounsfield" in report.failures[1].what
    assert all(f.what and f.got and f.expected and f.do for f in report.failures)
    assert CaseIndex.open(storage()).case_ids == ["case7_02"]
    assert files(storage()) == {
        "cases.csv",
        str(case_path(Path(), "case7_02")),
        str(mask_path(Path(), "case7_02", "head")),
    }
    written = json.loads((preprocessed_dataset(7) / "preprocessing_report.json").read_text())
    assert [f["case_id"] for f in written["failures"]] == ["case7_00", "case7_01"]
    code, out, err = command("plan_and_preprocess", "-d", 7, "--num_workers", 1)
    assert code == 1
    assert "case7_00" in out
    assert "Traceback" not in out + err


def test_a_source_that_becomes_unreadable_leaves_nothing_behind(roots: Path) -> None:
    folder = make_dataset(7, 2)
    run()
    (folder / "images" / "case7_00.nii.gz").write_bytes(b"no image")
    assert [f.case_id for f in run().failures] == ["case7_00"]
    assert not case_path(storage(), "case7_00").exists()
    assert CaseIndex.open(storage()).case_ids == ["case7_01"]


def test_when_every_case_fails_the_command_fails(roots: Path, command: Command) -> None:
    folder = make_dataset(7, 2)
    for image in (folder / "images").iterdir():
        image.write_bytes(b"no image")
    code, _, err = command("plan_and_preprocess", "-d", 7)
    assert code == 2
    assert "No case" in err
    with pytest.raises(DataError, match="No case of Dataset007_Small could be preprocessed"):
        run()


def test_another_modality_exits_2(roots: Path, command: Command) -> None:
    folder = make_dataset(7, 2)
    text = (folder / "dataset.json").read_text().replace('"CT"', '"MR"')
    (folder / "dataset.json").write_text(text)
    code, _, err = command("plan_and_preprocess", "-d", 7)
    assert code == 2
    assert "CT" in err
    assert not preprocessed_dataset(7).exists()


def test_verify_finds_a_flipped_bit_and_a_silently_changed_source(roots: Path) -> None:
    folder = make_dataset(7, 3)
    run()
    path = case_path(storage(), "case7_01")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptCaseError, match="case7_01"):
        StoredCase(path).read_all()
    source = folder / "images" / "case7_02.nii.gz"
    stamp, size = source.stat().st_mtime_ns, source.stat().st_size
    content = bytearray(source.read_bytes())
    content[4] ^= 1  # the time stamp of the gzip header: same size, same volume, other content
    source.write_bytes(bytes(content))
    os.utime(source, ns=(stamp, stamp))
    assert source.stat().st_size == size
    assert run().num_kept == 3
    report = run(verify=True)
    assert (report.num_written, report.num_kept) == (2, 1)
    assert {n.case_id for n in report.notes} == {"case7_01", "case7_02"}
    StoredCase(path).verify()


def test_masks_of_the_dataset_are_stored_by_name(roots: Path) -> None:
    folder = make_dataset(7, 2)
    volume = head(7000, bleed=False)
    lesion = np.zeros_like(volume.hu)
    lesion[18:26, 18:26, 18:26] = 3
    write_nifti(folder / "images_seg.nii.gz", Volume(lesion, volume.affine, volume.info))
    wrong = Volume(lesion[:-3], volume.affine, volume.info)
    write_nifti(folder / "wrong.nii.gz", wrong)
    raw = load_raw_dataset(7)
    rule = STORAGE.model_copy(update={"masks": ("head", "segmentation")})
    write_raw_dataset(folder, raw.info, raw.cases.assign(segmentation=["images_seg.nii.gz", ""]))
    report = preprocess(7, rule=rule, num_workers=1, quiet=True)
    assert not report.failures
    index = CaseIndex.open(preprocessed_dataset(7) / rule.storage_id)
    assert [row.masks for row in index.rows] == [("head", "segmentation"), ("head",)]
    stored = StoredLabels(mask_path(index.folder, "case7_00", "segmentation"))
    assert set(np.unique(stored.read(stored.whole))) == {0, 3}
    assert (stored.read(stored.whole) == 3).sum() * 8**3 == pytest.approx((8 * 5) ** 3, rel=0.3)
    assert rebuild_index(index.folder).rows == index.rows
    write_raw_dataset(folder, raw.info, raw.cases.assign(segmentation=["images_seg.nii.gz", "wrong.nii.gz"]))
    report = preprocess(7, rule=rule, num_workers=1, quiet=True)
    assert [f.case_id for f in report.failures] == ["case7_01"]
    assert "segmentation" in report.failures[0].what


def test_processes_give_the_same_files_as_one(roots: Path) -> None:
    make_dataset(7, 3)
    run()
    alone = {p: p.read_bytes() for p in storage().rglob("*") if p.is_file()}
    report = preprocess(7, rule=STORAGE, num_workers=2, quiet=True, overwrite=True)
    assert report.num_written == 3
    assert {p: p.read_bytes() for p in alone} == alone


def test_a_dead_worker_is_noticed_and_the_others_go_on() -> None:
    results = dict(run_in_processes(double, [1, 13, *range(20, 26)], 2, preload="preprocessing_jobs"))
    assert isinstance(results.pop(13), WorkerDied)
    assert results == {n: 2 * n for n in (1, *range(20, 26))}


def test_plan_and_preprocess_is_one_call_and_runs_again(roots: Path, command: Command) -> None:
    make_dataset(7, 6)
    code, out, _ = command("plan_and_preprocess", "-d", 7, "--num_workers", 1)
    assert code == 0
    for name in ("plans.json", "splits.json", "cases.csv", "preprocessing_report.json"):
        assert name in out
    top = {p.name for p in preprocessed_dataset(7).iterdir() if p.is_file()}
    assert top == {
        "cases_fingerprint.csv",
        "dataset_fingerprint.json",
        "plans.json",
        "preprocessing_report.json",
        "splits.json",
    }
    code, out, _ = command("plan_and_preprocess", "-d", 7, "--num_workers", 1)
    assert code == 0
    assert "0 written, 6 unchanged" in out
    assert command("preprocess", "-d", 7, "--verify", "--num_workers", 1, "--quiet") == (0, "", "")


def test_like_a_checkpoint_needs_no_plans(roots: Path, command: Command, tmp_path: Path) -> None:
    make_dataset(7, 6)
    run_folder = make_encoder(tmp_path / "run")
    assert storage_of_checkpoint(run_folder) == STORAGE
    assert storage_of_checkpoint(run_folder / "encoder.safetensors") == STORAGE
    code, out, _ = command("plan_and_preprocess", "-d", 7, "--like", run_folder, "--num_workers", 1)
    assert code == 0
    assert STORAGE.storage_id in out
    assert {p.name for p in preprocessed_dataset(7).iterdir()} == {
        "preprocessing_report.json",
        "splits.json",
        STORAGE.storage_id,
    }


def test_like_refuses_what_is_no_checkpoint(roots: Path, tmp_path: Path) -> None:
    make_dataset(7, 2)
    (tmp_path / "other.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(ContractError, match="no contract"):
        plan_and_preprocess([7], like=tmp_path / "other.safetensors", quiet=True)
    with pytest.raises(ContractError, match="no contract"):
        plan_and_preprocess([7], like=tmp_path, quiet=True)
    with pytest.raises(UsageError, match="does not exist"):
        plan_and_preprocess([7], like=tmp_path / "none", quiet=True)
    with pytest.raises(UsageError, match="--replan has no effect"):
        plan_and_preprocess([7], like=tmp_path, replan=True, quiet=True)


def test_ensure_preprocessed_does_what_is_missing_and_says_so(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(7, 6)
    index = ensure_preprocessed(7, STORAGE, num_workers=1)
    assert len(index) == 6
    assert (preprocessed_dataset(7) / "splits.json").is_file()
    assert "not preprocessed as" in capsys.readouterr().out
    stamp = (storage() / "cases.csv").stat().st_mtime_ns
    assert ensure_preprocessed(7, STORAGE, num_workers=1).rows == index.rows
    assert (storage() / "cases.csv").stat().st_mtime_ns == stamp


def keep_first(folder: Path, n: int) -> None:
    """Shorten cases.csv to its first cases; the images stay."""
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:n])


def test_added_cases_are_tried_once_and_get_a_place(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(7, 13, unknown=0)
    whole = (folder / "cases.csv").read_bytes()
    (folder / "images" / "case7_12.nii.gz").write_bytes(b"no image")
    keep_first(folder, 11)
    assert len(ensure_preprocessed(7, STORAGE, num_workers=1)) == 11
    (folder / "cases.csv").write_bytes(whole)
    capsys.readouterr()
    index = ensure_preprocessed(7, STORAGE, num_workers=1)
    assert "2 cases were added since it was preprocessed" in capsys.readouterr().out
    assert index.case_ids == [f"case7_{k:02d}" for k in range(12)]
    splits = load_splits(preprocessed_dataset(7))
    place = [splits.test, splits.folds[0].train, splits.folds[0].val]
    # Scans 10 and 11 are of one subject; 12 cannot be read and has no place.
    assert next(p for p in place if "case7_10" in p) is next(p for p in place if "case7_11" in p)
    assert not any("case7_12" in p for p in place)
    assert ensure_preprocessed(7, STORAGE, num_workers=1).rows == index.rows
    assert "added" not in capsys.readouterr().out  # what failed is not tried again by every command


def test_preprocess_gives_added_cases_their_place(roots: Path, command: Command) -> None:
    folder = make_dataset(7, 12)
    whole = (folder / "cases.csv").read_bytes()
    keep_first(folder, 11)
    assert command("plan_and_preprocess", "-d", 7, "--num_workers", 1)[0] == 0
    (folder / "cases.csv").write_bytes(whole)
    code, out, _ = command("preprocess", "-d", 7, "--num_workers", 1)
    assert code == 0
    assert "1 cases were added" in out
    splits = load_splits(preprocessed_dataset(7))
    assert ("case7_10" in splits.test) == ("case7_11" in splits.test)
    assert "case7_11" in (*splits.test, *splits.folds[0].train, *splits.folds[0].val)


def test_an_index_of_another_rule_is_refused(roots: Path) -> None:
    from dataclasses import replace

    make_dataset(7, 2)
    run()
    rows = [replace(row, storage_digest="0" * 16) for row in CaseIndex.open(storage()).rows]
    write_index(storage(), rows)
    with pytest.raises(ContractError, match="storage"):
        ensure_preprocessed(7, STORAGE, quiet=True)


def test_a_missing_index_says_what_to_do(roots: Path) -> None:
    with pytest.raises(DataError, match="headct_plan_and_preprocess"):
        CaseIndex.open(roots / "nothing")


def test_cases_removed_from_the_dataset_leave_the_index(roots: Path) -> None:
    folder = make_dataset(7, 3)
    run()
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:2])
    run()
    assert CaseIndex.open(storage()).case_ids == ["case7_00", "case7_01"]


def test_case_ids_that_look_like_mask_names(roots: Path) -> None:
    folder = make_dataset(7, 2)
    raw = load_raw_dataset(7)
    table = pd.DataFrame(raw.cases).assign(case_id=["a", "a.seg"])
    write_raw_dataset(folder, raw.info, table)
    run()
    assert CaseIndex.open(storage()).case_ids == ["a", "a.seg"]
    assert rebuild_index(storage()).case_ids == ["a", "a.seg"]
