"""Outcome: the predictions of a classifier on labelled cases, as predictions.csv and metrics.json."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.console import say, table
from headctssl.contract import LabelSpec, column_slices
from headctssl.errors import DataError
from headctssl.metrics.calibration import log_loss, reliability
from headctssl.metrics.classification import label_metrics, mean_auroc, metric_rows, other_rows
from headctssl.metrics.coverage import measured_coverage
from headctssl.metrics.metrics_file import LabelMetrics, Metrics
from headctssl.metrics.prediction_table import prediction_cells, prediction_columns
from headctssl.metrics.statistics import subject_codes
from headctssl.paths import atomic_path

__all__ = [
    "FEWEST_PATIENTS",
    "Outcome",
    "interval_warnings",
    "measure",
    "print_metrics",
    "read_predictions",
    "write_predictions",
]

FEWEST_PATIENTS = 20
"""Patients of each class below which BCa bootstrap intervals cover too little."""

_LEAST_COVERAGE = 0.93


@dataclass(frozen=True)
class Outcome:
    """What was predicted for which case."""

    specs: tuple[LabelSpec, ...]
    case_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]  # '' = unknown
    truth: NDArray[np.float64]  # (n, L), NaN = unknown
    probability: NDArray[np.float64]  # (n, P), the columns of `column_slices(specs)`; continuous: the number itself
    uncalibrated: NDArray[np.float64] | None = None  # the same before the temperature; None: there was none

    def predicted(self, label: int) -> NDArray[np.float64]:
        """What is predicted of a label: (n,), or (n, C) for labels with classes."""
        columns = self.probability[:, column_slices(self.specs)[label]]
        return columns if self.specs[label].has_classes else columns[:, 0]

    def binary(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Truth and probability of the binary labels, each (n, binary labels)."""
        chosen = [k for k, spec in enumerate(self.specs) if spec.type == "binary"]
        columns = [column_slices(self.specs)[k].start for k in chosen]
        return self.truth[:, chosen], self.probability[:, columns]


def measure(
    outcome: Outcome, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[tuple[LabelMetrics, ...], float | None, tuple[float, float] | None]:
    """Metrics per label, and the mean AUROC of the binary labels with its interval.

    Args:
        outcome: predictions and truth.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    subjects = subject_codes(outcome.subject_ids, outcome.case_ids)
    labels = tuple(
        label_metrics(
            spec,
            outcome.truth[:, column],
            outcome.predicted(column),
            subjects,
            num_resamples=num_resamples,
            seed=seed,
        )
        for column, spec in enumerate(outcome.specs)
    )
    if outcome.uncalibrated is not None:
        before = replace(outcome, probability=outcome.uncalibrated)
        labels = tuple(_with_uncalibrated(entry, before, column) for column, entry in enumerate(labels))
    mean, interval = mean_auroc(*outcome.binary(), subjects, num_resamples=num_resamples, seed=seed)
    return labels, mean, interval


def _with_uncalibrated(entry: LabelMetrics, before: Outcome, column: int) -> LabelMetrics:
    """The entry of a binary label with what its probabilities were worth before the temperature."""
    known = ~np.isnan(before.truth[:, column])
    if entry.type != "binary" or entry.brier is None:
        return entry
    positive, probability = before.truth[known, column] > 0.5, before.predicted(column)[known]
    update = {
        "brier_uncalibrated": float(((probability - positive) ** 2).mean()),
        "ece_uncalibrated": reliability(positive, probability).ece,
        "log_loss_uncalibrated": log_loss(positive, probability),
    }
    return entry.model_copy(update=update)


def interval_warnings(outcome: Outcome) -> list[str]:
    """Sentences on labels with so few patients of a class that intervals may hold the truth too rarely.

    Args:
        outcome: predictions and truth.
    """
    subjects = subject_codes(outcome.subject_ids, outcome.case_ids)
    sentences = []
    for column, spec in enumerate(outcome.specs):
        if spec.has_classes:
            sentences += _rare_classes(spec, outcome.truth[:, column], subjects)
        if spec.type != "binary":
            continue
        counts = [np.unique(subjects[outcome.truth[:, column] == value]).size for value in (1.0, 0.0)]
        if min(counts) == 0:
            continue
        found = measured_coverage(*counts)
        few = f"'{spec.name}' has {counts[0]} positive and {counts[1]} negative patients: "
        if found is None:
            sentences.append(f"{few}too few to tell; how often intervals hold the truth was not measured for so few")
        elif min(counts) < FEWEST_PATIENTS or found.lowest < _LEAST_COVERAGE:
            sentences.append(
                f"{few}in {found.runs:,} simulated cohorts of {found.positives} and {found.negatives} the 95 % interval"
                f" of the AUROC held the truth in {100 * found.lowest:.0f} % or more, that of a BCa bootstrap (as all"
                f" others here) in {100 * found.lowest_bca:.0f} % or more"
            )
    return sentences


def _rare_classes(spec: LabelSpec, truth: NDArray[np.float64], subjects: NDArray[np.int64]) -> list[str]:
    """A sentence where a class of a multiclass or ordinal label has few patients; coverage was not measured there."""
    found = {name: np.unique(subjects[truth == k]).size for k, name in enumerate(spec.classes)}
    few = [f"{count} of '{name}'" for name, count in found.items() if 0 < count < FEWEST_PATIENTS]
    return [f"'{spec.name}' has few patients, {', '.join(few)}: its intervals may be too narrow"] if few else []


def write_predictions(path: Path, outcome: Outcome) -> Path:
    """Write predictions.csv: case_id, subject_id and the columns of `prediction_columns`.

    Args:
        path: the file.
        outcome: what to write.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["case_id", "subject_id", *prediction_columns(outcome.specs)])
        for case_id, subject_id, row in zip(outcome.case_ids, outcome.subject_ids, outcome.probability, strict=True):
            writer.writerow([case_id, subject_id, *prediction_cells(outcome.specs, row)])
    return path


