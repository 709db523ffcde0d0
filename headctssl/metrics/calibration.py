"""Calibration: do probabilities mean what they say, and the temperature that makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

__all__ = ["Reliability", "fit_temperature", "log_loss", "reliability"]

Array = NDArray[np.float64]

_BINS = 10
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve."""

    predicted: tuple[float, ...]  # mean probability per bin
    observed: tuple[float, ...]  # share of positives per bin
    count: tuple[int, ...]  # cases per bin
    ece: float  # expected calibration error


def reliability(positive: NDArray[np.bool_], probability: Array, bins: int = _BINS) -> Reliability:
    """Observed against predicted probability in bins of equally many cases, and their mean distance.

    Bins of equal counts are less biased than bins of equal width (Nixon et al. 2019, arXiv 1904.01685,
    adaptive calibration error); equal probabilities stay in one bin.

    Args:
        positive: (n,) the truth, n at least 1.
        probability: (n,) between 0 and 1.
        bins: wanted; fewer where there are fewer cases or many ties.
    """
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, min(bins, probability.size) + 1)[1:-1]))
    place = np.searchsorted(edges, probability, side="right")
    count = np.bincount(place, minlength=edges.size + 1)
    used = count > 0
    predicted = np.bincount(place, weights=probability, minlength=edges.size + 1)[used] / count[used]
    observed = np.bincount(place, weights=positive.astype(np.float64), minlength=edges.size + 1)[used] / count[used]
    ece = float((np.abs(predicted - observed) * count[used]).sum() / probability.size)
    return Reliability(tuple(predicted.tolist()), tuple(observed.tolist()), tuple(count[used].tolist()), ece)


def log_loss(positive: NDArray[np.bool_], probability: Array) -> float:
    """Mean negative logarithm of the probability of the truth; one below 1e-12 counts as that.

    Args:
        positive: (n,) the truth.
        probability: (n,) of being positive.
    """
    of_truth = np.where(positive, probability, 1 - probability)
    return float(-np.log(np.maximum(of_truth, 1e-12)).mean())


def fit_temperature(total_loss: Callable[[float], float]) -> float:
    """The temperature that logits are divided by so that the log loss is lowest, between 0.05 and 20.

    One number for all labels (Guo et al. 2017, arXiv 1706.04599, section 4.2). Ranks, and with them every AUROC of a
    binary label, stay the same. It must be fitted on cases that the weights were not trained on. A normal prior of
    mean 0 and deviation 1 on its logarithm keeps a few validation cases that happen to be ranked without a fault from
    asking for certainty; it weighs as much as half a unit of log loss at a factor of e, so that a hundred cases
    overrule it.

    Args:
        total_loss: temperature -> sum (not mean) of the log losses of the known labels.
    """

    def loss(log_temperature: float) -> float:
        return total_loss(math.exp(log_temperature)) + log_temperature**2 / 2

    low, high = (math.log(t) for t in _TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
