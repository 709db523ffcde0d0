"""Studies: one prediction of all scans of a study, by mean, maximum or attention, whatever their order."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec, column_slices
from headctssl.metrics.metrics_file import StudyMetrics
from headctssl.metrics.outcome import Outcome, interval_warnings, measure
from headctssl.metrics.prediction_table import prediction_cells, prediction_columns
from headctssl.paths import atomic_path

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "Pooled",
    "Studies",
    "aggregated",
    "by_study",
    "contradiction_sentences",
    "group_scans",
    "measure_studies",
    "read_studies_beside",
    "study_truth",
    "write_studies",
    "write_studies_beside",
]

Aggregate = Literal["mean", "max", "attention"]
AGGREGATES = get_args(Aggregate)
Array = NDArray[np.float64]
Pooled = Callable[[Sequence[Sequence[int]]], Array]
"""Rows of the scans of each study -> (s, P), the predictions of a classifier that weighs scans by attention."""

# Legend: n scans, k scans of one study, s studies, P predicted columns, L labels.


@dataclass(frozen=True)
class Studies:
    """Predictions and truth by study instead of by scan."""

    outcome: Outcome  # one row per study; its case ids are those of each study's first scan
    session_ids: tuple[str, ...]  # '' = unknown: the scan is its own study
    num_scans: tuple[int, ...]
    contradictions: tuple[str, ...]  # sentences on classes that scans of one study contradict each other in

    @property
    def has_several(self) -> bool:
        """Whether any study has more than one scan."""
        return max(self.num_scans, default=0) > 1


def group_scans(case_ids: Sequence[str], subject_ids: Sequence[str], session_ids: Sequence[str]) -> list[list[int]]:
    """The rows of each study: the scans of one session of one subject, in the order of their case ids.

    The same session of two subjects is two studies. A scan of which subject or session is not known is its own.

    Args:
        case_ids: one per scan, all different.
        subject_ids: one per scan, '' = unknown.
        session_ids: one per scan, '' = unknown.

    Returns:
        Rows per study, each in the order of the case ids, studies in the order of their first case id: the same
        studies and the same order within them for any order of the scans.
    """
    studies: dict[tuple[str, ...], list[int]] = {}
    for row in sorted(range(len(case_ids)), key=case_ids.__getitem__):
        subject, session = subject_ids[row], session_ids[row]
        studies.setdefault((subject, session) if subject and session else (case_ids[row],), []).append(row)
    return list(studies.values())


def aggregated(labels: Sequence[LabelSpec], scans: Array, how: Literal["mean", "max"]) -> Array:
    """The prediction of one study.

    `mean`: the mean of each column, so that the probabilities of classes go on summing to one. `max`: the finding of
    the scan that shows most of it. Binary and continuous: the highest value. Ordinal: at every threshold the highest
    probability of being above it, which keeps the thresholds in order. Multiclass: the highest probability of each
    class, divided by their sum.

    Args:
        labels: the labels.
        scans: (k, P) in the columns of `column_slices`, k at least 1.
        how: 'mean' or 'max'.

    Returns:
        (P,).
    """
    if how == "mean":
        return np.asarray(scans.mean(axis=0))
    found = []
    for spec, where in zip(labels, column_slices(labels), strict=True):
        columns = scans[:, where]
        if spec.type == "ordinal":
            at_or_below = columns.cumsum(axis=1).min(axis=0)
            at_or_below[-1] = 1.0
            found.append(np.diff(at_or_below, prepend=0.0))
        else:
            highest = columns.max(axis=0)
            found.append(highest / highest.sum() if spec.type == "multiclass" else highest)
    return np.concatenate(found)


def study_truth(
    labels: Sequence[LabelSpec], scans: NDArray[np.floating], groups: Sequence[Sequence[int]]
) -> tuple[Array, NDArray[np.int64]]:
    """The truth of studies: what their scans say where it is known.

    The mean of a number; the class where the scans agree. Scans that contradict each other leave it unknown: they show
    one head at one time.

    Args:
        labels: the labels.
        scans: (n, L), NaN = unknown.
        groups: the rows of each study.

    Returns:
        (s, L), NaN = unknown, and (L,) how many studies contradict themselves.
    """
    truth = np.full((len(groups), len(labels)), np.nan)
    contradicted = np.zeros(len(labels), np.int64)
    for study, group in enumerate(groups):
        for column, spec in enumerate(labels):
            values = scans[list(group), column]
            known = values[~np.isnan(values)]
            if known.size and (spec.type == "continuous" or np.ptp(known) == 0):
                truth[study, column] = known.mean()
            contradicted[column] += known.size > 0 and np.isnan(truth[study, column])
    return truth, contradicted


def contradiction_sentences(labels: Sequence[LabelSpec], contradicted: NDArray[np.int64]) -> tuple[str, ...]:
    """One sentence per label in which scans of one study contradict each other.

    Args:
        labels: the labels.
        contradicted: (L,) from `study_truth`.
    """
    return tuple(
        f"the scans of {count} studies contradict each other in '{spec.name}': unknown for the study"
        for spec, count in zip(labels, contradicted.tolist(), strict=True)
        if count
    )


def by_study(outcome: Outcome, sessions: Mapping[str, str], how: Aggregate, pooled: Pooled | None = None) -> Studies:
    """Predictions of scans brought together by study; truth as `study_truth`, and contradictions are told.

    Args:
        outcome: predictions of scans.
        sessions: case id -> session id, '' = unknown.
        how: 'mean', 'max', or 'attention', which is the classifier's own.
        pooled: what the classifier predicts of studies, for 'attention'.
    """
    groups = group_scans(outcome.case_ids, outcome.subject_ids, [sessions.get(c, "") for c in outcome.case_ids])
    truth, contradicted = study_truth(outcome.specs, outcome.truth, groups)
    first = [group[0] for group in groups]
    if how == "attention":
        assert pooled is not None, "attention is the classifier's"
        probability = pooled(groups)
    else:
        probability = np.array([aggregated(outcome.specs, outcome.probability[group], how) for group in groups])
    together = Outcome(
        specs=outcome.specs,
        case_ids=tuple(outcome.case_ids[row] for row in first),
        subject_ids=tuple(outcome.subject_ids[row] for row in first),
        truth=truth,
        probability=probability,
    )
    return Studies(
        outcome=together,
        session_ids=tuple(sessions.get(case_id, "") for case_id in together.case_ids),
        num_scans=tuple(len(group) for group in groups),
        contradictions=contradiction_sentences(outcome.specs, contradicted),
    )


def measure_studies(
    outcome: Outcome,
    sessions: Mapping[str, str],
    how: Aggregate,
    pooled: Pooled | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Studies, StudyMetrics] | None:
    """The block `studies` of metrics.json; None where no study has several scans, since it would repeat the scans.

    Args:
        outcome: predictions of scans.
        sessions: case id -> session id, '' = unknown.
        how: 'mean', 'max' or 'attention'.
        pooled: see `by_study`.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """
    studies = by_study(outcome, sessions, how, pooled)
    if not studies.has_several:
        return None
    labels, mean, interval = measure(studies.outcome, num_resamples=num_resamples, seed=seed)
    return studies, StudyMetrics(
        aggregate=how,
        num_studies=len(studies.num_scans),
        num_with_several=sum(count > 1 for count in studies.num_scans),
        notes=(*studies.contradictions, *interval_warnings(studies.outcome)),
        mean_auroc=mean,
        mean_auroc_ci=interval,
        labels=labels,
    )


def write_studies_beside(predictions: Path, studies: Studies | None) -> list[Path]:
    """Write predictions_studies.csv beside predictions.csv; one of an earlier evaluation is removed.

    Args:
        predictions: the file of the scans.
        studies: what to write; None where no study has several scans.

    Returns:
        The files written.
    """
    path = _beside(predictions)
    if studies is None:
        path.unlink(missing_ok=True)
        return []
    return [write_studies(path, studies)]


def read_studies_beside(predictions: Path, labels: Sequence[LabelSpec]) -> dict[tuple[str, str], Array]:
    """What `write_studies_beside` wrote: (subject id, session id) -> (P,); nothing where no study has several scans.

    Args:
        predictions: the file of the scans.
        labels: the labels.
    """
    path = _beside(predictions)
    if not path.is_file():
        return {}
    wanted = [name for spec in labels for name in spec.columns]
    with open(path, newline="", encoding="utf-8") as handle:
        return {
            (row["subject_id"], row["session_id"]): np.array([float(row[name]) for name in wanted])
            for row in csv.DictReader(handle)
        }


def _beside(predictions: Path) -> Path:
    return predictions.with_name(f"{predictions.stem}_studies.csv")


def write_studies(path: Path, studies: Studies) -> Path:
    """Write predictions_studies.csv: subject_id, session_id, num_scans and the columns of `prediction_columns`.

    A scan that is its own study has its case id in place of a session.

    Args:
        path: the file.
        studies: what to write.
    """
    found = studies.outcome
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["subject_id", "session_id", "num_scans", *prediction_columns(found.specs)])
        for row, numbers in enumerate(found.probability):
            session = studies.session_ids[row] or found.case_ids[row]
            cells = prediction_cells(found.specs, numbers)
            writer.writerow([found.subject_ids[row], session, studies.num_scans[row], *cells])
    return path
