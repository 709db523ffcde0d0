"""Tests of metrics/probe.py: slow references, what each readout finds, unknown labels, and no random number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from headctssl.metrics.probe import attentive_scores, knn_scores, linear_scores


def features(n: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, channels)) * np.linspace(1, 3, channels) + 5.0


def test_neighbours_vote_with_the_exponential_of_their_cosine() -> None:
    train, held_out, rng = features(40, 6, 0), features(7, 6, 1), np.random.default_rng(2)
    labels = (rng.random((40, 3)) < 0.4).astype(float)
    labels[rng.random((40, 3)) < 0.2] = np.nan
    labels[:, 2] = np.nan
    scaler = StandardScaler().fit(train)
    one, other = scaler.transform(train), scaler.transform(held_out)
    found = knn_scores(train, labels, held_out)
    for m in range(7):
        for column in range(2):
            votes = []
            for n in range(40):
                if not np.isnan(labels[n, column]):
                    cosine = one[n] @ other[m] / np.linalg.norm(one[n]) / np.linalg.norm(other[m])
                    votes.append((np.exp(cosine / 0.07), labels[n, column]))
            nearest = sorted(votes, reverse=True)[:20]
            expected = sum(w * y for w, y in nearest) / sum(w for w, _ in nearest)
            assert found[m, column] == pytest.approx(expected, rel=1e-9)
    assert (found[:, 2] == 0.5).all(), "nothing is known"


def test_the_linear_readout_is_ridge_with_the_strength_that_leave_one_out_finds() -> None:
    train, held_out, rng = features(60, 8, 3), features(30, 8, 4), np.random.default_rng(5)
    labels = (train @ rng.normal(size=(8, 4)) > 5).astype(float)
    labels[:9, 1] = np.nan
    labels[:, 3] = 1
    found = linear_scores(train, labels, held_out)
    scaler = StandardScaler().fit(train)
    for column in range(3):
        known = ~np.isnan(labels[:, column])
        model = RidgeCV(alphas=[1, 10, 100, 1000, 10_000, 100_000])
        model.fit(scaler.transform(train)[known], labels[known, column])
        assert found[:, column] == pytest.approx(model.predict(scaler.transform(held_out)), abs=1e-9)
    assert np.ptp(found[:, 3]) == 0, "one class only"


def test_attention_finds_what_a_mean_over_the_head_dilutes() -> None:
    """A label is a pattern in one of 64 tokens, at any place."""
    rng = np.random.default_rng(6)
    tokens, labels = rng.normal(size=(120, 64, 48)), (rng.random((120, 2)) < 0.5).astype(float)
    patterns = rng.normal(size=(2, 48)) * 1.5
    for case, column in np.argwhere(labels > 0.5):
        tokens[case, rng.integers(64)] += patterns[column]
    labels[:5, 0] = np.nan
    before = torch.get_rng_state()
    with torch.no_grad():
        both = [torch.from_numpy(tokens[part]).float() for part in (slice(60), slice(60, None))]
        found = attentive_scores(both[0].half(), labels[:60], both[1].half())
        again = attentive_scores(both[0].half(), labels[:60], both[1].half())
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(found, again)
    pooled = linear_scores(tokens[:60].mean(1), labels[:60], tokens[60:].mean(1))
    areas = [[roc_auc_score(labels[60:, i], score[:, i]) for i in range(2)] for score in (found, pooled)]
    assert min(areas[0]) > 0.95
    assert np.mean(areas[0]) > np.mean(areas[1]) + 0.1


def test_attention_leaves_out_what_is_not_known() -> None:
    rng = np.random.default_rng(7)
    tokens = torch.from_numpy(rng.normal(size=(20, 8, 4))).float()
    labels = (rng.random((20, 1)) < 0.5).astype(float)
    labels[15:] = np.nan
    other = labels.copy()
    found = attentive_scores(tokens[:15], labels[:15], tokens)
    mean, scale = tokens.mean((0, 1)), tokens.std((0, 1), unbiased=False)
    same = (tokens - mean) / scale  # standardised already, so that the unknown cases do not move the scale
    assert attentive_scores(same, other, same)[:, 0].std() > 0
    one_class = attentive_scores(tokens, np.ones((20, 1)), tokens)
    assert np.ptp(one_class) == pytest.approx(0, abs=1e-6)
    assert found.shape == (20, 1)
