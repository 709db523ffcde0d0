"""Chance: whether an AUROC could be that of scores that say nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from headctssl.metrics.delong import Areas

__all__ = ["chance_p_value"]

_MOST_CASES = 2000  # that labels are exchanged among; beyond, DeLong's normal approximation holds
_PERMUTATIONS = 2000
_AT_ONCE = 2_000_000  # labels drawn at once


def chance_p_value(
    positive: NDArray[np.bool_],
    score: NDArray[np.float64],
    subjects: NDArray[np.int64],
    found: Areas,
    *,
    num_permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> float | None:
    """Two-sided p value of an AUROC of .5 by exchanging labels among patients.

    All labels of a patient are exchanged together, with those of a patient of as many scans, so that scans of one
    patient may be alike. The observed order counts as one of the permutations: p is never 0, and the level holds for
    any number of patients (Phipson and Smyth 2010). With more than 2,000 cases DeLong's normal approximation is used.

    Args:
        positive: (n,) the truth, both classes present.
        score: (n,) higher = more likely positive.
        subjects: (n,) subject number per case.
        found: the area with its variance, from `areas`.
        num_permutations: drawn at random.
        seed: of the draws.

    Returns:
        None where no patient can be exchanged for another, or no variance is known.
    """
    if positive.size > _MOST_CASES:
        variance = float(found.covariance[0, 0])
        known = np.isfinite(variance) and variance > 0
        return float(2 * norm.sf(abs(found.auroc[0] - 0.5) / np.sqrt(variance))) if known else None
    blocks = _exchangeable(subjects)
    if all(len(block) < 2 for block in blocks):
        return None
    rank = rankdata(score) - (positive.size + 1) / 2  # their sum over the positives is 0 for an area of .5
    observed = abs(rank[positive].sum())
    rng = np.random.Generator(np.random.PCG64(seed))
    reached, left = 1, num_permutations
    while left:
        count = min(left, max(1, _AT_ONCE // positive.size))
        sums = np.zeros(count)
        for block in blocks:
            order = rng.random((count, len(block))).argsort(axis=1)
            sums += np.einsum("rgk,gk->r", positive[block][order].astype(np.float64), rank[block])
        # Sums of equal size must not be told apart by rounding.
        reached += int((np.abs(sums) >= observed - 1e-9).sum())
        left -= count
    return reached / (num_permutations + 1)


def _exchangeable(subjects: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Patients of equally many cases: (G, K) positions of the cases of G patients with K cases each."""
    _, codes = np.unique(subjects, return_inverse=True)
    order, counts = np.argsort(codes, kind="stable"), np.bincount(codes)
    starts = np.cumsum(counts) - counts
    return [
        np.stack([order[starts[who] : starts[who] + size] for who in np.flatnonzero(counts == size)])
        for size in np.unique(counts)
    ]
