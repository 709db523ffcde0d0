"""Tests of metrics/histogram.py: shares against a slow count, no look at held-out subjects, unknown labels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from headctssl.errors import DataError
from headctssl.ingest.phantom.make import make_phantom
from headctssl.metrics.classification import auroc
from headctssl.metrics.histogram import (
    EDGES_HU,
    HistogramBaseline,
    cross_validated,
    head_histogram,
    histogram_features,
)
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.volume.mask_store import StoredMask
from headctssl.volume.store import StoredCase


def test_histogram_is_the_logarithm_of_shares():
    rng = np.random.default_rng(0)
    hu = rng.integers(-1100, 3200, (6, 7, 8)).astype(np.int16)
    head = rng.random((6, 7, 8)) < 0.5
    found = head_histogram(hu, head)
    assert found.shape == (len(EDGES_HU) - 1,)
    inside = np.clip(hu[head], -1024, 3071)
    for low, high, value in zip(EDGES_HU[:-1], EDGES_HU[1:], found, strict=True):
        share = sum(1 for v in inside if low <= v < high) / len(inside)
        assert value == pytest.approx(np.log(share + 1e-5))
    hu[~head] = 40
    assert np.array_equal(head_histogram(hu, head), found)


def test_edges_are_fine_where_blood_and_brain_differ():
    assert list(EDGES_HU) == sorted(set(EDGES_HU))
    widths = {b - a for a, b in pairwise(EDGES_HU) if 0 <= a < 96}
    assert widths == {4}


def test_features_are_of_stored_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    make_phantom(1, n=3, profile="laptop", num_workers=1, quiet=True)
    plan_and_preprocess([1], num_workers=1, quiet=True)
    folder = next((tmp_path / "preprocessed").glob("*/*/cases.csv")).parent
    index = CaseIndex.open(folder)
    wanted = ["phantom_0003", "phantom_0001"]
    features = histogram_features(index, wanted)
    for row, case_id in zip(features, wanted, strict=True):
        hu = StoredCase(index.path(index.position(case_id))).read_all()[0]
        mask = StoredMask(mask_path(folder, case_id, "head")).read_all()[0] > 0
        assert 0.2 < mask.mean() < 0.95
        assert np.array_equal(row, head_histogram(hu, mask))
    with pytest.raises(DataError, match="phantom_0009"):
        histogram_features(index, ["phantom_0009"])


def made(n: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(n // 2), 2)
    truth = (rng.random((n, 2)) < 0.5).astype(np.float64)
    features = rng.normal(size=(n, 6))
    features[:, 0] += 3 * truth[:, 0]
    return features, truth, subjects


def test_baseline_finds_what_is_there_and_nothing_else():
    features, truth, subjects = made()
    scores = cross_validated(features, truth, subjects)
    assert auroc(truth[:, 0], scores[:, 0]) > 0.9
    assert 0.3 < auroc(truth[:, 1], scores[:, 1]) < 0.7


def test_cross_validation_never_learns_from_a_held_out_subject():
    """Two scans of a subject carry its fingerprint: a split by case would rank every second scan by its first."""
    rng = np.random.default_rng(1)
    n = 100
    subjects = np.repeat(np.arange(n // 2), 2)
    truth = np.repeat((rng.random(n // 2) < 0.5).astype(np.float64), 2)[:, None]
    features = np.repeat(np.eye(n // 2) * 5, 2, axis=0)
    by_case = HistogramBaseline.fit(features[::2], truth[::2]).scores(features[1::2])
    assert auroc(truth[1::2, 0], by_case[:, 0]) == 1.0
    held_out = cross_validated(features, truth, subjects)
    assert auroc(truth[:, 0], held_out[:, 0]) < 0.7


def test_pooled_scores_of_what_is_not_there_are_chance_on_average():
    """Parts with unequal shares of a rare label pulled this mean to .42."""
    areas = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        subjects = np.repeat(np.arange(60), 2)
        truth = np.repeat((np.arange(60) < 12).astype(np.float64), 2)[:, None]
        scores = cross_validated(rng.normal(size=(120, 4)), truth, subjects, seed=seed)
        areas.append(auroc(truth[:, 0], scores[:, 0]))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)  # standard error .018


def test_unknown_labels_teach_nothing_and_one_class_gives_one_score():
    features, truth, _ = made()
    unknown = truth.copy()
    unknown[::3, 0] = np.nan
    known = ~np.isnan(unknown[:, 0])
    alone = HistogramBaseline.fit(features[known], truth[known][:, :1])
    assert np.allclose(HistogramBaseline.fit(features, unknown).scores(features)[:, 0], alone.scores(features)[:, 0])
    single = np.stack([np.ones(120), np.full(120, np.nan)], axis=1)
    assert (HistogramBaseline.fit(features, single).scores(features) == [1.0, 0.5]).all()
