"""Tests of metrics of multiclass, ordinal and continuous labels against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

from headctssl.contract import LabelSpec
from headctssl.metrics.class_metrics import confusion, from_confusion, macro_auroc, quadratic_kappa
from headctssl.metrics.classification import label_metrics, other_rows
from headctssl.metrics.concordance import concordance
from headctssl.metrics.number_metrics import weighted_pearson, weighted_spearman
from headctssl.metrics.outcome import Outcome, interval_warnings
from headctssl.metrics.prediction_table import called_class

MANY = LabelSpec(name="kind", type="multiclass", classes=("a", "b", "c", "never"))
GRADE = LabelSpec(name="grade", type="ordinal", classes=("none", "mild", "severe"))
SHIFT = LabelSpec(name="mm", type="continuous")


def classes(n, count, seed):
    """Truth (n,) of `count` classes and probabilities (n, count + 1) that know something; the last never occurs."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, count, n)
    raw = np.exp(rng.normal(size=(n, count + 1)) + 1.2 * np.eye(count + 1)[truth])
    return truth.astype(np.float64), raw / raw.sum(axis=1, keepdims=True)


def test_metrics_of_classes_are_those_of_scikit_learn():
    truth, probability = classes(80, 3, 0)
    called = probability.argmax(axis=1)
    found = label_metrics(MANY, truth, probability, np.arange(80), num_resamples=200)
    assert found.accuracy == pytest.approx(sk.accuracy_score(truth, called))
    assert found.balanced_accuracy == pytest.approx(sk.recall_score(truth, called, labels=[0, 1, 2], average="macro"))
    assert found.macro_f1 == pytest.approx(sk.f1_score(truth, called, average="macro"))
    assert found.auroc == pytest.approx(np.mean([sk.roc_auc_score(truth == k, probability[:, k]) for k in range(3)]))
    assert found.confusion == tuple(map(tuple, sk.confusion_matrix(truth, called, labels=range(4)).tolist()))
    assert found.classes == MANY.classes
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        low, high = getattr(found, f"{name}_ci")
        assert low < getattr(found, name) < high, name
    assert (found.mae, found.quadratic_kappa, found.auprc) == (None, None, None)


def test_metrics_of_an_ordinal_label():
    truth, probability = classes(80, 3, 1)
    probability = probability[:, :3] / probability[:, :3].sum(axis=1, keepdims=True)
    called = called_class(GRADE, probability)
    found = label_metrics(GRADE, truth, probability, np.arange(80), num_resamples=200)
    assert found.quadratic_kappa == pytest.approx(sk.cohen_kappa_score(truth, called, weights="quadratic"))
    assert found.mae == pytest.approx(sk.mean_absolute_error(truth, called))
    assert found.spearman == pytest.approx(spearmanr(truth, probability @ np.arange(3)).statistic)
    assert found.auroc is None
    for name in ("quadratic_kappa", "mae", "spearman"):
        low, high = getattr(found, f"{name}_ci")
        assert low < getattr(found, name) < high, name


def test_metrics_of_a_number_are_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(2)
    truth = rng.normal(5, 3, 70).round(1)
    predicted = 0.7 * truth + rng.normal(0, 2, 70)
    truth[::7] = np.nan
    known = ~np.isnan(truth)
    found = label_metrics(SHIFT, truth, predicted, np.arange(70), num_resamples=200)
    a, b = truth[known], predicted[known]
    assert (found.n_known, found.n_unknown) == (60, 10)
    assert found.mae == pytest.approx(sk.mean_absolute_error(a, b))
    assert found.rmse == pytest.approx(sk.root_mean_squared_error(a, b))
    assert found.r2 == pytest.approx(sk.r2_score(a, b))
    assert found.pearson == pytest.approx(pearsonr(a, b).statistic)
    assert found.spearman == pytest.approx(spearmanr(a, b).statistic)
    for name in ("mae", "rmse", "r2", "pearson", "spearman"):
        low, high = getattr(found, f"{name}_ci")
        assert low < getattr(found, name) < high, name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_weights_are_repeated_cases(seed):
    """Every statistic of a row of whole weights is that of the sample with each case as often as it weighs."""
    rng = np.random.default_rng(seed)
    truth, probability = classes(25, 3, seed)
    called, weights = probability.argmax(axis=1), rng.multinomial(25, np.full(25, 1 / 25), 3).astype(np.float64)
    matrices = confusion(truth.astype(np.int64) * 4 + called, 4, weights)
    numbers = rng.normal(size=(2, 25)).round(1)
    found = np.column_stack(
        [
            from_confusion(matrices),
            quadratic_kappa(matrices),
            macro_auroc(truth, probability, weights),
            weighted_pearson(numbers[0], numbers[1], weights),
            weighted_spearman(numbers[0], numbers[1], weights),
        ]
    )
    for row, ours in zip(weights, found, strict=True):
        i = np.repeat(np.arange(25), row.astype(int))
        present = np.unique(truth[i])
        lost = present.size < np.unique(truth).size
        auroc = np.nan if lost else np.mean([sk.roc_auc_score(truth[i] == k, probability[i, int(k)]) for k in present])
        expected = [
            sk.accuracy_score(truth[i], called[i]),
            sk.recall_score(truth[i], called[i], labels=present, average="macro"),
            sk.f1_score(truth[i], called[i], average="macro", zero_division=0),
            sk.cohen_kappa_score(truth[i], called[i], weights="quadratic", labels=range(4)),
            auroc,
            pearsonr(numbers[0, i], numbers[1, i]).statistic,
            spearmanr(numbers[0, i], numbers[1, i]).statistic,
        ]
        assert ours == pytest.approx(expected, nan_ok=True)


