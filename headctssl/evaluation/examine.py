"""Examine: subgroups, distance from the training cases, and abstention of one evaluation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headctssl.console import say, table
from headctssl.evaluation.evaluation_file import AbstentionCurve, Distances, Evaluation
from headctssl.evaluation.subgroups import subgroups
from headctssl.finetuning.reference import Reference
from headctssl.metrics.abstention import abstention
from headctssl.metrics.classification import auroc
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome
from headctssl.metrics.prediction_table import called_class
from headctssl.metrics.statistics import bootstrap, subject_codes
from headctssl.paths import atomic_path

__all__ = ["examine", "print_examination", "write_distances"]

Array = NDArray[np.float64]

_FEWEST_CASES = 10  # known cases of a label below which no abstention curve is drawn


def examine(
    metrics: Metrics, outcome: Outcome, cases: pd.DataFrame, distances: Array | None, references: Sequence[Reference]
) -> Evaluation:
    """The content of evaluation.json.

    Args:
        metrics: of the same evaluation.
        outcome: predictions and truth.
        cases: the raw dataset's table.
        distances: (n,) from the training cases, 1 = as far as 95 % of the reference; None: no reference.
        references: of the classifiers.
    """
    subjects = subject_codes(outcome.subject_ids, outcome.case_ids)
    curves: list[AbstentionCurve] = []
    errors: dict[str, float] = {}
    notes: list[str] = []
    for column, spec in enumerate(outcome.specs):
        answered = _answers(outcome, column)
        if answered is None or answered[0].size < _FEWEST_CASES:
            if answered is not None:
                notes.append(f"'{spec.name}': {answered[0].size} known cases, too few for an abstention curve")
            continue
        known, wrong, sureness = answered
        orders = {"probability": sureness}
        if distances is not None:
            orders["distance"] = -distances[known]
            area = auroc(wrong.astype(np.float64), distances[known])
            errors |= {} if area is None else {spec.name: area}
        for order, sure in orders.items():
            found = abstention(wrong, sure, subjects[known])
            curves.append(AbstentionCurve(label=spec.name, order=order, **vars(found)))
    if distances is None:
        notes.append(
            "no distances: no reference.safetensors lies beside the classifier (it takes 30 training patients)"
        )
    return Evaluation(
        dataset_name=metrics.dataset_name,
        weights_hash=metrics.weights_hash,
        subgroups=tuple(subgroups(outcome, cases)),
        distances=None if distances is None else _distances(distances, subjects, references, errors),
        abstention=tuple(curves),
        notes=tuple(notes),
    )


def _answers(outcome: Outcome, column: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array] | None:
    """Known cases of a label, whether the answer is wrong, and how sure it is; None for a number."""
    spec, predicted = outcome.specs[column], outcome.predicted(column)
    known = np.flatnonzero(~np.isnan(outcome.truth[:, column]))
    truth = outcome.truth[known, column]
    if spec.type == "continuous":
        return None
    if spec.type == "binary":
        probability = predicted[known]
        return known, (probability >= 0.5) != (truth > 0.5), np.abs(probability - 0.5)
    called = called_class(spec, predicted[known])
    return known, called != truth, predicted[known, called]


def _distances(
    distances: Array, subjects: NDArray[np.int64], references: Sequence[Reference], errors: dict[str, float]
) -> Distances:
    beyond = (distances > 1).astype(np.float64)
    found = bootstrap(lambda w: w @ beyond / w.sum(axis=1), subjects)
    return Distances(
        num_reference=min(one.num_cases for one in references),
        median=float(np.median(distances)),
        share_beyond=float(beyond.mean()),
        share_beyond_ci=found.intervals[0] if found.intervals else None,
        error_auroc=errors,
    )


def write_distances(path: Path, outcome: Outcome, distances: Array) -> Path:
    """Write distances.csv: case_id, subject_id, distance (1 = as far as 95 % of the training cases' own).

    Args:
        path: the file.
        outcome: its cases.
        distances: (n,).
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["case_id", "subject_id", "distance"])
        rows = zip(outcome.case_ids, outcome.subject_ids, distances, strict=True)
        writer.writerows([case_id, subject_id, f"{away:.6g}"] for case_id, subject_id, away in rows)
    return path


def print_examination(found: Evaluation, *, quiet: bool = False) -> None:
    """Print the groups, the distances and what abstention gains.

    Args:
        found: what was examined.
        quiet: print nothing.
    """
    rows = []
    for group in found.subgroups:
        for label in group.labels:
            area = "not scored" if label.auroc is None else f"{label.auroc:.3f}"
            if label.auroc_ci is not None:
                area += " [{:.3f}, {:.3f}]".format(*label.auroc_ci)
            rows.append((group.column, group.group, label.name, f"{label.n_positive}/{label.n_negative}", area))
    if rows:
        table("by group", ("column", "group", "label", "+/-", "AUROC [95 %]"), rows, quiet=quiet)
    if (far := found.distances) is not None:
        interval = "" if far.share_beyond_ci is None else " [{:.0%}, {:.0%}]".format(*far.share_beyond_ci)
        say(
            f"distance from {far.num_reference} training cases: {far.share_beyond:.0%}{interval} of the cases lie"
            f" farther than 95 % of the training distribution, median {far.median:.2f} of that distance",
            quiet=quiet,
        )
    for curve in found.abstention:
        if curve.order == "probability":
            half = min(curve.curve, key=lambda point: abs(point[0] - 0.5))
            say(
                f"abstention, {curve.label}: {curve.error_rate:.1%} wrong when all are answered, {half[1]:.1%} of the"
                f" surest {half[0]:.0%}; area under the risk-coverage curve {curve.aurc:.3f}",
                quiet=quiet,
            )
    for note in found.notes:
        say(f"note: {note}", quiet=quiet)
