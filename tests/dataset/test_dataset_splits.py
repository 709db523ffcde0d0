"""Splits: properties that hold for any table of cases."""

from __future__ import annotations

import random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.dataset.splits import Splits, load_splits, make_splits
from headctssl.errors import DataError
from headctssl.settings import write_json


def table(subjects: list[int], positives: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = [f"case_{k:03d}" for k in range(len(subjects))]
    cases = pd.DataFrame({"case_id": ids, "subject_id": [f"s{k}" if k else "" for k in subjects]}, dtype=str)
    return cases, pd.DataFrame({"bleed": positives}, index=pd.Index(ids, name="case_id"))


@st.composite
def tables(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame]:
    n = draw(st.integers(1, 60))
    subjects = draw(st.lists(st.integers(0, 25), min_size=n, max_size=n))
    values = draw(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=n, max_size=n))
    return table(subjects, values)


def subjects_of(cases: pd.DataFrame, ids: tuple[str, ...]) -> set[str]:
    rows = cases[cases["case_id"].isin(ids)]
    return set(rows["subject_id"].where(rows["subject_id"] != "", rows["case_id"]))


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 10), st.integers(1, 6), st.sampled_from([0.0, 0.2, 0.5]))
def test_every_case_once_and_no_subject_in_two_parts(
    drawn: tuple[pd.DataFrame, pd.DataFrame], seed: int, folds: int, test_share: float
) -> None:
    cases, labels = drawn
    splits = make_splits(cases, labels, seed=seed, folds=folds, test_share=test_share)
    everything = sorted(cases["case_id"])
    for fold in splits.folds:
        assert sorted((*splits.test, *fold.train, *fold.val)) == everything
        parts = [subjects_of(cases, part) for part in (splits.test, fold.train, fold.val)]
        assert sum(len(part) for part in parts) == len(set().union(*parts))
        assert fold.train
    if len(splits.folds) > 1:
        held = [case for fold in splits.folds for case in fold.val]
        assert sorted((*splits.test, *held)) == everything


@settings(max_examples=30, deadline=None)
@given(tables(), st.integers(0, 10), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(
    drawn: tuple[pd.DataFrame, pd.DataFrame], seed: int, shuffler: random.Random
) -> None:
    cases, labels = drawn
    order = list(range(len(cases)))
    shuffler.shuffle(order)
    shuffled = cases.iloc[order].reset_index(drop=True)
    assert make_splits(cases, labels, seed=seed) == make_splits(shuffled, labels.iloc[order[::-1]], seed=seed)


def test_another_seed_gives_another_split() -> None:
    cases, labels = table(list(range(1, 41)), [0.0] * 40)
    assert make_splits(cases, labels, seed=1) == make_splits(cases, labels, seed=1)
    assert make_splits(cases, labels, seed=1).test != make_splits(cases, labels, seed=2).test


def test_rare_positives_are_spread_over_test_and_folds() -> None:
    positives = [1.0] * 12 + [0.0] * 88
    cases, labels = table(list(range(1, 101)), positives)
    splits = make_splits(cases, labels, seed=0)
    positive = set(cases["case_id"][:12])
    assert len(splits.test) == 20
    assert len(positive & set(splits.test)) in (2, 3)
    assert [len(fold.val) for fold in splits.folds] == [16] * 5
    assert all(1 <= len(positive & set(fold.val)) <= 3 for fold in splits.folds)


def test_fewer_than_five_are_all_for_training_and_it_says_so() -> None:
    cases, labels = table([1, 2, 3, 4], [0.0, 1.0, 0.0, 1.0])
    splits = make_splits(cases, labels)
    assert splits.test == ()
    assert splits.folds[0].val == ()
    assert len(splits.folds[0].train) == 4
    assert "fewer than 5" in splits.notes[0]


def test_marks_are_kept() -> None:
    cases, _ = table(list(range(1, 11)), [0.0] * 10)
    cases["split"] = ["test", "val", "train", "", "", "", "test", "val", "train", "train"]
    splits = make_splits(cases, None)
    assert splits.test == ("case_000", "case_006")
    assert len(splits.folds) == 1
    assert splits.folds[0].val == ("case_001", "case_007")
    assert len(splits.folds[0].train) == 6
    cases["split"] = ["train"] * 5 + [""] * 5
    assert set(make_splits(cases, None).test) <= set(cases["case_id"][5:])


def test_a_subject_in_two_splits_is_an_error_that_names_it() -> None:
    cases, _ = table([1, 1, 2, 3, 4, 5], [0.0] * 6)
    cases["split"] = ["train", "test", "", "", "", ""]
    with pytest.raises(DataError, match="'s1'"):
        make_splits(cases, None)


def test_splits_come_back_from_their_file(tmp_path) -> None:
    cases, labels = table(list(range(1, 11)), [0.0] * 10)
    splits = make_splits(cases, labels)
    write_json(tmp_path / "splits.json", splits)
    assert load_splits(tmp_path) == splits
    assert isinstance(splits, Splits)
    with pytest.raises(DataError, match=r"splits\.json"):
        load_splits(tmp_path / "nowhere")
