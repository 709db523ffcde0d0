"""Calibrate: the temperature of a classifier, fitted on its validation cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import LabelSpec, column_slices
from headctssl.finetuning.outputs import predictions
from headctssl.metrics.calibration import fit_temperature

__all__ = ["FEWEST_CASES", "Calibration", "calibrate"]

FEWEST_CASES = 10
"""Known labels of validation cases below which no temperature is fitted."""


@dataclass(frozen=True)
class Calibration:
    """What was found."""

    temperature: float  # 1: as the network says
    note: str


def calibrate(labels: tuple[LabelSpec, ...], outputs: Tensor, truth: NDArray[np.floating]) -> Calibration:
    """Fit one temperature for all labels that have probabilities.

    Args:
        labels: of the classifier.
        outputs: (n, O) of its head for validation cases, which the weights were not trained on.
        truth: (n, L) as `RawDataset.labels`, NaN = unknown.
    """
    chosen = [
        column
        for column, spec in enumerate(labels)
        if spec.type != "continuous" and np.unique(truth[~np.isnan(truth[:, column]), column]).size > 1
    ]
    count = int((~np.isnan(truth[:, chosen])).sum())
    if count < FEWEST_CASES:
        return Calibration(
            1.0, f"temperature 1: {count} known validation labels are fewer than {FEWEST_CASES}, so none was fitted"
        )

    def total_loss(temperature: float) -> float:
        return _total_loss(labels, predictions(labels, outputs, temperature), truth, chosen)

    temperature = fit_temperature(total_loss)
    before, after = total_loss(1.0) / count, total_loss(temperature) / count
    return Calibration(
        temperature,
        f"temperature {temperature:.3g}, fitted on {count} validation labels: their log loss went from {before:.3f} to"
        f" {after:.3f}",
    )


def _total_loss(
    labels: tuple[LabelSpec, ...], table: NDArray[np.float64], truth: NDArray[np.floating], chosen: list[int]
) -> float:
    """Sum of the log losses of the known labels; a probability below 1e-12 counts as that."""
    where = column_slices(labels)
    total = 0.0
    for column in chosen:
        known = ~np.isnan(truth[:, column])
        value, found = truth[known, column].round().astype(np.int64), table[known, where[column]]
        if labels[column].type == "binary":
            of_truth = np.where(value == 1, found[:, 0], 1 - found[:, 0])
        else:
            of_truth = found[np.arange(value.size), value]
        total -= float(np.log(np.maximum(of_truth, 1e-12)).sum())
    return total
