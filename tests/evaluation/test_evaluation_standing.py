"""Tests of evaluation/standing.py: means against scikit-learn, the exchange test against the slow one, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from headctssl.evaluation.standing import _mean, _Sampled, _unit_weights, exchange_p_value, stand
from headctssl.metrics.paired import permutation_p_value
from headctssl.metrics.statistics import bootstrap, weighted_auroc


def cohort(rng, n=40, labels=3, patients=25):
    truth = (rng.random((n, labels)) < 0.4).astype(float)
    truth[:2], truth[2:4] = 1, 0
    truth[rng.random(truth.shape) < 0.1] = np.nan
    truth[:2], truth[2:4] = 1, 0
    return truth, rng.integers(0, patients, n)


def scores(rng, truth, strength, digits=2):
    """Rounded, so that there are ties."""
    return np.round(strength * np.nan_to_num(truth) + rng.normal(size=truth.shape), digits)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_the_exchange_test_is_the_slow_one_with_runs_as_labels(seed, digits):
    rng = np.random.default_rng(seed)
    truth, subjects = cohort(rng)
    units = [(0, 0), (0, 1), (1, 2)]
    first = {unit: scores(rng, truth, 1.0, digits) for unit in units}
    second = {unit: scores(rng, truth, 0.7, digits) for unit in units}
    found = exchange_p_value(truth, first, second, subjects, num_permutations=50, seed=3)
    slow = permutation_p_value(
        np.hstack([truth] * 3),
        np.hstack([first[u] for u in units]),
        np.hstack([second[u] for u in units]),
        subjects,
        num_permutations=50,
        seed=3,
    )
    assert found == pytest.approx(slow, abs=1e-12)
    assert exchange_p_value(truth, first, {(9, 9): first[0, 0]}, subjects, num_permutations=5, seed=0) is None


def test_means_ranks_and_differences_are_what_scikit_learn_says():
    rng = np.random.default_rng(0)
    truth, subjects = cohort(rng)
    one_class = np.zeros((len(truth), 1))
    truth = np.hstack([truth, one_class])  # a label without positives is not ranked by
    units = [(s, d) for s in range(3) for d in (2 * s, 2 * s + 1)]
    runs = {
        name: {unit: scores(rng, truth, strength) for unit in units}
        for name, strength in (("good", 2.0), ("scratch", 0.5), ("worse", 0.0))
    }
    del runs["good"][2, 5]  # a run that failed
    found = stand(truth, subjects, runs, {"good": "scratch", "worse": "scratch"}, num_resamples=300)

    def area(score):
        known = [~np.isnan(truth[:, c]) for c in range(3)]
        return np.mean([roc_auc_score(truth[k, c], score[k, c]) for c, k in enumerate(known)])

    def mean(name, chosen):
        of_seed = [[area(runs[name][u]) for u in chosen if u[0] == s] for s in range(3)]
        return np.mean([np.mean(values) for values in of_seed])

    for name in runs:
        assert found[name].mean == pytest.approx(mean(name, sorted(runs[name])))
        assert found[name].interval[0] < found[name].mean < found[name].interval[1]
        assert set(found[name].labels) == {0, 1, 2}
    shared = sorted(runs["good"])
    assert found["good"].difference == pytest.approx(mean("good", shared) - mean("scratch", shared))
    low, high = found["good"].difference_interval
    assert 0 < low < found["good"].difference < high
    assert found["good"].p_value < 0.02
    assert found["scratch"].difference is None
    assert [found[name].rank for name in ("good", "scratch", "worse")] == [1, 2, 3]
    assert found["good"].rank_interval == (1, 1)
    assert found["scratch"].rank_interval[0] == 2


def test_equal_arms_share_a_rank_and_cannot_be_told_apart():
    rng = np.random.default_rng(1)
    truth, subjects = cohort(rng)
    score = scores(rng, truth, 1.0)
    found = stand(truth, subjects, {"a": {(0, 0): score}, "b": {(0, 0): score}}, {"b": "a"}, num_resamples=100)
    assert (found["a"].rank, found["b"].rank) == (1, 1)
    assert found["b"].difference == 0
    assert found["b"].difference_interval is None  # zero in every resample
    assert found["b"].p_value == 1.0
    assert found["a"].seed_spread is None


def test_one_run_gives_the_interval_of_the_plain_bootstrap():
    """The same patients drawn in another order: the ends agree to the noise of 2,000 resamples."""
    rng = np.random.default_rng(2)
    truth, subjects = cohort(rng, labels=1)
    score = scores(rng, truth, 1.0, 6)
    known = ~np.isnan(truth[:, 0])
    plain = bootstrap(
        lambda w: weighted_auroc(truth[known, 0] > 0.5, score[known, 0], w[:, known]), subjects, num_resamples=2000
    ).intervals[0]
    found = stand(truth, subjects, {"a": {(0, 0): score}}, {}, num_resamples=2000)["a"].interval
    assert found == pytest.approx(plain, abs=0.02)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(3)
    truth, subjects = cohort(rng, n=200, patients=200)
    same = scores(rng, truth, 1.0)
    calm = {(s, 0): same for s in range(4)}
    wild = {(s, 0): scores(rng, truth, strength) for s, strength in enumerate((0.0, 0.5, 1.5, 3.0))}
    found = stand(truth, subjects, {"calm": calm, "wild": wild}, {}, num_resamples=500)
    widths = {name: standing.interval[1] - standing.interval[0] for name, standing in found.items()}
    assert widths["wild"] > 2 * widths["calm"]
    assert found["calm"].seed_spread == pytest.approx(0)
    assert found["wild"].seed_spread > 0.05


def test_draws_are_nested_in_seeds():
    """Weights of a resample: seeds with replacement, then draws within a seed; on average every run counts the same."""
    units = [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    weights = _unit_weights(units, 4000, 0)
    assert np.allclose(weights.sum(axis=1), 3)
    assert np.allclose(weights.mean(axis=0), 0.5, atol=0.04)
    of_seed = weights.reshape(-1, 3, 2).sum(axis=2)
    assert np.allclose(of_seed, np.rint(of_seed))
    # Variance of a multinomial count of 3 in 3 is 2/3; a draw adds its own only within seeds that were drawn.
    assert of_seed.var(axis=0) == pytest.approx(2 / 3, abs=0.06)
    sampled = _Sampled(np.arange(6.0).reshape(1, 6, 1), tuple(units))
    assert _mean(sampled, weights, units)[0, 0] == pytest.approx(2.5)


def test_one_patient_gives_no_interval():
    truth = np.array([[1.0], [0.0]])
    found = stand(truth, np.zeros(2, np.int64), {"a": {(0, 0): np.array([[0.9], [0.1]])}}, {}, num_resamples=50)["a"]
    assert (found.mean, found.interval, found.rank, found.rank_interval) == (1.0, None, 1, None)
