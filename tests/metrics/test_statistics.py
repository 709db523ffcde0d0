"""Tests of metrics/statistics.py: rank statistics equal scikit-learn, patients are resampled whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from headctssl.metrics.statistics import bootstrap, draw_weights, subject_codes, weighted_auprc, weighted_auroc


@st.composite
def weighted_samples(draw):
    n = draw(st.integers(2, 30))
    truth = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    score = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), dtype=np.float64)  # many ties
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=np.float64)
    return truth, score, weights


@settings(max_examples=150, deadline=None)
@given(weighted_samples())
def test_weighted_rank_statistics_equal_scikit_learn(sample):
    truth, score, weights = sample
    rows = np.stack([weights, np.ones_like(weights)])
    ours = weighted_auroc(truth, score, rows), weighted_auprc(truth, score, rows)
    for row, auroc, auprc in zip(rows, *ours, strict=True):
        if row[truth].sum() == 0 or row[~truth].sum() == 0:
            assert np.isnan(auroc)
            assert np.isnan(auprc)
        else:
            assert auroc == pytest.approx(roc_auc_score(truth, score, sample_weight=row), abs=1e-9)
            assert auprc == pytest.approx(average_precision_score(truth, score, sample_weight=row), abs=1e-9)


def test_cases_of_a_subject_are_drawn_together_and_unknown_subjects_are_their_own():
    codes = subject_codes(["p1", "", "p1", "", "p2"], ["a", "p1", "c", "d", "e"])
    assert codes.tolist() == [0, 1, 0, 2, 3]  # a case named like a subject is not that subject
    weights = draw_weights(codes, 200, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 2]).all()
    per_subject = weights[:, [0, 1, 3, 4]]
    assert (per_subject.sum(axis=1) == 4).all()
    assert per_subject.mean(axis=0) == pytest.approx(1.0, abs=0.2)


def test_interval_is_wider_when_cases_cluster_in_patients():
    rng = np.random.default_rng(3)
    truth = np.repeat(rng.random(40) < 0.5, 5)
    score = np.repeat(truth[::5] + rng.normal(0, 1.2, 40), 5)

    def statistic(weights):
        return weighted_auroc(truth, score, weights)

    alone = bootstrap(statistic, np.arange(200), seed=1)
    patients = bootstrap(statistic, np.repeat(np.arange(40), 5), seed=1)
    width = [b.intervals[0][1] - b.intervals[0][0] for b in (alone, patients)]
    assert width[1] > 1.7 * width[0]  # sqrt(5) = 2.2 in expectation


def test_bootstrap_repeats_with_its_seed_and_counts_redrawn_resamples():
    truth = np.array([True] + [False] * 9)
    score = np.linspace(1, 0, 10)

    def statistic(weights):
        return weighted_auroc(truth, score, weights)

    first, again = (bootstrap(statistic, np.arange(10), seed=5) for _ in range(2))
    assert first == again
    assert first.resamples == 2000
    # a resample without the one positive has probability .9 ** 10 = .349: 1071 redrawn per 2000 kept
    assert 950 < first.redrawn < 1200
    assert bootstrap(statistic, np.arange(10), seed=6).redrawn != first.redrawn


def test_bootstrap_gives_up_with_a_reason():
    def statistic(weights):
        return np.full(len(weights), np.nan)

    result = bootstrap(statistic, np.arange(5), num_resamples=50)
    assert result.intervals == ()
    assert result.redrawn == 1000
    assert "0 of 1000" in (result.reason or "")
    assert bootstrap(statistic, np.zeros(5, dtype=np.int64)).reason == "fewer than two patients"


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        truth = np.arange(80) < 30
        score = rng.normal(0, 1, 80) + truth  # AUROC of two normals one sigma apart: 0.7602

        def statistic(weights, truth=truth, score=score):
            return weighted_auroc(truth, score, weights)

        low, high = bootstrap(statistic, np.arange(80), num_resamples=400, seed=trial).intervals[0]
        covered += low <= 0.7602 <= high
    assert 87 <= covered <= 100
