"""Prediction table: the columns of predictions.csv, and the class that probabilities call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec, column_slices

__all__ = ["called_class", "prediction_cells", "prediction_columns"]


def called_class(spec: LabelSpec, probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class that is called, by position.

    Multiclass: the most probable one, the first of equals. Ordinal: the median, the first class that the truth is
    at or below with a probability of one half or more (as CORAL counts thresholds, arXiv 1901.07884, section 3.2): it
    costs the least absolute error in classes.

    Args:
        spec: a multiclass or ordinal label.
        probability: (n, C) per class.
    """
    if spec.type == "ordinal":
        above = 1 - probability.cumsum(axis=1)[:, :-1]
        return np.asarray((above > 0.5).sum(axis=1), dtype=np.int64)
    return np.asarray(probability.argmax(axis=1), dtype=np.int64)


def prediction_columns(labels: Sequence[LabelSpec]) -> list[str]:
    """``LABEL`` per label, after it ``LABEL=CLASS`` for each class of multiclass and ordinal labels."""
    return [name for spec in labels for name in (spec.name, *(spec.columns if spec.has_classes else ()))]


def prediction_cells(labels: Sequence[LabelSpec], row: NDArray[np.float64]) -> list[str]:
    """One line of predictions.csv: a probability or number, or the class that is called and the probability of each.

    Args:
        labels: the labels.
        row: (P,) in the columns of `column_slices`.
    """
    cells: list[str] = []
    for spec, where in zip(labels, column_slices(labels), strict=True):
        numbers = row[where]
        if spec.has_classes:
            cells.append(spec.classes[int(called_class(spec, numbers[None])[0])])
        cells += [f"{number:.6g}" for number in numbers]
    return cells
