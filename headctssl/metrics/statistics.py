"""Statistics: patient-level BCa bootstrap intervals, with rank statistics vectorised over resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

__all__ = [
    "Bootstrap",
    "bca",
    "bootstrap",
    "by_score",
    "draw_weights",
    "jackknife_weights",
    "subject_codes",
    "weighted_auprc",
    "weighted_auroc",
]

_CHUNK_ELEMENTS = 4_000_000  # resamples x cases handled at once: 32 MB of float64
_MOST_DRAWS = 20  # draws per wanted resample before giving up
_MOST_GROUPS = 2000  # groups of patients that the jackknife leaves out in turn

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Bootstrap:
    """What a bootstrap found, one interval per statistic."""

    intervals: tuple[tuple[float, float] | None, ...]  # (low, high) per statistic, None: the same in every resample
    resamples: int  # resamples that went into the intervals
    redrawn: int  # resamples thrown away because a statistic was undefined in them
    reason: str | None = None  # why there are no intervals at all


def subject_codes(subject_ids: Sequence[str], case_ids: Sequence[str]) -> NDArray[np.int64]:
    """Number the subjects 0, 1, ...; a case without a subject is its own.

    Args:
        subject_ids: one text per case, '' = unknown.
        case_ids: one text per case, all different.

    Returns:
        (n,) the subject's number per case.
    """
    keys = [("subject", s) if s else ("case", c) for s, c in zip(subject_ids, case_ids, strict=True)]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def draw_weights(subjects: NDArray[np.int64], num_resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw subjects with replacement; a case counts as often as its subject was drawn.

    Args:
        subjects: (n,) subject number per case, any integers.
        num_resamples: R.
        rng: source of randomness.

    Returns:
        (R, n) whole numbers as float64.
    """
    _, codes = np.unique(subjects, return_inverse=True)
    count = int(codes.max()) + 1 if codes.size else 0
    if count == 0:
        return np.zeros((num_resamples, 0))
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=num_resamples)
    return drawn[:, codes].astype(np.float64)


