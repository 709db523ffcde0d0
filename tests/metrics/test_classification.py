"""Tests of metrics/classification.py: unknown labels are left out, one class gives None with a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from headctssl.contract import LabelSpec
from headctssl.metrics.classification import auprc, auroc, label_metrics, mean_auroc, metric_rows, one_class_reason
from headctssl.metrics.metrics_file import Metrics

BINARY = LabelSpec(name="IPH")


def made(n=60, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.4).astype(np.float64)
    return truth, truth + rng.normal(0, 1, n)


def test_unknown_labels_are_left_out():
    truth, score = made()
    masked = truth.copy()
    masked[::4] = np.nan
    known = ~np.isnan(masked)
    assert auroc(masked, score) == roc_auc_score(truth[known], score[known])
    assert auprc(masked, score) == average_precision_score(truth[known], score[known])
    result = label_metrics(BINARY, masked, score, np.arange(60), num_resamples=100)
    assert (result.n_known, result.n_unknown) == (45, 15)
    assert result.n_positive + result.n_negative == 45
    assert result.auroc_ci[0] < result.auroc < result.auroc_ci[1]


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "no positive case"), (1.0, "no negative case"), (np.nan, "no case with a known label")]
)
def test_one_class_gives_none_and_says_why(value, reason):
    truth, score = np.full(7, value), np.arange(7.0)
    assert one_class_reason(truth) == reason
    assert auroc(truth, score) is None
    assert auprc(truth, score) is None
    result = label_metrics(BINARY, truth, score, np.arange(7))
    assert (result.auroc, result.auroc_ci, result.reason) == (None, None, reason)


def test_mean_auroc_is_over_the_defined_labels():
    truth, score = made()
    both = np.stack([truth, np.zeros(60), truth], axis=1)
    scores = np.stack([score, score, -score], axis=1)
    value, interval = mean_auroc(both, scores, np.arange(60), num_resamples=200)
    assert value == pytest.approx(0.5)  # x and 1 - x
    assert interval is None  # one draw of patients for all labels: the same in every resample
    assert mean_auroc(np.zeros((5, 1)), np.zeros((5, 1)), np.arange(5)) == (None, None)


def test_metrics_file_is_keyed_by_label_and_reads_back():
    truth, score = made()
    entry = label_metrics(BINARY, truth, score, np.arange(60), num_resamples=50)
    metrics = Metrics(dataset_name="Dataset001_A", evaluated_on="test", num_cases=60, num_subjects=60, labels=(entry,))
    written = json.loads(metrics.model_dump_json())
    wanted = {"type", "auroc", "auroc_ci", "auprc", "auprc_ci", "n_positive", "n_negative"}
    assert wanted <= set(written["labels"]["IPH"])
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics
    assert metric_rows(metrics.labels)[0][0] == "IPH"