def read_predictions(path: Path, specs: tuple[LabelSpec, ...], truth: Mapping[str, NDArray[np.floating]]) -> Outcome:
    """Read predictions.csv with the truth of its cases.

    Args:
        path: the file.
        specs: its labels.
        truth: case id -> (L,), NaN = unknown.

    Raises:
        DataError: the file is missing, or does not have the columns of these labels.
    """
    wanted = [name for spec in specs for name in spec.columns]
    if not path.is_file():
        raise DataError("There are no predictions.", got=path, expected="predictions.csv", do="Run the command again.")
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in ("case_id", "subject_id", *wanted) if name not in (reader.fieldnames or ())]
        rows = [] if missing else list(reader)
    if missing:
        raise DataError(
            f"{path} has not the columns of these labels.",
            got=", ".join(reader.fieldnames or ()),
            expected=", ".join(missing),
            do="Run the command that wrote it again.",
        )
    return Outcome(
        specs=specs,
        case_ids=tuple(row["case_id"] for row in rows),
        subject_ids=tuple(row["subject_id"] for row in rows),
        truth=np.array([truth[row["case_id"]] for row in rows], np.float64).reshape(-1, len(specs)),
        probability=np.array([[float(row[name]) for name in wanted] for row in rows]).reshape(-1, len(wanted)),
    )


def print_metrics(metrics: Metrics, *, quiet: bool = False) -> None:
    """Print the table of metrics with intervals, and what a reader must know.

    Args:
        metrics: what was measured.
        quiet: print nothing.
    """
    title = (
        f"{metrics.dataset_name}, {metrics.evaluated_on} cases: {metrics.num_cases} of {metrics.num_subjects} patients"
    )
    _print_labels(title, metrics.labels, metrics.mean_auroc, metrics.mean_auroc_ci, quiet=quiet)
    if (studies := metrics.studies) is not None:
        of = f"by study ({studies.aggregate} over scans): {studies.num_studies} studies"
        title = f"{of}, {studies.num_with_several} of more than one scan"
        _print_labels(title, studies.labels, studies.mean_auroc, studies.mean_auroc_ci, quiet=quiet)
        for note in studies.notes:
            say(f"note on studies: {note}", quiet=quiet)
    for note in metrics.notes:
        say(f"note: {note}", quiet=quiet)
    if metrics.leakage:
        say(f"leakage: {metrics.leakage}", quiet=quiet)


def _print_labels(
    title: str,
    labels: Sequence[LabelMetrics],
    mean: float | None,
    interval: tuple[float, float] | None,
    *,
    quiet: bool,
) -> None:
    binary = [m for m in labels if m.type == "binary"]
    others = [m for m in labels if m.type != "binary"]
    if binary:
        columns = ("label", "+/-", "AUROC [95 %]", "AUPRC [95 %]", "note")
        table(title, columns, metric_rows(binary), quiet=quiet)
    if others:
        table(title, ("label", "type", "cases", "metrics [95 %]", "note"), other_rows(others), quiet=quiet)
    if mean is not None:
        text = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        say(f"mean AUROC {mean:.3f}{text}", quiet=quiet)
