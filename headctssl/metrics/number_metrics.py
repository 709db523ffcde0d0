"""Number metrics: errors and correlations of continuous labels for every row of weights, with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.metrics.intervals import with_intervals
from headctssl.metrics.metrics_file import LabelMetrics

__all__ = ["number_metrics", "weighted_pearson", "weighted_ranks", "weighted_spearman"]

Array = NDArray[np.float64]

# Legend: n cases, R rows of weights.


def number_metrics(
    base: LabelMetrics, truth: Array, predicted: Array, subjects: NDArray[np.int64], num_resamples: int, seed: int
) -> LabelMetrics:
    """The entry of a continuous label: errors in its own unit, R2 as scikit-learn defines it, correlations.

    Args:
        base: the entry so far.
        truth: (n,) all known.
        predicted: (n,) in the same unit.
        subjects: (n,) subject number per case.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    if truth.size < 3 or np.ptp(truth) == 0:
        return base.model_copy(update={"reason": "fewer than three known cases, or all the same"})

    def statistic(weights: Array) -> Array:
        total = weights.sum(axis=1)
        middle = (weights @ truth / total)[:, None]
        spread = (weights * (truth - middle) ** 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            square = weights @ (truth - predicted) ** 2
            r2 = np.where(spread > 0, 1 - square / spread, np.nan)
            errors = [weights @ np.abs(truth - predicted) / total, np.sqrt(square / total), r2]
        correlations = [weighted_pearson(truth, predicted, weights), weighted_spearman(truth, predicted, weights)]
        return np.stack([*errors, *correlations], axis=1)

    names = ("mae", "rmse", "r2", "pearson", "spearman")
    return base.model_copy(update=with_intervals(statistic, names, subjects, num_resamples, seed))


def weighted_pearson(a: Array, b: Array, weights: Array) -> Array:
    """Pearson's correlation for every row of weights.

    Args:
        a: (n,) or (R, n).
        b: (n,) or (R, n).
        weights: (R, n), not negative.

    Returns:
        (R,), NaN where one of them does not vary.
    """
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = a - (weights * a).sum(axis=1, keepdims=True) / total
        b = b - (weights * b).sum(axis=1, keepdims=True) / total
        variances = [(weights * x**2).sum(axis=1) for x in (a, b)]
        # A constant leaves rounding errors of its own size behind, not zero.
        varies = [_varies(x, weights) for x in (a, b)]
        value = (weights * a * b).sum(axis=1) / np.sqrt(variances[0] * variances[1])
    return np.where(varies[0] & varies[1], np.clip(value, -1, 1), np.nan)


def weighted_spearman(a: Array, b: Array, weights: Array) -> Array:
    """Spearman's rank correlation for every row of weights: Pearson's of the ranks, ties at their mean rank.

    For whole weights this is the correlation of the sample in which each case stands as often as it weighs.

    Args:
        a: (n,).
        b: (n,).
        weights: (R, n), not negative.

    Returns:
        (R,), NaN where one of them does not vary.
    """
    return weighted_pearson(weighted_ranks(a, weights), weighted_ranks(b, weights), weights)


def weighted_ranks(values: Array, weights: Array) -> Array:
    """Mean rank of each case among cases that stand as often as they weigh, (R, n).

    Args:
        values: (n,).
        weights: (R, n), not negative.
    """
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(distinct.size))
    per_value = np.add.reduceat(weights[:, order], starts, axis=1)
    below = per_value.cumsum(axis=1) - per_value
    return np.asarray((below + (per_value + 1) / 2)[:, place])


def _varies(x: Array, weights: Array) -> NDArray[np.bool_]:
    used = np.where(weights > 0, x, np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmax(used, axis=1) > np.nanmin(used, axis=1))
