"""Tests of the statistics behind a comparison: DeLong, operating points, calibration, paired tests, BCa."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, recall_score, roc_auc_score, roc_curve

from headctssl.contract import LabelSpec
from headctssl.metrics.calibration import fit_temperature, reliability
from headctssl.metrics.classification import label_metrics
from headctssl.metrics.delong import areas, logit_interval, paired_p_value, score_interval
from headctssl.metrics.operating import OPERATING, operating_points
from headctssl.metrics.paired import difference, holm, permutation_p_value
from headctssl.metrics.statistics import bootstrap, weighted_auprc, weighted_auroc


def slow_placements(positive, score):
    """Loops over pairs, as the papers write it."""

    def wins(a, b):
        return 1.0 if a > b else 0.5 if a == b else 0.0

    above = np.array([np.mean([wins(a, b) for b in score[~positive]]) for a in score[positive]])
    below = np.array([np.mean([wins(a, b) for a in score[positive]]) for b in score[~positive]])
    return above, below


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12))
def test_delong_equals_the_sums_of_the_paper(seed, num_positive, num_negative):
    rng = np.random.default_rng(seed)
    positive = np.r_[np.ones(num_positive, bool), np.zeros(num_negative, bool)]
    scores = rng.integers(0, 6, (2, positive.size)).astype(np.float64)  # many ties
    found = areas(positive, scores, np.arange(positive.size))
    pieces = [slow_placements(positive, row) for row in scores]
    covariance = np.cov([p[0] for p in pieces]) / num_positive + np.cov([p[1] for p in pieces]) / num_negative
    assert found.covariance == pytest.approx(covariance, abs=1e-12)
    assert found.auroc == pytest.approx([roc_auc_score(positive, row) for row in scores])


def test_delong_by_patient_follows_the_bootstrap_over_patients():
    rng = np.random.default_rng(2)
    subjects = np.repeat(np.arange(60), 4)
    person = rng.normal(0, 1, 60)[subjects]
    positive = rng.random(240) < expit(person)
    score = positive + 1.5 * person + rng.normal(0, 1, 240)
    clustered = areas(positive, score[None], subjects).covariance[0, 0]
    alone = areas(positive, score[None], np.arange(240)).covariance[0, 0]
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=4000)[:, subjects]
    resampled = weighted_auroc(positive, score, weights.astype(np.float64)).var()
    assert clustered == pytest.approx(resampled, rel=0.15)
    assert clustered > 1.15 * alone


def test_intervals_of_areas_stay_in_range_and_shrink_with_cases():
    low, high = logit_interval(0.97, 0.03**2)
    assert 0 < low < 0.97 < high < 1
    assert logit_interval(1.0, 0.0) is None
    widths = []
    for count in (5, 20, 80):
        low, high = score_interval(1.0, count, count)
        assert high == 1.0
        widths.append(1 - low)
    assert widths[0] > widths[1] > widths[2] > 0
    assert score_interval(0.3, 10, 20) == pytest.approx(tuple(1 - x for x in score_interval(0.7, 10, 20)[::-1]))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 40))
def test_operating_points_equal_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    positive[:2] = True, False
    probability = rng.integers(0, 11, n) / 10
    weights = rng.integers(0, 3, (2, n)).astype(np.float64)
    weights[:, :2] += 1
    for row, found in zip(weights, operating_points(positive, probability, weights), strict=True):
        called = probability >= 0.5
        false_alarms, hits, _ = roc_curve(positive, probability, sample_weight=row, drop_intermediate=False)
        expected = {
            "brier": brier_score_loss(positive, probability, sample_weight=row),
            "balanced_accuracy": balanced_accuracy_score(positive, called, sample_weight=row),
            "f1": f1_score(positive, called, sample_weight=row, zero_division=0),
            "sensitivity": recall_score(positive, called, sample_weight=row),
            "specificity": recall_score(~positive, ~called, sample_weight=row),
            "sensitivity_at_90_specificity": hits[false_alarms <= 0.1 + 1e-12].max(),
            "specificity_at_90_sensitivity": 1 - false_alarms[hits >= 0.9 - 1e-12].min(),
        }
        assert dict(zip(OPERATING, found, strict=True)) == pytest.approx(expected, abs=1e-9)


def test_bca_equals_scipy_for_patients_of_one_case():
    rng = np.random.default_rng(4)
    positive = np.arange(90) < 30
    score = positive + rng.normal(0, 0.9, 90)

    def of_rows(rows, axis):
        counts = np.apply_along_axis(np.bincount, axis, rows, minlength=90).astype(np.float64)
        return weighted_auroc(positive, score, counts.reshape(-1, 90)).reshape(counts.shape[:-1])

    ours = bootstrap(lambda w: weighted_auroc(positive, score, w), np.arange(90), num_resamples=20_000).intervals[0]
    theirs = stats.bootstrap(
        (np.arange(90),), of_rows, method="BCa", n_resamples=20_000, vectorized=True, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)
    percentile = np.quantile(
        weighted_auroc(positive, score, rng.multinomial(90, np.full(90, 1 / 90), 20_000).astype(np.float64)),
        [0.025, 0.975],
    )
    assert abs(ours[0] - percentile[0]) > 0.006  # it is not the percentile interval


def test_classes_wholly_apart_get_an_interval_and_a_note():
    truth = np.r_[np.ones(6), np.zeros(14)]
    found = label_metrics(LabelSpec(name="x", type="binary"), truth, truth * 0.9, np.arange(20))
    assert found.auroc == 1.0
    assert found.auroc_ci == score_interval(1.0, 6, 14)
    assert "Newcombe" in (found.reason or "")


def test_temperature_is_found_again_and_reliability_sees_what_it_repairs():
    rng = np.random.default_rng(5)
    honest = rng.normal(0, 2, (4000, 2))
    truth = (rng.random((4000, 2)) < expit(honest)).astype(np.float64)
    truth[::3, 1] = np.nan
    assert fit_temperature(3 * honest, truth) == pytest.approx(3.0, rel=0.08)
    assert fit_temperature(honest, np.ones((4000, 2))) == 1.0
    positive = truth[:, 0] > 0.5
    good, bad = reliability(positive, expit(honest[:, 0])), reliability(positive, expit(3 * honest[:, 0]))
    assert good.ece < 0.03 < 0.07 < bad.ece
    assert sum(good.count) == 4000
    assert reliability(positive, np.full(4000, 0.5)).count == (4000,)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_tests_agree_and_see_only_real_differences():
    rng = np.random.default_rng(6)
    truth = (np.arange(160) < 60).astype(np.float64)[:, None]
    good = truth + rng.normal(0, 0.7, (160, 1))
    poor = truth + rng.normal(0, 2.5, (160, 1))
    subjects = np.arange(160)
    found = difference(truth, good, poor, subjects, num_resamples=400)
    assert found is not None
    assert found.interval[0] > 0
    assert 0 < found.p_value < 0.02
    delong = areas(truth[:, 0] > 0.5, np.stack([good[:, 0], poor[:, 0]]), subjects)
    assert paired_p_value(delong) < 0.01
    same = permutation_p_value(truth, good, 10 * good + 3, subjects, num_permutations=50, seed=0)
    assert same == 1.0  # only the scale differs
    assert difference(np.ones((5, 1)), good[:5], poor[:5], np.arange(5)) is None


def test_permutation_p_values_of_equal_models_are_uniform():
    rng = np.random.default_rng(7)
    values = []
    for trial in range(120):
        truth = (np.arange(30) < 10).astype(np.float64)[:, None]
        signal = truth + rng.normal(0, 1, (30, 1))
        pair = [signal + rng.normal(0, 0.5, (30, 1)) for _ in range(2)]
        values.append(permutation_p_value(truth, *pair, np.arange(30), num_permutations=99, seed=trial))
    assert np.mean(np.array(values) <= 0.05) <= 0.1
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)


@pytest.mark.evidence
def test_bca_covers_within_two_points_at_20_positives_and_80_negatives(capsys):
    rng = np.random.default_rng(0)
    lines = ["| positives | negatives | AUROC | BCa AUROC | percentile AUROC | logit DeLong | BCa AUPRC |"]
    for num_positive, num_negative in ((5, 20), (5, 80), (10, 40), (20, 80), (50, 200)):
        for area in (0.7, 0.85, 0.95):
            row = _coverage(num_positive, num_negative, area, rng, runs=2000)
            lines.append(f"| {num_positive} | {num_negative} | {area} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
            if num_positive >= 20:
                assert row[0] == pytest.approx(0.95, abs=0.02), lines[-1]
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _coverage(num_positive, num_negative, area, rng, runs):
    """Share of runs whose interval holds the truth: (BCa, percentile, logit DeLong where defined, BCa of AUPRC)."""
    positive = np.r_[np.ones(num_positive, bool), np.zeros(num_negative, bool)]
    apart = stats.norm.ppf(area) * 2**0.5  # two normals whose AUROC is `area`
    grid = np.linspace(-8, 12, 200_001)
    recall, alarms = stats.norm.sf(grid - apart), stats.norm.sf(grid)
    precision = recall * num_positive / np.maximum(recall * num_positive + alarms * num_negative, 1e-300)
    auprc = float(-np.trapezoid(precision, recall))
    subjects, covered, defined = np.arange(positive.size), np.zeros(4), 0
    for run in range(runs):
        score = rng.normal(size=positive.size) + apart * positive

        def both(w, score=score):
            return np.stack([weighted_auroc(positive, score, w), weighted_auprc(positive, score, w)], axis=1)

        bca = bootstrap(both, subjects, num_resamples=1000, seed=run).intervals
        found = areas(positive, score[None], subjects)
        weights = rng.multinomial(positive.size, np.full(positive.size, 1 / positive.size), 1000).astype(np.float64)
        low, high = np.nanquantile(weighted_auroc(positive, score, weights), [0.025, 0.975])
        first = bca[0] or score_interval(float(found.auroc[0]), num_positive, num_negative)
        covered[0] += first[0] <= area <= first[1]
        covered[1] += low <= area <= high
        delong = logit_interval(float(found.auroc[0]), float(found.covariance[0, 0]))
        defined += delong is not None
        covered[2] += delong is not None and delong[0] <= area <= delong[1]
        covered[3] += bca[1] is not None and bca[1][0] <= auprc <= bca[1][1]
    return covered / [runs, runs, max(defined, 1), runs]
