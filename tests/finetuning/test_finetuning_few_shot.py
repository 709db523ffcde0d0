"""Tests of finetuning/few_shot.py: K distinct patients per class, without replacement, seeded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import DataError
from headctssl.finetuning.few_shot import draw_few_shots


@st.composite
def cohorts(draw):
    n = draw(st.integers(4, 40))
    cell = st.sampled_from([0.0, 1.0, np.nan])
    labels = np.array(draw(st.lists(st.tuples(cell, cell), min_size=n, max_size=n)))
    subjects = np.array(draw(st.lists(st.integers(0, 15), min_size=n, max_size=n)))
    return labels, subjects, draw(st.integers(1, 5)), draw(st.integers(0, 3))


def drawn_or_skip(labels, subjects, shots, seed, names=("a", "b")):
    try:
        return draw_few_shots(labels, names, subjects, shots, seed)
    except DataError:
        return None


def pools(labels, subjects, column):
    positive = {int(s) for s in subjects[labels[:, column] > 0.5]}
    negative = {int(s) for s in subjects[labels[:, column] <= 0.5]} - positive
    return positive, negative


@settings(max_examples=150, deadline=None)
@given(cohorts())
def test_every_label_gets_k_distinct_patients_per_class_or_all_there_are(cohort):
    labels, subjects, shots, seed = cohort
    draw = drawn_or_skip(labels, subjects, shots, seed)
    if draw is None:
        assert all(not p or not n for p, n in (pools(labels, subjects, c) for c in (0, 1)))
        return
    rows = np.array(draw.rows)
    assert len(set(draw.rows)) == len(draw.rows)
    short = set()
    for column, name in enumerate(("a", "b")):
        positive, negative = pools(labels, subjects, column)
        chosen = labels[rows, column]
        assert len({int(s) for s in subjects[rows][chosen > 0.5]}) >= min(shots, len(positive))
        assert len({int(s) for s in subjects[rows][chosen <= 0.5]} & negative) >= min(shots, len(negative))
        short |= {f"{name} positive"} if len(positive) < shots else set()
        short |= {f"{name} negative"} if len(negative) < shots else set()
    assert len(draw.shortages) == len(short)
    assert len(rows) <= 2 * 2 * shots


@settings(max_examples=60, deadline=None)
@given(cohorts())
def test_draws_are_seeded_nested_and_independent_of_other_labels(cohort):
    labels, subjects, shots, seed = cohort
    draw = drawn_or_skip(labels, subjects, shots, seed)
    more = drawn_or_skip(labels, subjects, shots + 1, seed)
    if draw is None or more is None:
        return
    assert draw == draw_few_shots(labels, ("a", "b"), subjects, shots, seed)
    assert set(draw.rows) <= set(more.rows)
    swapped = draw_few_shots(labels[:, ::-1], ("b", "a"), subjects, shots, seed)
    assert draw.rows == swapped.rows
    alone = drawn_or_skip(labels[:, :1], subjects, shots, seed, ("a",))
    assert alone is None or set(alone.rows) <= set(draw.rows)


def test_another_seed_draws_others():
    labels = np.tile([[0.0], [1.0]], (50, 1))
    draws = {draw_few_shots(labels, ("a",), np.arange(100), 4, seed).rows for seed in range(5)}
    assert len(draws) == 5
    assert all(len(rows) == 8 and labels[list(rows)].sum() == 4 for rows in draws)


def test_a_label_without_both_classes_is_refused():
    with pytest.raises(DataError, match="positive and a negative patient"):
        draw_few_shots(np.zeros((6, 1)), ("a",), np.arange(6), 2, 0)
    # one patient with both a positive and a negative scan is a positive patient, not a negative one
    with pytest.raises(DataError):
        draw_few_shots(np.array([[0.0], [1.0]]), ("a",), np.array([0, 0]), 1, 0)
