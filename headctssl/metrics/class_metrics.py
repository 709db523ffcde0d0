"""Class metrics: of multiclass and ordinal labels, from the confusion matrix and from ranks, with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec
from headctssl.metrics.intervals import with_intervals
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.metrics.number_metrics import weighted_spearman
from headctssl.metrics.prediction_table import called_class
from headctssl.metrics.statistics import weighted_auroc

__all__ = ["class_metrics", "confusion", "from_confusion", "macro_auroc", "quadratic_kappa"]

Array = NDArray[np.float64]

# Legend: n cases, R rows of weights, C classes.


def class_metrics(
    base: LabelMetrics,
    label: LabelSpec,
    truth: Array,
    probability: Array,
    subjects: NDArray[np.int64],
    num_resamples: int,
    seed: int,
) -> LabelMetrics:
    """The entry of a multiclass or ordinal label.

    Args:
        base: the entry so far.
        label: its classes.
        truth: (n,) positions of classes, all known.
        probability: (n, C).
        subjects: (n,) subject number per case.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    count = len(label.classes)
    called = called_class(label, probability)
    cells = truth.astype(np.int64) * count + called
    matrix = confusion(cells, count, np.ones((1, truth.size)))[0]
    update: dict[str, object] = {
        "classes": label.classes,
        "confusion": tuple(tuple(int(n) for n in row) for row in matrix),
    }
    if truth.size == 0 or np.ptp(truth) == 0:
        reason = "no case with a known label" if truth.size == 0 else "fewer than two classes occur"
        return base.model_copy(update={**update, "reason": reason})
    names = ["accuracy", "balanced_accuracy", "macro_f1"]
    if label.type == "multiclass":
        names.append("auroc")
    else:
        names += ["quadratic_kappa", "mae", "spearman"]
    rank = probability @ np.arange(count)

    def statistic(weights: Array) -> Array:
        matrices = confusion(cells, count, weights)
        columns = [from_confusion(matrices)]
        if label.type == "multiclass":
            columns.append(macro_auroc(truth, probability, weights)[:, None])
        else:
            error = weights @ np.abs(truth - called) / weights.sum(axis=1)
            ranks = weighted_spearman(truth, rank, weights)
            columns.append(np.stack([quadratic_kappa(matrices), error, ranks], axis=1))
        return np.concatenate(columns, axis=1)

    return base.model_copy(update={**update, **with_intervals(statistic, names, subjects, num_resamples, seed)})


def confusion(cells: NDArray[np.int64], count: int, weights: Array) -> Array:
    """Weighted confusion matrices: rows are the truth, columns what is called (scikit-learn's convention).

    Args:
        cells: (n,) truth * C + called.
        count: C.
        weights: (R, n).

    Returns:
        (R, C, C).
    """
    used = np.unique(cells)
    matrices = np.zeros((weights.shape[0], count * count))
    for cell in used:
        matrices[:, cell] = weights[:, cells == cell].sum(axis=1)
    return matrices.reshape(-1, count, count)


def from_confusion(matrices: Array) -> Array:
    """Accuracy, balanced accuracy and macro F1 as scikit-learn defines them.

    Balanced accuracy is the mean recall of the classes that occur; macro F1 the mean F1 of the classes that occur or
    are called.

    Args:
        matrices: (R, C, C) from `confusion`.

    Returns:
        (R, 3).
    """
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    truth, called = matrices.sum(axis=2), matrices.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hits.sum(axis=1) / matrices.sum(axis=(1, 2))
        recall = np.where(truth > 0, hits / truth, 0.0).sum(axis=1) / (truth > 0).sum(axis=1)
        seen = truth + called > 0
        f1 = np.where(seen, 2 * hits / (truth + called), 0.0).sum(axis=1) / seen.sum(axis=1)
    return np.stack([accuracy, recall, f1], axis=1)


def quadratic_kappa(matrices: Array) -> Array:
    """Cohen's kappa with quadratic weights (Cohen 1968), scikit-learn's ``cohen_kappa_score(weights="quadratic")``.

    Args:
        matrices: (R, C, C) from `confusion`.

    Returns:
        (R,), NaN where truth and calls are all of one class.
    """
    place = np.arange(matrices.shape[1])
    cost = (place[:, None] - place[None, :]) ** 2
    total = matrices.sum(axis=(1, 2))
    expected = matrices.sum(axis=2)[:, :, None] * matrices.sum(axis=1)[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = (expected * cost).sum(axis=(1, 2)) / total
        return np.where(chance > 0, 1 - (matrices * cost).sum(axis=(1, 2)) / chance, np.nan)


def macro_auroc(truth: Array, probability: Array, weights: Array) -> Array:
    """Mean AUROC of one class against the rest over the classes that occur among the cases.

    Args:
        truth: (n,) positions of classes.
        probability: (n, C).
        weights: (R, n), not negative.

    Returns:
        (R,), NaN where one of these classes has no weight.
    """
    present = np.unique(truth).astype(np.int64)
    return np.asarray(np.mean([weighted_auroc(truth == c, probability[:, c], weights) for c in present], axis=0))
