"""Judged: the cases a classifier was judged by, with prediction, truth and patient, and which of them to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec
from headctssl.dataset.manifest import RawDataset, open_raw_dataset
from headctssl.errors import DataError
from headctssl.metrics.metrics_file import LabelMetrics, Metrics
from headctssl.metrics.outcome import Outcome, read_predictions
from headctssl.metrics.prediction_table import called_class
from headctssl.paths import data_root

__all__ = ["MOST_CASES", "Example", "examples", "known_cases", "read_judged"]

Array = NDArray[np.float64]

MOST_CASES = 12
"""Cases with slices on a page: about 100 kB each."""


@dataclass(frozen=True)
class Example:
    """One case and label to look at."""

    case_id: str
    label: str
    truth: str  # in words
    said: str  # in words, what the classifier makes of it
    tag: str  # what became of it
    error: float  # distance between prediction and truth; the larger, the worse
    wrong: bool | None  # None: of a number, which is never right or wrong
    positive: bool = False  # of a binary label


def read_judged(folder: Path, metrics: Metrics) -> Outcome:
    """The judged cases of a fine-tuning run or evaluation; truth is read from the raw dataset's cases.csv.

    Args:
        folder: with predictions.csv.
        metrics: what was measured on them.

    Raises:
        UsageError: headctssl_raw is not set.
        DataError: predictions.csv is missing or damaged, the raw dataset is not there, or its labels are no longer
            those the metrics were computed from.
    """
    place = data_root("raw") / metrics.dataset_name
    if not (place / "dataset.json").is_file():
        raise DataError(
            "The labels of the judged cases cannot be looked up.",
            got=f"no dataset {metrics.dataset_name} under headctssl_raw",
            expected="the raw dataset with its cases.csv",
            do="Set headctssl_raw to where it lies and make the page again.",
        )
    raw = open_raw_dataset(place, 1)
    truth = _truth(raw, metrics.labels)
    specs = tuple(LabelSpec(name=entry.name, type=entry.type, classes=entry.classes) for entry in metrics.labels)
    try:
        outcome = read_predictions(folder / "predictions.csv", specs, truth)
    except KeyError as error:
        raise _changed(f"the case {error.args[0]} is gone") from None
    except ValueError as error:
        raise DataError(
            "predictions.csv is damaged.",
            got=f"{type(error).__name__}: {error}"[:120],
            expected="case_id and a number per column",
            do="Evaluate again.",
        ) from None
    changed = [e.name for k, e in enumerate(metrics.labels) if not _same_counts(e, outcome.truth[:, k])]
    if changed:
        raise _changed("other labels: " + ", ".join(changed))
    return outcome


def _changed(got: str) -> DataError:
    return DataError(
        "cases.csv is no longer what it was when the classifier was judged.",
        got=got,
        expected="the same cases and labels",
        do="Evaluate again with headct_evaluate.",
    )


def _truth(raw: RawDataset, labels: Sequence[LabelMetrics]) -> dict[str, Array]:
    """Case id -> truth (L,), classes at their place in the classifier's list; NaN = unknown.

    Raises:
        DataError: the dataset has not these labels any more, or other classes.
    """
    frame, here = raw.labels(), {spec.name: spec for spec in raw.info.labels}
    columns = []
    for entry in labels:
        spec = here.get(entry.name)
        if spec is None or spec.type != entry.type or not set(spec.classes) <= set(entry.classes or spec.classes):
            raise _changed(f"the label '{entry.name}' is gone or another one")
        values = frame[entry.name].to_numpy(dtype=np.float64)
        if spec.has_classes and entry.classes:
            place = np.array([*(entry.classes.index(name) for name in spec.classes), np.nan])
            values = place[np.where(np.isnan(values), len(spec.classes), values).astype(np.int64)]
        columns.append(values)
    table = np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))
    return {str(case_id): row for case_id, row in zip(frame.index, table, strict=True)}


def _same_counts(entry: LabelMetrics, truth: Array) -> bool:
    """Whether as many cases are known, and positive, as when the label was measured."""
    known = truth[~np.isnan(truth)]
    if entry.type == "binary" and int((known > 0.5).sum()) != (entry.n_positive or 0):
        return False
    return known.size == entry.n_known


def known_cases(outcome: Outcome, label: int) -> tuple[Array, Array, list[str]]:
    """Truth (n,), prediction (n,) or (n, C), and ids of the cases whose label is known."""
    keep = ~np.isnan(outcome.truth[:, label])
    ids = [case_id for case_id, kept in zip(outcome.case_ids, keep, strict=True) if kept]
    return outcome.truth[keep, label], outcome.predicted(label)[keep], ids


def examples(outcome: Outcome, threshold: Callable[[str], float], most: int = MOST_CASES) -> tuple[Example, ...]:
    """The most confident wrong and right calls, label by label in turn, each case at most once.

    Of every label in turn: the worst one, then the most confident right one (positive and negative in turn), then the
    next worst, until `most` cases are found. Of a number: the farthest from the truth and the nearest.

    Args:
        outcome: predictions and truth.
        threshold: gives for a binary label the least probability that is called positive.
        most: cases in all.
    """
    queues = [_in_turn(_of_label(outcome, k, threshold)) for k in range(len(outcome.specs))]
    chosen: dict[str, Example] = {}
    while len(chosen) < most and any(queues):
        for queue in queues:
            while queue and queue[0].case_id in chosen:
                queue.pop(0)
            if queue and len(chosen) < most:
                example = queue.pop(0)
                chosen[example.case_id] = example
    order = [spec.name for spec in outcome.specs]
    return tuple(sorted(chosen.values(), key=lambda e: (order.index(e.label), e.wrong is False, -e.error)))


def _of_label(outcome: Outcome, column: int, threshold: Callable[[str], float]) -> list[Example]:
    """Every known case of a label."""
    spec = outcome.specs[column]
    truth, predicted, ids = known_cases(outcome, column)
    if spec.type == "binary":
        least = threshold(spec.name)
        return [_binary(spec, i, bool(t > 0.5), float(p), least) for i, t, p in zip(ids, truth, predicted, strict=True)]
    if spec.type == "continuous":
        return [
            Example(i, spec.name, f"{t:.4g}", f"{p:.4g}", "", abs(float(p - t)), None)
            for i, t, p in zip(ids, truth, predicted, strict=True)
        ]
    called = called_class(spec, predicted) if len(ids) else np.empty(0, np.int64)
    found = []
    for row, (case_id, t) in enumerate(zip(ids, truth.astype(np.int64), strict=True)):
        said = f"{spec.classes[called[row]]} ({predicted[row, called[row]]:.2f})"
        wrong = bool(called[row] != t)
        tag = "wrong class" if wrong else "right class"
        found.append(Example(case_id, spec.name, spec.classes[t], said, tag, 1 - float(predicted[row, t]), wrong))
    return found


def _binary(spec: LabelSpec, case_id: str, positive: bool, probability: float, least: float) -> Example:
    call = probability >= least
    tag = {(True, True): "found", (True, False): "missed", (False, True): "false alarm"}.get(
        (positive, call), "rightly negative"
    )
    said = f"{probability:.3f}, {'positive' if call else 'negative'} at {least:.3g}"
    truth = "positive" if positive else "negative"
    error = abs(probability - float(positive))
    return Example(case_id, spec.name, truth, said, tag, error, call != positive, positive)


def _in_turn(found: list[Example]) -> list[Example]:
    """At most four wrong ones and four right ones, wrong first and in turn."""
    ordered = sorted(found, key=lambda e: (e.error, e.case_id))
    if all(e.wrong is None for e in ordered):
        good, bad = ordered[:2], ordered[::-1][:4]
        bad = [e for e in bad if e not in good]
    else:
        bad = sorted((e for e in found if e.wrong), key=lambda e: (-e.error, e.case_id))[:4]
        right = [e for e in ordered if e.wrong is False]
        pairs = zip_longest([e for e in right if e.positive][:2], [e for e in right if not e.positive][:2])
        good = [e for pair in pairs for e in pair if e is not None]
    order: list[Example] = []
    for k in range(4):
        order += bad[k : k + 1] + good[k : k + 1]
    return order
