"""Tests of the statistics behind a comparison: DeLong, operating points, calibration, paired tests, BCa."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, recall_score, roc_auc_score, roc_curve
from sklearn.metrics import log_loss as sklearn_log_loss

from headctssl.contract import LabelSpec
from headctssl.metrics.abstention import abstention, area_under_risk
from headctssl.metrics.calibration import fit_temperature, log_loss, reliability
from headctssl.metrics.chance import chance_p_value
from headctssl.metrics.classification import label_metrics
from headctssl.metrics.coverage import coverage_cells, measured_coverage
from headctssl.metrics.delong import areas, logit_interval, moderated_interval, paired_p_value, score_interval
from headctssl.metrics.operating import OPERATING, operating_points
from headctssl.metrics.paired import difference, holm, permutation_p_value
from headctssl.metrics.statistics import bootstrap, weighted_auroc

ROOT = Path(__file__).parents[2]


@pytest.fixture
def coverage(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import coverage

    return coverage


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


def test_classes_wholly_apart_get_an_interval():
    truth = np.r_[np.ones(6), np.zeros(14)]
    found = label_metrics(LabelSpec(name="x", type="binary"), truth, truth * 0.9, np.arange(20))
    assert found.auroc == 1.0
    assert found.auroc_ci == score_interval(1.0, 6, 14)
    assert found.auroc_bca_ci is None
    assert found.auroc_p_value < 0.002


def test_temperature_is_found_again_and_reliability_sees_what_it_repairs():
    rng = np.random.default_rng(5)
    honest = rng.normal(0, 2, 4000)
    positive = rng.random(4000) < expit(honest)

    def total(logits, truth):
        return lambda t: logits.size * log_loss(truth, expit(logits / t))

    assert fit_temperature(total(3 * honest, positive)) == pytest.approx(3.0, rel=0.08)
    # Ten cases ranked without a fault do not ask for certainty; without the prior it would be the lower limit.
    apart = np.r_[np.full(5, 2.0), np.full(5, -2.0)]
    assert 0.3 < fit_temperature(total(apart, apart > 0)) < 1
    good, bad = reliability(positive, expit(honest)), reliability(positive, expit(3 * honest))
    assert good.ece < 0.03 < 0.07 < bad.ece
    assert sum(good.count) == 4000
    assert reliability(positive, np.full(4000, 0.5)).count == (4000,)
    assert log_loss(positive, expit(honest)) == pytest.approx(sklearn_log_loss(positive, expit(honest)))


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


def test_the_printed_interval_is_the_score_interval_between_two_variances():
    apart = moderated_interval(1.0, 0.0, 6, 14)
    assert apart == score_interval(1.0, 6, 14)  # no variance is known: the model's alone
    few, many = moderated_interval(0.9, 1e-4, 8, 30), moderated_interval(0.9, 1e-4, 200, 800)
    assert few[1] - few[0] > 0.1 > 0.05 > many[1] - many[0]  # many patients are believed
    large = moderated_interval(0.9, 0.01, 200, 800)  # never below what was observed
    low, high = brentq(lambda x: (0.9 - x) ** 2 - 3.8414588 * 0.01 * shape(x) / shape(0.9), 0, 0.9), large[1]
    assert large == pytest.approx((low, high), abs=1e-6)
    assert moderated_interval(0.1, 0.002, 20, 80) == pytest.approx(
        tuple(1 - x for x in moderated_interval(0.9, 0.002, 20, 80)[::-1])
    )


def shape(area, positives=200, negatives=800):
    """Hanley and McNeil's variance in Newcombe's symmetric form, up to a factor."""
    others = (positives + negatives) / 2 - 1
    return area * (1 - area) * (1 + others * ((1 - area) / (2 - area) + area / (1 + area)))


def test_chance_is_told_from_signal_and_keeps_its_level():
    rng = np.random.default_rng(3)
    positive = np.arange(40) < 12
    alone = np.arange(40)
    signal = positive + rng.normal(0, 0.5, 40)
    found = areas(positive, signal[None], alone)
    assert chance_p_value(positive, signal, alone, found) == pytest.approx(1 / 2001)
    exact = stats.mannwhitneyu(signal[positive][:4], signal[~positive][:6], method="exact").pvalue
    few = np.r_[np.arange(4), 12 + np.arange(6)]
    ours = chance_p_value(
        positive[few],
        signal[few],
        np.arange(10),
        areas(positive[few], signal[None, few], np.arange(10)),
        num_permutations=20_000,
    )
    assert ours == pytest.approx(exact, abs=0.004)
    values = []
    subjects = np.r_[np.arange(20), np.repeat(np.arange(20, 30), 2)]
    for seed in range(150):
        rng = np.random.default_rng(seed)
        labels = (rng.random(30) < 0.4)[subjects]
        labels[0], labels[1] = True, False
        score = rng.normal(0, 1, 30)[subjects] + rng.normal(0, 0.1, 40)  # scans of one patient are alike
        found = areas(labels, score[None], subjects)
        values.append(chance_p_value(labels, score, subjects, found, num_permutations=199, seed=seed))
    assert np.mean(np.array(values) <= 0.1) < 0.18
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)
    assert chance_p_value(np.array([True, False]), np.arange(2.0), np.zeros(2, int), found) is None


def test_large_cohorts_use_the_normal_approximation():
    rng = np.random.default_rng(1)
    positive = rng.random(2400) < 0.5
    score = rng.normal(size=2400) + 0.08 * positive
    subjects = np.arange(2400)
    found = areas(positive, score[None], subjects)
    z = (found.auroc[0] - 0.5) / found.covariance[0, 0] ** 0.5
    assert chance_p_value(positive, score, subjects, found) == pytest.approx(2 * stats.norm.sf(abs(z)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 25))
def test_area_under_risk_is_the_mean_of_the_risks_of_the_paper(seed, n):
    rng = np.random.default_rng(seed)
    wrong, sureness = rng.random(n) < 0.4, rng.permutation(n).astype(np.float64)
    order = np.argsort(-sureness)
    risks = [wrong[order[: k + 1]].mean() for k in range(n)]
    found = abstention(wrong, sureness, np.arange(n))
    assert found.aurc == pytest.approx(np.mean(risks))
    best = np.sort(wrong)
    assert found.best_aurc == pytest.approx(np.mean([best[: k + 1].mean() for k in range(n)]))
    assert found.best_aurc <= found.aurc + 1e-12
    assert found.error_rate == wrong.mean() == found.curve[-1][1]
    assert abstention(wrong, np.zeros(n), np.arange(n)).curve == ((1.0, wrong.mean()),)
    twice = np.r_[sureness, sureness]
    weights = np.ones((1, 2 * n))
    assert area_under_risk(np.r_[wrong, wrong], twice, weights)[0] == pytest.approx(found.aurc)


def test_few_patients_are_told_the_coverage_that_was_measured():
    content = coverage_cells()
    assert content["runs"] == 2000
    exact = measured_coverage(5, 20)
    same = [c for c in content["cells"] if (c["positives"], c["negatives"]) == (5, 20)]
    assert exact.lowest == min(c["printed"] for c in same)
    assert measured_coverage(7, 33) == exact
    assert measured_coverage(33, 7).positives == 20  # the classes may be exchanged
    assert measured_coverage(2, 500) is None
    assert measured_coverage(5000, 5000).positives == 100


def test_the_measured_coverage_is_what_was_promised(coverage):
    """At 20 positives and 80 negatives or more, within 2 points of 95 % for scores of equal spread."""
    cells = [c for c in coverage_cells()["cells"] if c["shape"] == "equal"]
    for cell in cells:
        if cell["positives"] >= 20 and cell["negatives"] >= 80:
            assert cell["printed"] == pytest.approx(0.95, abs=0.02), cell
        if (cell["positives"], cell["negatives"]) in ((20, 80), (50, 200), (100, 400)):
            assert cell["bca"] == pytest.approx(0.95, abs=0.02), cell
    text = (ROOT / "documentation" / "statistics.md").read_text(encoding="utf-8")
    assert coverage.tables() in text, "run: python -m benchmarks.coverage --page"


def test_the_simulation_makes_the_intervals_that_are_printed(coverage):
    """One cohort by the matrix products of the simulation and by the functions that metrics.json is made with."""
    rng = np.random.default_rng(8)
    positive = np.arange(60) < 15
    score = rng.normal(size=60) + 1.5 * positive
    right = (score[positive][:, None] > score[~positive]).astype(np.float32)
    of_positives, of_negatives = coverage._draws(15, 45, 6000, rng)
    resampled = ((of_positives @ right) * of_negatives).sum(axis=1).astype(np.float64)
    simulated = coverage._intervals(right.astype(np.float64), resampled)
    found = label_metrics(
        LabelSpec(name="x"), positive.astype(np.float64), expit(score), np.arange(60), num_resamples=6000
    )
    assert simulated["printed"] == pytest.approx(found.auroc_ci, abs=1e-6)
    assert simulated["delong"] == pytest.approx(found.auroc_delong_ci, abs=1e-6)
    assert simulated["bca"] == pytest.approx(found.auroc_bca_ci, abs=0.01)


@pytest.mark.evidence
def test_intervals_cover_within_two_points_at_20_positives_and_80_negatives(coverage, capsys):
    """Other seeds than those of the table."""
    for positives, negatives in ((20, 80), (50, 200), (20, 400)):
        for area in (0.7, 0.85, 0.95):
            line = coverage.cell("equal", positives, negatives, area, runs=2000, resamples=2000, seed=1)
            with capsys.disabled():
                print(line)
            assert line["printed"] == pytest.approx(0.95, abs=0.02)
            if negatives < 400:
                assert line["bca"] == pytest.approx(0.95, abs=0.02)
