"""Balance: how often each case is drawn so that the classes of every label come equally often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec

__all__ = ["sampled_shares", "sampling_weights"]


def sampling_weights(
    labels: NDArray[np.floating], specs: Sequence[LabelSpec], subjects: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """The chance of every case under class-balanced sampling over patients.

    A sample is drawn in four steps, each with equal chances: a label; one of its classes that training cases show; a
    patient with a case of the class; one of these cases. The chance of a case is its sum over labels and classes, so
    the draw is a function of these chances alone, and a patient with many scans comes as often as one with a single
    scan. With one label its classes come exactly equally often. With several this holds for each label in the samples
    drawn for it; in all together a rare class comes more often than in the cases, and less often than the others as
    far as the labels go together. Numbers have no classes: continuous labels take no part.

    Args:
        labels: (n, L) binary 0 or 1, else positions of classes; NaN = unknown.
        specs: their types.
        subjects: (n,) number of the patient of each case.

    Returns:
        (n,), summing to 1; 0 for a case that no balanced label is known of. None where no label shows two classes.
    """
    weights = np.zeros(len(labels))
    balanced = 0
    for column, spec in enumerate(specs):
        values = labels[:, column]
        classes = np.unique(values[~np.isnan(values)])
        if spec.type == "continuous" or len(classes) < 2:
            continue
        balanced += 1
        for value in classes:
            rows = np.flatnonzero(values == value)
            _, patient, scans = np.unique(subjects[rows], return_inverse=True, return_counts=True)
            weights[rows] += 1.0 / (len(classes) * len(scans) * scans[patient])
    return weights / balanced if balanced else None


def sampled_shares(
    values: NDArray[np.floating], num_classes: int, weights: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """The share of each class among the known samples.

    Args:
        values: (n,) positions of classes, NaN = unknown.
        num_classes: how many there are.
        weights: (n,) chance of each case; all alike when None.

    Returns:
        (num_classes,), all 0 where nothing is known.
    """
    known = ~np.isnan(values)
    chances = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    counts = np.bincount(values[known].astype(np.int64), weights=chances[known], minlength=num_classes)
    return counts / max(float(counts.sum()), np.finfo(np.float64).tiny)
