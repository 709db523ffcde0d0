"""Tests of the fingerprint and of splits.json: small raw datasets with good and bad cases."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dying_headers import die_of_case_3
from small_heads import head, make_dataset

from headctssl import __version__
from headctssl.dataset import image_io
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import DatasetInfo, RawDataset, load_raw_dataset, write_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import DataError, UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.planning import read_facts
from headctssl.planning.case_facts import left_out_cases
from headctssl.planning.fingerprint import DatasetFingerprint, extract_fingerprint, load_fingerprint
from headctssl.planning.planner import plan_experiment
from headctssl.planning.plans import SplitRule, plans_path
from headctssl.planning.splits_file import add_cases, ensure_splits
from headctssl.types import Volume


def spoil(folder: Path) -> set[str]:
    """Add a truncated, a renamed and a Cormack case; gives their ids."""
    images = folder / "images"
    good = sorted(images.iterdir())[0]
    (images / "cut.nii.gz").write_bytes(good.read_bytes()[:9000])
    (images / "text.nii.gz").write_text("no image")
    volume = head(1, bleed=False)
    write_nifti(images / "cormack.nii.gz", Volume(volume.hu + np.int16(1024), volume.affine, volume.info))
    raw = load_raw_dataset(7)
    extra = [{"case_id": f"bad_{n}", "image": f"images/{n}.nii.gz"} for n in ("cut", "text", "cormack")]
    table = pd.concat([raw.cases, pd.DataFrame(extra)], ignore_index=True).fillna("")
    write_raw_dataset(folder, raw.info, table)
    return {e["case_id"] for e in extra}


def test_fingerprint_of_a_small_dataset(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(7, 6)
    bad = spoil(folder)
    found = extract_fingerprint(7, num_workers=2)
    assert (found.num_cases, found.num_unreadable, found.sampled_cases) == (6, 3, 6)
    assert found.num_subjects == 3
    assert found.spacing_mm[0].median == pytest.approx(5.0)
    assert found.thick_slice_share == 1.0
    assert found.head_extent_mm is not None
    for spread, true in zip(found.head_extent_mm, (158, 194, 158), strict=True):
        assert spread.median == pytest.approx(true, abs=11)
    assert found.head_hu[3] == pytest.approx(30, abs=5)
    assert {label.name: sum(label.counts) for label in found.labels} == {"bleed": 5, "noise": 6}
    assert left_out_cases(preprocessed_dataset(7)) == bad
    out = capsys.readouterr().out
    assert all(f"case '{case}'" in out for case in bad)
    assert load_fingerprint(7) == found


def test_aggregates_hold_no_case_id_and_no_path(roots: Path) -> None:
    make_dataset(7, 4)
    extract_fingerprint(7, quiet=True)
    text = (preprocessed_dataset(7) / "dataset_fingerprint.json").read_text()
    assert "case7" not in text
    assert "patient" not in text
    assert str(roots) not in text
    with open(preprocessed_dataset(7) / "cases_fingerprint.csv") as handle:
        assert [row["case_id"] for row in csv.DictReader(handle)] == [f"case7_{k:02d}" for k in range(4)]


def test_the_fingerprint_does_not_depend_on_order_or_threads(roots: Path) -> None:
    folder = make_dataset(7, 6)
    first = extract_fingerprint(7, num_workers=1, quiet=True)
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[::-1].reset_index(drop=True))
    assert extract_fingerprint(7, num_workers=3, quiet=True) == first


def test_a_dataset_without_a_readable_case_is_an_error(roots: Path) -> None:
    folder = roots / "raw" / "Dataset007_Bad"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.nii.gz").write_text("no image")
    write_raw_dataset(folder, DatasetInfo(name="Bad"), pd.DataFrame([{"case_id": "a", "image": "images/a.nii.gz"}]))
    with pytest.raises(DataError, match="No case of Dataset007_Bad can be read"):
        extract_fingerprint(7, quiet=True)


def test_plans_are_kept_until_replanned(roots: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    make_dataset(7, 6)
    assert command("plan_experiment", "-d", 7)[0] == 2  # no fingerprint yet
    assert command("extract_fingerprint", "-d", 7)[0] == 0
    code, out, _ = command("plan_experiment", "-d", 7)
    assert code == 0
    assert "storage spacing z" in out
    assert "plans.json" in out
    before = plans_path(7).read_bytes()
    changed = load_fingerprint(7).model_copy(update={"num_cases": 99})
    (preprocessed_dataset(7) / "dataset_fingerprint.json").write_text(changed.model_dump_json())
    assert command("plan_experiment", "-d", 7)[0] == 0
    assert plans_path(7).read_bytes() == before
    assert plan_experiment(7, "second", quiet=True).num_cases == 99
    assert plans_path(7).read_bytes() == before
    assert plan_experiment(7, replan=True, quiet=True).num_cases == 99


def test_unreadable_cases_get_no_place_in_the_splits(roots: Path) -> None:
    bad = spoil(make_dataset(7, 12))
    extract_fingerprint(7, quiet=True)
    plan_experiment(7, quiet=True)
    splits = load_splits(preprocessed_dataset(7))
    everyone = [*splits.test, *splits.folds[0].train, *splits.folds[0].val]
    assert sorted(everyone) == [f"case7_{k:02d}" for k in range(12)]
    assert not bad & set(everyone)


def test_fewer_than_five_cases_are_all_for_training(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(7, 4)
    extract_fingerprint(7, quiet=True)
    plan_experiment(7)
    splits = load_splits(preprocessed_dataset(7))
    assert len(splits.folds[0].train) == 4
    assert not splits.test
    assert "all cases are for training" in capsys.readouterr().out


def test_added_cases_follow_their_subject_and_nothing_moves(roots: Path) -> None:
    make_dataset(7, 12)
    raw = load_raw_dataset(7)
    first = [c for c in raw.case_ids if c.endswith(("0", "2", "4", "6", "8"))]  # one scan of each subject
    ensure_splits(raw, preprocessed_dataset(7), SplitRule(), first[:-1], quiet=True)
    before = load_splits(preprocessed_dataset(7))
    ensure_splits(raw, preprocessed_dataset(7), SplitRule(), raw.case_ids, quiet=True)
    after = load_splits(preprocessed_dataset(7))
    subject = dict(zip(raw.cases["case_id"], raw.cases["subject_id"], strict=True))
    assert set(before.test) <= set(after.test)
    for old, new in zip(before.folds, after.folds, strict=True):
        assert set(old.train) <= set(new.train)
        assert set(old.val) <= set(new.val)
        assert sorted([*after.test, *new.train, *new.val]) == sorted(raw.case_ids)
        parts = [{subject[c] for c in part} for part in (after.test, new.train, new.val)]
        assert sum(map(len, parts)) == len(set.union(*parts))


def mark(raw: RawDataset, folder: Path, marks: dict[str, str]) -> RawDataset:
    """The dataset with marks by subject in the column `split`."""
    cases = raw.cases.assign(split=[marks.get(s, "") for s in raw.cases["subject_id"]])
    write_raw_dataset(folder, raw.info, cases)
    return load_raw_dataset(7)


def test_marks_of_added_cases_are_kept(roots: Path) -> None:
    folder = make_dataset(7, 24)
    marks = {"patient7_9": "test", "patient7_10": "val", "patient7_11": "train"}
    raw = mark(load_raw_dataset(7), folder, marks)
    of = {s: sorted(raw.cases["case_id"][raw.cases["subject_id"] == s]) for s in marks}
    new = {case for cases in of.values() for case in cases}
    old = [case for case in raw.case_ids if case not in new]
    ensure_splits(raw, preprocessed_dataset(7), SplitRule(), old, quiet=True)
    before = load_splits(preprocessed_dataset(7))
    after = add_cases(before, raw, raw.case_ids)
    assert sorted(set(after.test) - set(before.test)) == of["patient7_9"]
    for earlier, fold in zip(before.folds, after.folds, strict=True):
        assert sorted(set(fold.val) - set(earlier.val)) == of["patient7_10"]
        assert sorted(set(fold.train) - set(earlier.train)) == of["patient7_11"]
    assert add_cases(after, raw, raw.case_ids) is after
    assert add_cases(before, raw, [*old, "left_the_dataset"]) is before


@pytest.mark.parametrize(
    ("part", "asked"), [("train", "test"), ("test", "train"), ("test", "val"), ("val", "test"), ("only_train", "val")]
)
def test_a_mark_against_the_drawn_place_of_the_subject_is_refused(roots: Path, part: str, asked: str) -> None:
    folder = make_dataset(7, 24)
    raw = load_raw_dataset(7)
    old = [case for case in raw.case_ids if int(case[-2:]) % 2 == 0]  # one scan of each subject; the second is added
    rule = SplitRule(folds=1) if part == "only_train" else SplitRule()
    ensure_splits(raw, preprocessed_dataset(7), rule, old, quiet=True)
    before = load_splits(preprocessed_dataset(7))
    fold = before.folds[0]
    case = {"train": fold.train, "only_train": fold.train, "val": fold.val, "test": before.test}[part][0]
    name = dict(zip(raw.cases["case_id"], raw.cases["subject_id"], strict=True))[case]
    raw = mark(raw, folder, {name: asked})
    with pytest.raises(DataError, match=f"'{name}' is marked '{asked}'") as error:
        ensure_splits(raw, preprocessed_dataset(7), SplitRule(), raw.case_ids, quiet=True)
    assert error.value.got
    assert error.value.expected
    assert "column 'split'" in str(error.value.do)
    assert load_splits(preprocessed_dataset(7)) == before


@pytest.mark.parametrize("sides", ["test and train", "val and train"])
def test_a_subject_named_after_the_draw_may_not_stand_on_two_sides(roots: Path, sides: str) -> None:
    make_dataset(7, 24)
    raw = load_raw_dataset(7)
    ensure_splits(raw, preprocessed_dataset(7), SplitRule(), raw.case_ids, quiet=True)
    splits = load_splits(preprocessed_dataset(7))
    first = splits.test[0] if sides == "test and train" else splits.folds[0].val[0]
    row = raw.cases["case_id"] == splits.folds[0].train[0]
    name = raw.cases.loc[raw.cases["case_id"] == first, "subject_id"].item()
    changed = raw.cases.copy()
    changed.loc[row, "subject_id"] = name
    with pytest.raises(DataError, match=f"'{name}' has scans on two sides"):
        add_cases(splits, replace(raw, cases=changed), raw.case_ids)
    assert add_cases(splits, raw, raw.case_ids) is splits


def test_digest_changes_with_the_content(roots: Path) -> None:
    make_dataset(7, 4)
    found = extract_fingerprint(7, quiet=True)
    assert isinstance(found, DatasetFingerprint)
    assert found.digest() != found.model_copy(update={"num_cases": 5}).digest()


@pytest.mark.parametrize("reader", ["read_header", "read"])
def test_any_error_of_one_file_leaves_out_that_case_alone(
    roots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reader: str
) -> None:
    make_dataset(7, 4)
    sound = getattr(image_io, reader)

    def surprising(path: Path) -> object:
        if path.name == "case7_02.nii.gz":
            raise OverflowError("a number from another world")
        return sound(path)

    monkeypatch.setattr(f"headctssl.planning.read_facts.{reader}", surprising)
    found = extract_fingerprint(7, num_workers=1)
    assert (found.num_cases, found.num_unreadable) == (3, 1)
    assert left_out_cases(preprocessed_dataset(7)) == {"case7_02"}
    out = capsys.readouterr().out
    assert "OverflowError" in out
    assert "a number from another world" in out


def test_memory_for_plans_that_are_kept_is_refused(roots: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    make_dataset(7, 6)
    extract_fingerprint(7, quiet=True)
    plan_experiment(7, gpu_memory=8.0, quiet=True)
    before = plans_path(7).read_bytes()
    with pytest.raises(UsageError, match="--replan"):
        plan_experiment(7, gpu_memory=6.0, quiet=True)
    code, _, err = command("plan_and_preprocess", "-d", 7, "--gpu_memory", 6)
    assert code == 2
    assert "--gpu_memory has no effect on plans.json" in err
    assert plans_path(7).read_bytes() == before
    plan_experiment(7, gpu_memory=6.0, replan=True, quiet=True)
    plan_experiment(7, "small", gpu_memory=6.0, quiet=True)


def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images whose header is read from now on."""
    names: list[str] = []

    def noted(path: Path) -> object:
        names.append(path.name)
        return image_io.read_header(path)

    monkeypatch.setattr(read_facts, "read_header", noted)
    return names


