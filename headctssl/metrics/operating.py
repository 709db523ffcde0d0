"""Operating points: what a threshold or a wanted specificity gives, for every row of weights of a bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.metrics.statistics import by_score

__all__ = ["OPERATING", "operating_points", "sensitivity_at"]

Array = NDArray[np.float64]

OPERATING = (
    "brier",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "sensitivity_at_90_specificity",
    "specificity_at_90_sensitivity",
)
"""The columns of `operating_points`."""


def operating_points(positive: NDArray[np.bool_], probability: Array, weights: Array, threshold: float = 0.5) -> Array:
    """Brier score, what calling every probability of `threshold` or more positive gives, and two fixed points.

    Each equals scikit-learn's function of that name with ``sample_weight=row``: balanced accuracy is the mean of
    sensitivity (recall) and specificity, F1 the harmonic mean of precision and recall.

    Args:
        positive: (n,) the truth.
        probability: (n,) between 0 and 1.
        weights: (R, n), not negative.
        threshold: least probability that is called positive.

    Returns:
        (R, 7) in the order of `OPERATING`; NaN where a class has no weight.
    """
    called = probability >= threshold
    total_positive, total_negative = weights[:, positive].sum(axis=1), weights[:, ~positive].sum(axis=1)
    hits = weights[:, positive & called].sum(axis=1)
    rejections = weights[:, ~positive & ~called].sum(axis=1)
    false_calls = total_negative - rejections
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = hits / total_positive, rejections / total_negative
        brier = weights @ (probability - positive) ** 2 / weights.sum(axis=1)
        f1 = 2 * hits / (total_positive + hits + false_calls)
    defined = (total_positive > 0) & (total_negative > 0)
    fixed = sensitivity_at(positive, probability, weights, 0.9)
    mirrored = sensitivity_at(~positive, -probability, weights, 0.9)
    columns = [brier, (sensitivity + specificity) / 2, f1, sensitivity, specificity, fixed, mirrored]
    return np.where(defined[:, None], np.stack(columns, axis=1), np.nan)


def sensitivity_at(positive: NDArray[np.bool_], score: Array, weights: Array, specificity: float) -> Array:
    """The largest sensitivity of any threshold whose specificity is at least the one wanted.

    Args:
        positive: (n,) the truth.
        score: (n,) higher = more likely positive.
        weights: (R, n), not negative.
        specificity: wanted, between 0 and 1.

    Returns:
        (R,), NaN where a class has no weight; 0 where only a threshold above all scores is specific enough.
    """
    if positive.size == 0:
        return np.full(weights.shape[0], np.nan)
    pos, neg = by_score(positive, score, weights)
    total_positive, total_negative = pos.sum(axis=1), neg.sum(axis=1)
    hits, alarms = np.cumsum(pos, axis=1), np.cumsum(neg, axis=1)
    # Rounding must not take away a threshold that is exactly specific enough.
    allowed = alarms <= (1 - specificity) * total_negative[:, None] + 1e-9
    with np.errstate(invalid="ignore", divide="ignore"):
        best = np.where(allowed, hits, 0.0).max(axis=1) / total_positive
    return np.where((total_positive > 0) & (total_negative > 0), best, np.nan)
