"""Abstention: how often a classifier is wrong when it may leave out the cases it is least sure of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.metrics.statistics import bootstrap, by_score

__all__ = ["Abstention", "abstention", "area_under_risk"]

Array = NDArray[np.float64]

_COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Abstention:
    """A risk-coverage curve and the area under it."""

    curve: tuple[tuple[float, float], ...]  # (share of cases that are answered, share of wrong answers among them)
    aurc: float  # mean risk over all coverages
    aurc_ci: tuple[float, float] | None  # 95 %, BCa over patients
    error_rate: float  # risk when every case is answered: the area of an order that says nothing, on average
    best_aurc: float  # area when all wrong answers come last


def abstention(wrong: NDArray[np.bool_], sureness: Array, subjects: NDArray[np.int64], *, seed: int = 0) -> Abstention:
    """The risk among the cases that are answered, from the surest on (Geifman and El-Yaniv 2017, arXiv 1705.08500).

    Args:
        wrong: (n,) whether the answer is wrong, n at least 1.
        sureness: (n,) higher = surer; cases that are equally sure are answered together.
        subjects: (n,) subject number per case.
        seed: of the bootstrap.
    """
    ones = np.ones((1, wrong.size))
    area = float(area_under_risk(wrong, sureness, ones)[0])
    found = bootstrap(lambda w: area_under_risk(wrong, sureness, w), subjects, seed=seed)
    bad, good = by_score(wrong, sureness, ones)
    answered = np.cumsum(bad[0] + good[0])
    risk = np.cumsum(bad[0]) / answered
    # The first threshold that answers at least the share wanted.
    places = np.searchsorted(answered, np.array(_COVERAGES) * wrong.size - 1e-9)
    points = dict.fromkeys((float(answered[k] / wrong.size), float(risk[k])) for k in places)
    return Abstention(
        curve=tuple(points),
        aurc=area,
        aurc_ci=found.intervals[0] if found.intervals else None,
        error_rate=float(wrong.mean()),
        best_aurc=float(area_under_risk(wrong, -wrong.astype(np.float64), ones, shared=False)[0]),
    )


def area_under_risk(wrong: NDArray[np.bool_], sureness: Array, weights: Array, *, shared: bool = True) -> Array:
    """Area under the risk-coverage curve: the mean, over the cases, of the risk among those at least as sure.

    Args:
        wrong: (n,) whether the answer is wrong.
        sureness: (n,) higher = surer.
        weights: (R, n), not negative.
        shared: whether equally sure cases are answered together; else in the order given.

    Returns:
        (R,), NaN where there is no weight.
    """
    if not shared:
        order = np.argsort(-sureness, kind="stable")
        ranked = np.empty(wrong.size)
        ranked[order] = -np.arange(wrong.size)
        sureness = ranked
    bad, good = by_score(wrong, sureness, weights)
    every = bad + good
    answered = np.cumsum(every, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        risk = np.where(answered > 0, np.cumsum(bad, axis=1) / answered, 0.0)
        return np.asarray((risk * every).sum(axis=1) / every.sum(axis=1))
