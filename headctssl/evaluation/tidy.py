"""Tidy: comparison.csv, one line per run, label and metric."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from headctssl.evaluation.cells import CellResult
from headctssl.evaluation.comparison import TIDY_COLUMNS, CellOutcome
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.paths import atomic_path

__all__ = ["MEAN", "METRICS", "tidy_rows", "write_tidy"]

METRICS = ("auroc", "auprc", "balanced_accuracy", "f1", "sensitivity", "specificity", "sensitivity_at_90_specificity",
           "specificity_at_90_sensitivity", "brier", "ece")  # fmt: skip

MEAN = "(mean)"
"""Label of the rows of comparison.csv that hold the mean over all labels."""


def tidy_rows(result: CellResult, outcome: CellOutcome) -> Iterator[tuple[object, ...]]:
    """The rows of comparison.csv of one run.

    Args:
        result: its metrics.
        outcome: the same run in comparison.json.
    """
    arm, cost = result.arm, outcome.cost
    start = (outcome.dataset_name, arm.kind, arm.method, arm.encoder, arm.adapt,
             "all" if result.label_budget is None else result.label_budget, result.seed, result.draw)  # fmt: skip
    end = (cost.scans_seen, _short(cost.pretraining_hours), _short(cost.finetuning_hours), cost.parameters_trained,
           outcome.overlap.mark if outcome.overlap is not None else "")  # fmt: skip
    for label in result.labels:
        for metric in METRICS:
            value, (low, high) = getattr(label, metric), _bounds(label, metric)
            if value is not None:
                numbers = (_short(value), _short(low), _short(high), label.n_positive, label.n_negative)
                yield (*start, label.name, metric, *numbers, *end)
    if result.mean_auroc is not None:
        low, high = result.mean_auroc_ci or (None, None)
        yield (*start, MEAN, "auroc", _short(result.mean_auroc), _short(low), _short(high), "", "", *end)


def _bounds(label: LabelMetrics, metric: str) -> tuple[float | None, float | None]:
    return getattr(label, f"{metric}_ci", None) or (None, None)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def write_tidy(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write comparison.csv.

    Args:
        path: the file.
        rows: in the order of `TIDY_COLUMNS`.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(TIDY_COLUMNS)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return path