def by_score(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the positives and negatives per distinct score, highest score first: each (R, G)."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sorted_weights = weights[:, order]
    truth = positive[order].astype(np.float64)
    pos = np.add.reduceat(sorted_weights * truth, starts, axis=1)
    neg = np.add.reduceat(sorted_weights * (1.0 - truth), starts, axis=1)
    return pos, neg


def weighted_auroc(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area under the ROC curve for every row of weights: the weighted share of (positive, negative) pairs ranked right.

    Ties count one half (Mann-Whitney; Hanley and McNeil 1982). Equals
    ``sklearn.metrics.roc_auc_score(positive, score, sample_weight=row)``.

    Args:
        positive: (n,) the truth.
        score: (n,) higher = more likely positive.
        weights: (R, n), not negative.

    Returns:
        (R,), NaN where one of the classes has no weight.
    """
    if positive.size == 0:
        return np.full(weights.shape[0], np.nan)
    pos, neg = by_score(positive, score, weights)
    above = np.cumsum(pos, axis=1) - 0.5 * pos  # positives ranked above the negatives of the same group
    total = pos.sum(axis=1) * neg.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, (above * neg).sum(axis=1) / total, np.nan))


def weighted_auprc(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average precision for every row of weights: the precision at each threshold, weighted by the gain in recall.

    Equals ``sklearn.metrics.average_precision_score(positive, score, sample_weight=row)``.

    Args:
        positive: (n,) the truth.
        score: (n,) higher = more likely positive.
        weights: (R, n), not negative.

    Returns:
        (R,), NaN where one of the classes has no weight.
    """
    if positive.size == 0:
        return np.full(weights.shape[0], np.nan)
    pos, neg = by_score(positive, score, weights)
    hits = np.cumsum(pos, axis=1)
    called = hits + np.cumsum(neg, axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    defined = (pos.sum(axis=1) > 0) & (neg.sum(axis=1) > 0)
    total = np.where(defined, pos.sum(axis=1), 1.0)
    return np.where(defined, (pos * precision).sum(axis=1) / total, np.nan)


def bootstrap(
    statistic: Statistic,
    subjects: NDArray[np.int64],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """BCa intervals by resampling patients with replacement (Efron 1987; DiCiccio and Efron 1996, section 2).

    A resample in which a statistic is undefined (NaN: a class was lost) is thrown away, counted and
    drawn again, up to 20 draws per wanted resample.

    Args:
        statistic: weights (R, n) -> values (R,) or (R, K).
        subjects: (n,) subject number per case; all cases of a subject are drawn together.
        num_resamples: resamples that count.
        seed: of the draws.
        confidence: e.g. 0.95.
    """
    if np.unique(subjects).size < 2:
        return Bootstrap((), 0, 0, "fewer than two patients")
    rng = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, min(num_resamples, _CHUNK_ELEMENTS // max(1, subjects.size)))
    kept: list[NDArray[np.float64]] = []
    have = redrawn = drawn = 0
    while have < num_resamples and drawn < _MOST_DRAWS * num_resamples:
        values = _columns(statistic, draw_weights(subjects, chunk, rng))
        good = np.flatnonzero(np.isfinite(values).all(axis=1))[: num_resamples - have]
        used = chunk if have + good.size < num_resamples else int(good[-1]) + 1
        kept.append(values[good])
        have += good.size
        drawn += used
        redrawn += used - good.size
    if have < num_resamples:
        reason = f"only {have} of {drawn} resamples kept both classes"
        return Bootstrap((), have, redrawn, reason)
    resampled = np.concatenate(kept)
    estimate = _columns(statistic, np.ones((1, subjects.size)))[0]
    left_out = _jackknife(statistic, subjects)
    columns = zip(resampled.T, estimate, left_out.T, strict=True)
    return Bootstrap(tuple(bca(*column, confidence) for column in columns), have, redrawn)


def _columns(statistic: Statistic, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    values = statistic(weights)
    return values[:, None] if values.ndim == 1 else values


def jackknife_weights(subjects: NDArray[np.int64], most: int = _MOST_GROUPS) -> NDArray[np.float64]:
    """Weights that leave out one patient in turn, or one of `most` groups of patients where there are more.

    Args:
        subjects: (n,) subject number per case, any integers.
        most: largest number of rows.

    Returns:
        (G, n) 0 or 1.
    """
    _, codes = np.unique(subjects, return_inverse=True)
    groups = min(int(codes.max()) + 1, most)
    return np.asarray(codes % groups != np.arange(groups)[:, None], dtype=np.float64)


def _jackknife(statistic: Statistic, subjects: NDArray[np.int64]) -> NDArray[np.float64]:
    """The statistics (G, K) with one patient left out in turn, or one of 2,000 groups of patients where there are more.

    A cohort of more patients has an acceleration near 0, whichever way it is estimated.
    """
    _, codes = np.unique(subjects, return_inverse=True)
    groups = min(int(codes.max()) + 1, _MOST_GROUPS)
    codes = codes % groups
    step = max(1, _CHUNK_ELEMENTS // codes.size)
    parts = [
        _columns(statistic, (codes != np.arange(first, min(first + step, groups))[:, None]).astype(np.float64))
        for first in range(0, groups, step)
    ]
    return np.concatenate(parts)


def bca(
    resampled: NDArray[np.float64], estimate: float, left_out: NDArray[np.float64], confidence: float
) -> tuple[float, float] | None:
    """The BCa interval of one statistic (Efron 1987); None when all resamples agree.

    Args:
        resampled: (R,) its values in resamples.
        estimate: its value on the cases as they are.
        left_out: (G,) its values without one patient or group of patients in turn.
        confidence: e.g. 0.95.
    """
    if np.ptp(resampled) == 0:
        return None
    count = resampled.size
    # Ties with the estimate, common for rank statistics of few cases, count one half on each side.
    share = ((resampled < estimate).sum() + 0.5 * (resampled == estimate).sum()) / count
    bias = norm.ppf(np.clip(share, 0.5 / count, 1 - 0.5 / count))
    known = left_out[np.isfinite(left_out)]
    away = known.mean() - known if known.size else np.zeros(1)
    square = float((away**2).sum())
    acceleration = 0.0 if square == 0 else float((away**3).sum()) / (6 * square**1.5)
    z = bias + norm.ppf(np.array([0.5 - confidence / 2, 0.5 + confidence / 2]))
    level = norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-6))
    low, high = np.quantile(resampled, level)
    return float(low), float(high)