def test_a_metric_that_is_undefined_takes_no_interval_from_the_others():
    truth = np.array([0.0, 1, 2] * 10)
    same = np.tile([0.2, 0.6, 0.2], (30, 1))  # always 'mild': no rank correlation
    found = label_metrics(GRADE, truth, same, np.arange(30), num_resamples=100)
    assert found.spearman is None
    assert found.quadratic_kappa == pytest.approx(0)
    assert found.accuracy_ci is not None
    for truth, reason in ((np.ones(30), "fewer than two classes occur"), (np.full(30, np.nan), "no case with a known")):
        none = label_metrics(MANY, truth, np.full((30, 4), 0.25), np.arange(30))
        assert (none.auroc, none.accuracy) == (None, None)
        assert reason in none.reason
    constant = label_metrics(SHIFT, np.ones(30), np.arange(30.0), np.arange(30))
    assert (constant.r2, constant.mae) == (None, None)
    assert "all the same" in constant.reason


def test_a_constant_does_not_correlate_even_by_rounding():
    constant, weights = np.full(9, 0.1), np.ones((1, 9))
    assert np.isnan(weighted_pearson(constant, np.arange(9.0), weights)).all()
    assert np.isnan(weighted_spearman(np.arange(9.0), constant, weights)).all()


def test_the_ordinal_call_is_the_median_and_costs_least():
    rng = np.random.default_rng(3)
    probability = rng.dirichlet(np.ones(3), 200)
    cost = probability @ np.abs(np.arange(3)[:, None] - np.arange(3)[None, :])
    assert np.array_equal(called_class(GRADE, probability), cost.argmin(axis=1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=25))
def test_concordance_is_the_share_of_pairs(rows):
    truth, score = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    n = len(rows)
    pairs = [(i, j) for i in range(n) for j in range(n) if truth[i] > truth[j]]
    found = concordance(truth, score)
    if not pairs:
        assert found is None
        return
    expected = np.mean([(score[i] > score[j]) + 0.5 * (score[i] == score[j]) for i, j in pairs])
    assert found == pytest.approx(expected)
    if set(truth) == {0.0, 1.0}:
        assert found == pytest.approx(sk.roc_auc_score(truth, score))


def test_the_printed_table_names_what_each_type_is_measured_by():
    truth, probability = classes(60, 3, 4)
    many = label_metrics(MANY, truth, probability, np.arange(60), num_resamples=50)
    number = label_metrics(SHIFT, truth, truth + 0.5, np.arange(60), num_resamples=50)
    rows = other_rows([many, number])
    assert [row[:3] for row in rows] == [("kind", "multiclass", "60"), ("mm", "continuous", "60")]
    assert "balanced accuracy" in rows[0][3]
    assert "MAE 0.500, R2" in rows[1][3]


def test_few_patients_of_a_class_are_told():
    truth = np.repeat([0.0, 1, 2], [20, 9, 12])[:, None]
    ids = tuple(f"c{k}" for k in range(41))
    found = Outcome((GRADE,), ids, ids, truth, np.full((41, 3), 1 / 3))
    (sentence,) = interval_warnings(found)
    assert "few patients, 9 of 'mild', 12 of 'severe':" in sentence
