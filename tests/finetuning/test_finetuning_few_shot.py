"""Tests of finetuning/few_shot.py: K distinct patients per class, without replacement, the same for everybody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import LabelSpec
from headctssl.errors import DataError, UsageError
from headctssl.finetuning.few_shot import FewShots, draw_few_shots

A, B = LabelSpec(name="a"), LabelSpec(name="b")


@st.composite
def cohorts(draw):
    n = draw(st.integers(4, 40))
    cell = st.sampled_from([0.0, 1.0, np.nan])
    labels = np.array(draw(st.lists(st.tuples(cell, cell), min_size=n, max_size=n)))
    subjects = [str(k) for k in draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))]
    few = FewShots(draw(st.integers(1, 5)), draw(st.integers(0, 3)), draw(st.sampled_from(["same", "all"])))
    return labels, subjects, few


def drawn_or_none(labels, subjects, few, specs=(A, B), cases=None):
    try:
        return draw_few_shots(labels, specs, subjects, cases or [f"c{k}" for k in range(len(labels))], few)
    except DataError:
        return None


def pools(labels, subjects, column):
    subjects = np.array(subjects)
    positive = set(subjects[labels[:, column] > 0.5])
    return positive, set(subjects[labels[:, column] <= 0.5]) - positive


def seen(labels, subjects, draw, column):
    """Patients that the classifier learns a label from: positive, negative, and how many cases."""
    rows = [row for row, shown in zip(draw.rows, draw.shown, strict=True) if shown[column]]
    positive = {subjects[row] for row in rows if labels[row, column] > 0.5}
    return positive, {subjects[row] for row in rows if labels[row, column] <= 0.5}, len(rows)


@settings(max_examples=150, deadline=None)
@given(cohorts())
def test_every_label_is_learnt_from_exactly_k_distinct_patients_per_class_or_all_there_are(cohort):
    labels, subjects, few = cohort
    draw = drawn_or_none(labels, subjects, few)
    if draw is None:
        assert all(not p or not n for p, n in (pools(labels, subjects, c) for c in (0, 1)))
        return
    assert len(set(draw.rows)) == len(draw.rows)
    assert all(any(shown) for shown in draw.shown)
    short = 0
    for column in (0, 1):
        positive, negative = pools(labels, subjects, column)
        got_positive, got_negative, count = seen(labels, subjects, draw, column)
        assert got_positive <= positive
        assert got_negative <= negative
        assert len(got_positive) == min(few.shots, len(positive))
        assert len(got_negative) == (len(negative) if few.negatives == "all" else min(few.shots, len(negative)))
        assert count == len(got_positive) + len(got_negative)  # one case of each
        assert not np.isnan([labels[r, column] for r, s in zip(draw.rows, draw.shown, strict=True) if s[column]]).any()
        short += (len(positive) < few.shots) + (len(negative) < few.shots)
    assert len(draw.shortages) == short


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.integers(0, 39))
def test_draws_are_nested_and_independent_of_order_of_other_labels_and_of_other_patients(cohort, gone):
    labels, subjects, few = cohort
    draw, more = (
        drawn_or_none(labels, subjects, few),
        drawn_or_none(labels, subjects, FewShots(few.shots + 1, few.draw)),
    )
    if draw is None or more is None:
        return
    assert draw == drawn_or_none(labels, subjects, few)
    if few.negatives == "same":
        assert set(draw.rows) <= set(more.rows)
    assert drawn_or_none(labels[:, ::-1], subjects, few, (B, A)).rows == draw.rows
    for column, spec in enumerate((A, B)):
        alone = drawn_or_none(labels[:, [column]], subjects, few, (spec,))
        if alone is not None:
            assert alone.rows == tuple(r for r, s in zip(draw.rows, draw.shown, strict=True) if s[column])
    # Other order of the table, same cases.
    order = np.random.default_rng(gone).permutation(len(labels))
    moved = drawn_or_none(labels[order], [subjects[k] for k in order], few, cases=[f"c{k}" for k in order])
    assert {int(order[row]) for row in moved.rows} == set(draw.rows)
    # A case that was not drawn can be missing, as when an encoder's preprocessing lost it.
    left = [k for k in range(len(labels)) if k != gone]
    if gone < len(labels) and gone not in draw.rows and few.negatives == "same":
        less = drawn_or_none(labels[left], [subjects[k] for k in left], few, cases=[f"c{k}" for k in left])
        if all(pools(labels, subjects, c) == pools(labels[left], [subjects[k] for k in left], c) for c in (0, 1)):
            assert {left[row] for row in less.rows} == set(draw.rows)


def test_other_draws_are_other_patients_and_all_negatives_have_the_same_positives():
    labels = np.tile([[0.0], [1.0]], (50, 1))
    subjects, cases = [str(k) for k in range(100)], [f"c{k}" for k in range(100)]
    draws = [draw_few_shots(labels, (A,), subjects, cases, FewShots(4, k)).rows for k in range(5)]
    assert len(set(draws)) == 5
    assert all(len(rows) == 8 and labels[list(rows)].sum() == 4 for rows in draws)
    everybody = draw_few_shots(labels, (A,), subjects, cases, FewShots(4, 0, "all")).rows
    assert len(everybody) == 54
    assert set(draws[0]) <= set(everybody)
    assert FewShots(4, 0, "all").name == "4shots_all_negatives"


def test_classes_of_other_types_get_k_each():
    spec = LabelSpec(name="grade", type="ordinal", classes=("none", "mild", "severe"))
    labels = np.repeat([[0.0], [1.0], [2.0]], 5, axis=0)
    cases = [f"c{k}" for k in range(15)]
    draw = draw_few_shots(labels, (spec,), [""] * 15, cases, FewShots(2))
    assert sorted(labels[list(draw.rows), 0]) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UsageError, match="'age' is a number"):
        draw_few_shots(labels, (LabelSpec(name="age", type="continuous"),), [""] * 15, cases, FewShots(2))


def test_a_label_without_both_classes_is_refused():
    cases = [f"c{k}" for k in range(6)]
    with pytest.raises(DataError, match="positive and a negative patient"):
        draw_few_shots(np.zeros((6, 1)), (A,), cases, cases, FewShots(2))
    # one patient with both a positive and a negative scan is a positive patient, not a negative one
    with pytest.raises(DataError):
        draw_few_shots(np.array([[0.0], [1.0]]), (A,), ["x", "x"], cases[:2], FewShots(1))
