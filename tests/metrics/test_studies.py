"""Tests of metrics/studies.py: one prediction per study, whatever the order of its scans, never of two subjects."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import LabelSpec, column_slices
from headctssl.metrics.outcome import Outcome
from headctssl.metrics.studies import aggregated, by_study, group_scans, measure_studies, write_studies

LABELS = (
    LabelSpec(name="bleed"),
    LabelSpec(name="kind", type="multiclass", classes=("a", "b", "c")),
    LabelSpec(name="grade", type="ordinal", classes=("0", "1", "2")),
    LabelSpec(name="mm", type="continuous"),
)


def outcome(n=12, seed=0):
    """Scans of labels of all types; two of three belong to a session with others."""
    rng = np.random.default_rng(seed)
    table = np.column_stack(
        [rng.random(n), rng.dirichlet(np.ones(3), n), rng.dirichlet(np.ones(3), n), rng.normal(5, 2, n)]
    )
    truth = np.column_stack([np.zeros(n), np.ones(n), np.full(n, 2), np.arange(n)]).astype(np.float64)
    case_ids = tuple(f"c{k:02d}" for k in range(n))
    subjects = tuple(f"p{k // 4}" for k in range(n))
    sessions = {c: ("", "s1", "s1", "s2")[k % 4] for k, c in enumerate(case_ids)}
    return Outcome(LABELS, case_ids, subjects, truth, table), sessions


@pytest.mark.parametrize("how", ["mean", "max"])
@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(12)), seed=st.integers(0, 100))
def test_a_study_does_not_depend_on_the_order_of_scans(how, order, seed):
    scans, sessions = outcome(seed=seed)
    turned = Outcome(
        LABELS,
        tuple(scans.case_ids[k] for k in order),
        tuple(scans.subject_ids[k] for k in order),
        scans.truth[list(order)],
        scans.probability[list(order)],
    )
    one, other = by_study(scans, sessions, how), by_study(turned, sessions, how)
    assert one.outcome.case_ids == other.outcome.case_ids
    assert (one.session_ids, one.num_scans) == (other.session_ids, other.num_scans)
    assert np.array_equal(one.outcome.probability, other.outcome.probability)
    assert np.array_equal(one.outcome.truth, other.outcome.truth)


names = st.sampled_from(["", "a", "b", "c"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(names, names), min_size=1, max_size=12))
def test_studies_never_mix_subjects_or_sessions_and_hold_every_scan_once(rows):
    subjects, sessions = [row[0] for row in rows], [row[1] for row in rows]
    groups = group_scans([f"c{k}" for k in range(len(rows))], subjects, sessions)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        assert len({rows[row] for row in group}) == 1
        assert len(group) == 1 or all(rows[group[0]])
    known = [row for row in rows if all(row)]
    assert len(groups) == len(set(known)) + len(rows) - len(known)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000), st.sampled_from(["mean", "max"]))
def test_probabilities_of_a_study_are_probabilities(k, seed, how):
    scans = outcome(k, seed)[0].probability
    found = aggregated(LABELS, scans, how)
    for spec, where in zip(LABELS, column_slices(LABELS), strict=True):
        if spec.has_classes:
            assert found[where].sum() == pytest.approx(1)
            assert (found[where] >= -1e-12).all()
        else:
            assert scans[:, where].min() <= found[where][0] <= scans[:, where].max()
    repeated = aggregated(LABELS, np.tile(scans[:1], (3, 1)), how)
    assert repeated == pytest.approx(scans[0])  # scans that say the same


def test_the_maximum_is_of_what_a_scan_shows():
    scans = np.array([[0.2, 0.7, 0.2, 0.1, 0.8, 0.1, 0.1, 3], [0.9, 0.1, 0.8, 0.1, 0.3, 0.3, 0.4, 1]])
    found = aggregated(LABELS, scans, "max")
    assert found == pytest.approx([0.9, 0.7 / 1.6, 0.8 / 1.6, 0.1 / 1.6, 0.3, 0.3, 0.4, 3])
    assert aggregated(LABELS, scans, "mean") == pytest.approx(scans.mean(axis=0))


def test_the_truth_of_a_study_is_what_its_scans_agree_on(tmp_path):
    scans, sessions = outcome(4)
    truth = scans.truth.copy()
    truth[1:3] = [[0, 1, 2, 4], [1, np.nan, 2, 7]]
    studies = by_study(Outcome(LABELS, scans.case_ids, scans.subject_ids, truth, scans.probability), sessions, "mean")
    assert studies.outcome.case_ids == ("c00", "c01", "c03")
    assert studies.num_scans == (1, 2, 1)
    assert np.array_equal(studies.outcome.truth[1], [np.nan, 1, 2, 5.5], equal_nan=True)
    assert studies.contradictions == ("the scans of 1 studies contradict each other in 'bleed': unknown for the study",)
    with open(write_studies(tmp_path / "s.csv", studies), newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["subject_id"], r["session_id"], r["num_scans"]) for r in rows] == [
        ("p0", "c00", "1"), ("p0", "s1", "2"), ("p0", "s2", "1"),
    ]  # fmt: skip
    assert float(rows[1]["bleed"]) == pytest.approx(scans.probability[1:3, 0].mean(), rel=1e-5)


def test_single_scans_give_no_block_and_several_are_measured_by_study():
    scans, sessions = outcome(40)
    scans.truth[:, 0] = np.arange(40) // 4 % 2
    assert measure_studies(scans, {}, "mean", num_resamples=50) is None
    studies, block = measure_studies(scans, sessions, "max", num_resamples=50)
    assert (block.aggregate, block.num_studies, block.num_with_several) == ("max", 30, 10)
    assert [m.name for m in block.labels] == [spec.name for spec in LABELS]
    assert block.labels[0].n_known == 30
    assert studies.outcome.probability.shape == (30, 8)