def test_added_and_changed_cases_alone_are_read_again(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset(7, 8)
    raw = load_raw_dataset(7)
    write_raw_dataset(folder, raw.info, raw.cases.iloc[:5])
    extract_fingerprint(7, quiet=True)
    write_raw_dataset(folder, raw.info, raw.cases)
    write_nifti(folder / "images" / "case7_01.nii.gz", head(99, bleed=False, spacing=6.0))
    (folder / "images" / "case7_02.nii.gz").write_text("no image any more")
    read_now = headers_read(monkeypatch)
    grown = extract_fingerprint(7, num_workers=1, quiet=True)
    assert read_now == [f"case7_{k:02d}.nii.gz" for k in (1, 2, 5, 6, 7)]
    table = (preprocessed_dataset(7) / "cases_fingerprint.csv").read_text()
    (preprocessed_dataset(7) / "cases_fingerprint.csv").unlink()
    assert extract_fingerprint(7, num_workers=1, quiet=True) == grown
    assert (preprocessed_dataset(7) / "cases_fingerprint.csv").read_text() == table


@pytest.mark.parametrize("damage", ["cut", "of another version", "other columns", "not text", "repeated"])
def test_a_table_of_facts_that_cannot_be_used_is_read_over(
    roots: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    make_dataset(7, 5)
    found = extract_fingerprint(7, quiet=True)
    path = preprocessed_dataset(7) / "cases_fingerprint.csv"
    text = path.read_text()
    lines = text.splitlines()
    path.write_bytes(
        {
            "cut": text[:-130].encode(),
            "of another version": text.replace(__version__, "0.0.0").encode(),
            "other columns": text.replace("source_size", "bytes").encode(),
            "not text": b"\xff\xfe\0" * 40,
            "repeated": "\n".join([*lines, lines[-1]]).encode(),
        }[damage]
    )
    read_now = headers_read(monkeypatch)
    assert extract_fingerprint(7, num_workers=1, quiet=True) == found
    assert path.read_text() == text
    assert "case7_04.nii.gz" in read_now


def test_many_headers_are_read_in_processes(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset(7, 5)
    (folder / "images" / "case7_03.nii.gz").write_text("no image")
    found = extract_fingerprint(7, num_workers=1, quiet=True)
    (preprocessed_dataset(7) / "cases_fingerprint.csv").unlink()
    monkeypatch.setattr(read_facts, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(read_facts, "_AT_ONCE", 2)
    assert extract_fingerprint(7, num_workers=2, quiet=True) == found
    assert left_out_cases(preprocessed_dataset(7)) == {"case7_03"}


def test_a_file_that_ends_its_process_costs_its_case_alone(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(7, 6)
    monkeypatch.setattr(read_facts, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(read_facts, "_AT_ONCE", 2)
    monkeypatch.setattr(read_facts, "_headers", die_of_case_3)
    assert extract_fingerprint(7, num_workers=2, quiet=True).num_cases == 5
    assert left_out_cases(preprocessed_dataset(7)) == {"case7_03"}
