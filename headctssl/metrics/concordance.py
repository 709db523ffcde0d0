"""Concordance: the share of pairs of cases that a score ranks as their truth does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["concordance"]


def concordance(truth: NDArray[np.float64] | NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """The concordance index (Harrell et al. 1982): of the pairs with different truth, the share ranked right.

    Ties of the score count one half. For two classes it is the area under the ROC curve. From Kendall's tau-b, which
    scipy computes in n log n: (1 + (concordant - discordant) / pairs of different truth) / 2.

    Args:
        truth: (n,) numbers or positions of classes, all known.
        score: (n,) higher = more.

    Returns:
        A number in [0, 1]; None where all cases have the same truth, or there is none.
    """
    from scipy.stats import kendalltau

    pairs = _untied_pairs(truth)
    if pairs == 0:
        return None
    ranked = _untied_pairs(score)
    if ranked == 0:
        return 0.5
    tau = float(kendalltau(truth.astype(np.float64), score).statistic)
    return 0.5 + 0.5 * tau * float(np.sqrt(ranked / pairs))


def _untied_pairs(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    """Pairs of different values."""
    _, counts = np.unique(values, return_counts=True)
    n = float(values.size)
    return (n * (n - 1) - float((counts * (counts - 1.0)).sum())) / 2
