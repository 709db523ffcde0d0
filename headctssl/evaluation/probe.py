"""Probe: logistic regression on features of a frozen model, for vectors of other models and for histograms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headctssl.finetuning.cohort import Cohort
from headctssl.metrics.classification import auroc, one_class_reason
from headctssl.metrics.histogram import HistogramBaseline

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["STRENGTHS", "fit_probe"]

Array = NDArray[np.float64]

STRENGTHS = tuple(10.0**k for k in range(-4, 3))
"""Inverse L2 penalties on standardised features that the validation cases choose from, for all labels together, as
in linear probing with L-BFGS (CLIP, arXiv 2103.00020, appendix A.3); the strongest penalty among equals."""

_WITHOUT_VALIDATION = 0.1


def fit_probe(
    cohort: Cohort, features: Callable[[Sequence[str]], NDArray[np.float64]], *, choose: bool
) -> tuple[Array, int, tuple[str, ...]]:
    """Learn from the training cases and predict the test cases.

    Args:
        cohort: the cases and their labels.
        features: case ids -> (n, F).
        choose: choose the penalty by the mean validation AUROC; False: the histogram baseline with its own.

    Returns:
        Probabilities (test cases, L), numbers learnt, and sentences on how.
    """
    train, test = features(cohort.train), features(cohort.test)
    truth = cohort.labels(cohort.train).astype(np.float64)
    learnt = (train.shape[1] + 1) * truth.shape[1]
    if not choose:
        return HistogramBaseline.fit(train, truth).scores(test), learnt, ()
    strength, how = _WITHOUT_VALIDATION, "there are no validation cases to choose it by"
    if cohort.validation:
        held_out, wanted = features(cohort.validation), cohort.labels(cohort.validation).astype(np.float64)
        found = [(_mean_auroc(wanted, _scores(_fit(train, truth, c), held_out)), -c) for c in STRENGTHS]
        known = [(value, minus) for value, minus in found if value is not None]
        if known:
            best, minus = max(known)
            strength, how = -minus, f"mean validation AUROC {best:.3f}"
    scores = _scores(_fit(train, truth, strength), test)
    return scores, learnt, (f"logistic regression with C = {strength:g}: {how}",)


def _fit(features: Array, truth: Array, strength: float) -> list[Pipeline | float]:
    """A model per label; a number where training knew one class only."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models: list[Pipeline | float] = []
    for column in truth.T:
        known = ~np.isnan(column)
        if one_class_reason(column) is not None:
            models.append(float(column[known].mean()) if known.any() else 0.5)
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        models.append(model.fit(features[known], column[known] > 0.5))
    return models


def _scores(models: Sequence[Pipeline | float], features: Array) -> Array:
    columns = [np.full(len(features), m) if isinstance(m, float) else m.predict_proba(features)[:, 1] for m in models]
    return np.asarray(np.stack(columns, axis=1), np.float64)


def _mean_auroc(truth: Array, score: Array) -> float | None:
    areas = [auroc(truth[:, c], score[:, c]) for c in range(truth.shape[1])]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None
