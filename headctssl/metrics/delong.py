"""DeLong: the covariance of areas under ROC curves of the same patients, intervals and tests from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

__all__ = ["Areas", "areas", "logit_interval", "moderated_interval", "paired_p_value", "score_interval"]

Array = NDArray[np.float64]

_PRIOR_PATIENTS = 10
"""Chosen among 0, 5, 10, 20 and 40 on simulated cohorts of other seeds than those of documentation/statistics.md."""


@dataclass(frozen=True)
class Areas:
    """Areas under the ROC curves of M sets of scores for the same cases."""

    auroc: Array  # (M,)
    covariance: Array  # (M, M), NaN where a class has fewer than two patients


def areas(positive: NDArray[np.bool_], scores: Array, subjects: NDArray[np.int64]) -> Areas:
    """Areas and their covariance by placements (DeLong, DeLong and Clarke-Pearson 1988).

    Cases of one patient are not independent: their placements are added up per patient first (Obuchowski 1997,
    equations 3 to 6). With one case per patient this is DeLong's estimate.

    Args:
        positive: (n,) the truth, both classes present.
        scores: (M, n), higher = more likely positive.
        subjects: (n,) subject number per case.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    assert num_positive > 0, "a positive case"
    assert num_negative > 0, "a negative case"
    _, codes = np.unique(subjects, return_inverse=True)
    count = int(codes.max()) + 1
    everywhere = rankdata(scores, axis=1)
    # Placement of a positive: the share of negatives it is ranked above; of a negative: of positives above it.
    above = (everywhere[:, positive] - rankdata(scores[:, positive], axis=1)) / num_negative
    below = 1 - (everywhere[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / num_positive
    value = above.mean(axis=1)
    of_positives = _per_patient(above - value[:, None], codes[positive], count)
    of_negatives = _per_patient(below - value[:, None], codes[~positive], count)
    with_positive, with_negative = np.unique(codes[positive]).size, np.unique(codes[~positive]).size
    if min(with_positive, with_negative) < 2:
        return Areas(value, np.full((len(value), len(value)), np.nan))
    first = of_positives @ of_positives.T * with_positive / (with_positive - 1) / num_positive**2
    second = of_negatives @ of_negatives.T * with_negative / (with_negative - 1) / num_negative**2
    both = of_positives @ of_negatives.T * count / (count - 1) / (num_positive * num_negative)
    return Areas(value, first + second + both + both.T)


def _per_patient(values: Array, codes: NDArray[np.int64], count: int) -> Array:
    """Sums (M, count) of values (M, n) over the cases of each patient."""
    sums = np.zeros((len(values), count))
    np.add.at(sums.T, codes, values.T)
    return sums


def logit_interval(auroc: float, variance: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of an area that is symmetric on the logit scale, so that it stays within 0 and 1.

    None where the area is 0 or 1 or the variance is not known (see `score_interval`).

    Args:
        auroc: the area.
        variance: from `areas`.
        confidence: e.g. 0.95.
    """
    if not 0 < auroc < 1 or not np.isfinite(variance):
        return None
    middle = np.log(auroc / (1 - auroc))
    half = float(norm.ppf(0.5 + confidence / 2)) * np.sqrt(variance) / (auroc * (1 - auroc))
    low, high = 1 / (1 + np.exp(-(middle - half))), 1 / (1 + np.exp(-(middle + half)))
    return float(low), float(high)


def score_interval(
    auroc: float, num_positive: int, num_negative: int, confidence: float = 0.95, *, ratio: float = 1.0
) -> tuple[float, float]:
    """Interval of an area that is defined even where the classes are apart completely.

    The areas that are within z standard errors of the observed one, the standard error being taken at the assumed
    area (Newcombe 2006, Statistics in Medicine 25:559, method 5, with Hanley and McNeil's variance).

    Args:
        auroc: the observed area.
        num_positive: positive patients.
        num_negative: negative patients.
        confidence: e.g. 0.95.
        ratio: what Hanley and McNeil's variance is multiplied with.
    """
    if auroc < 0.5:  # the formula is symmetric
        low, high = score_interval(1 - auroc, num_positive, num_negative, confidence, ratio=ratio)
        return 1 - high, 1 - low
    z = float(norm.ppf(0.5 + confidence / 2))

    def beyond(area: float) -> float:
        return (auroc - area) ** 2 - z * z * ratio * _assumed_variance(area, num_positive, num_negative)

    # At an observed area of 1 both terms have the root 1, which is not the one wanted.
    low = float(brentq(beyond, 0.0, min(auroc, 1 - 1e-9)))
    return low, 1.0 if auroc == 1 else float(brentq(beyond, auroc, 1.0))


def moderated_interval(
    auroc: float, variance: float, num_positive: int, num_negative: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The score interval with a variance that few patients estimate and a model steadies: `auroc_ci` of metrics.json.

    With few patients of a class DeLong's variance is itself uncertain, and too small just when the area came out
    large; intervals built on it alone, and the BCa bootstrap, then cover too little. Hanley and McNeil's variance is
    steady but assumes the shape of the scores. Their ratio is drawn towards 1 as if 10 further patients had shown 1
    (the moderation of Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3:3), and never taken
    below DeLong's own. How well it covers was measured: documentation/statistics.md.

    Args:
        auroc: the observed area.
        variance: from `areas`, by patient; NaN or 0 where it is not known.
        num_positive: positive patients.
        num_negative: negative patients.
        confidence: e.g. 0.95.
    """
    assumed = _assumed_variance(auroc, num_positive, num_negative)
    known = bool(np.isfinite(variance)) and variance > 1e-12 and assumed > 0
    observed = variance / assumed if known else 1.0
    freedom = min(num_positive, num_negative) - 1
    ratio = max(observed, (freedom * observed + _PRIOR_PATIENTS) / (freedom + _PRIOR_PATIENTS))
    return score_interval(auroc, num_positive, num_negative, confidence, ratio=ratio)


def _assumed_variance(area: float, num_positive: int, num_negative: int) -> float:
    """Hanley and McNeil's variance of an area, averaged over the two classes (Newcombe 2006, method 5)."""
    others = (num_positive + num_negative) / 2 - 1
    spread = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) / (num_positive * num_negative) * spread


def paired_p_value(found: Areas, first: int = 0, second: int = 1) -> float | None:
    """Two-sided p value of the hypothesis that two areas are the same; None where it is not defined.

    Args:
        found: areas of the same cases.
        first: position of one.
        second: position of the other.
    """
    c = found.covariance
    variance = float(c[first, first] + c[second, second] - 2 * c[first, second])
    difference = float(found.auroc[first] - found.auroc[second])
    if not np.isfinite(variance):
        return None
    if variance <= 1e-15:
        return 1.0 if difference == 0 else None
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
