"""Calibration: do probabilities mean what they say, and the temperature that makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

__all__ = ["Reliability", "fit_temperature", "reliability"]

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


def fit_temperature(logits: Array, truth: Array) -> float:
    """The temperature that the logits are divided by so that their likelihood is highest.

    One number for all labels (Guo et al. 2017, arXiv 1706.04599, section 4.2), between 0.05 and 20. Ranks, and with
    them every AUROC, stay the same. It must be fitted on cases that the weights were not trained on.

    Args:
        logits: (n, L).
        truth: (n, L) 0 or 1, NaN = unknown.

    Returns:
        The temperature; 1 where no label shows both classes, since nothing can be fitted then.
    """
    both = [c for c in range(truth.shape[1]) if {0.0, 1.0} <= set(truth[~np.isnan(truth[:, c]), c].tolist())]
    if not both:
        return 1.0
    x, y = logits[:, both], truth[:, both]
    known = ~np.isnan(y)
    sign = 2 * y[known] - 1
    x = x[known]

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -sign * x * np.exp(-log_temperature)).mean())

    low, high = (math.log(t) for t in _TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
