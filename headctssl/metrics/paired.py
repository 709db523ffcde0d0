"""Paired: whether one model is better than another on the same patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from headctssl.metrics.statistics import bootstrap, weighted_auroc

__all__ = ["Difference", "defined", "difference", "holm", "mean_area", "permutation_p_value"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Mean AUROC of one model minus that of another."""

    value: float
    interval: tuple[float, float] | None  # 95 %, BCa over patients
    p_value: float  # two-sided, by permutation within patients


def difference(
    truth: Array, first: Array, second: Array, subjects: NDArray[np.int64], *, num_resamples: int = 2000, seed: int = 0
) -> Difference | None:
    """Compare two models on the same cases.

    Args:
        truth: (n, L) 0 or 1, NaN = unknown.
        first: (n, L) scores of one model.
        second: (n, L) scores of the other.
        subjects: (n,) subject number per case.
        num_resamples: bootstrap resamples, and permutations.
        seed: of both.

    Returns:
        None where no label shows both classes.
    """
    columns = defined(truth)
    if not columns:
        return None

    def gap(weights: Array) -> Array:
        return mean_area(truth, first, columns, weights) - mean_area(truth, second, columns, weights)

    found = bootstrap(gap, subjects, num_resamples=num_resamples, seed=seed)
    value = float(gap(np.ones((1, len(truth))))[0])
    p_value = permutation_p_value(truth, first, second, subjects, num_permutations=num_resamples, seed=seed)
    return Difference(value, found.intervals[0] if found.intervals else None, p_value)


def permutation_p_value(
    truth: Array, first: Array, second: Array, subjects: NDArray[np.int64], *, num_permutations: int, seed: int
) -> float:
    """Two-sided p value of equal mean AUROC by exchanging the two models within patients.

    Scores of two models are on different scales, so ranks are exchanged (Bandos, Rockette and Gur 2005), all cases
    and labels of a patient together. The observed order counts as one of the permutations, so that p is never 0 and
    the test holds its level for any number of patients (Phipson and Smyth 2010).

    Args:
        truth: (n, L) 0 or 1, NaN = unknown.
        first: (n, L) scores.
        second: (n, L) scores.
        subjects: (n,) subject number per case.
        num_permutations: drawn at random.
        seed: of the draws.
    """
    columns = defined(truth)
    assert columns, "a label with both classes"
    one, other = first.copy(), second.copy()
    for column in columns:
        known = ~np.isnan(truth[:, column])
        one[known, column], other[known, column] = rankdata(first[known, column]), rankdata(second[known, column])
    weights = np.ones((1, len(truth)))

    def gap(a: Array, b: Array) -> float:
        return float((mean_area(truth, a, columns, weights) - mean_area(truth, b, columns, weights))[0])

    rng = np.random.Generator(np.random.PCG64(seed))
    _, codes = np.unique(subjects, return_inverse=True)
    observed, reached = abs(gap(one, other)), 1
    for _ in range(num_permutations):
        swapped = (rng.random(int(codes.max()) + 1) < 0.5)[codes][:, None]
        # Differences of equal size must not be told apart by rounding.
        reached += abs(gap(np.where(swapped, other, one), np.where(swapped, one, other))) >= observed - 1e-12
    return reached / (num_permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false finding at the level (Holm 1979).

    Args:
        p_values: of all comparisons that are looked at together.
    """
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (count - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def defined(truth: Array) -> list[int]:
    """Labels (columns) that show both classes.

    Args:
        truth: (n, L) 0 or 1, NaN = unknown.
    """
    return [c for c in range(truth.shape[1]) if np.unique(truth[~np.isnan(truth[:, c]), c] > 0.5).size == 2]


def mean_area(truth: Array, score: Array, columns: Sequence[int], weights: Array) -> Array:
    """Mean AUROC over labels for every row of weights, (R,).

    Args:
        truth: (n, L) 0 or 1, NaN = unknown.
        score: (n, L).
        columns: the labels.
        weights: (R, n), not negative.
    """
    parts = []
    for column in columns:
        known = ~np.isnan(truth[:, column])
        parts.append(weighted_auroc(truth[known, column] > 0.5, score[known, column], weights[:, known]))
    return np.asarray(np.mean(parts, axis=0))
