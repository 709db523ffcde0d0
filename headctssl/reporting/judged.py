"""Judged: the cases a classifier was judged by, with probability, truth and patient, and which of them to show."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.manifest import open_raw_dataset
from headctssl.errors import DataError
from headctssl.metrics.metrics_file import Metrics
from headctssl.paths import data_root

__all__ = ["Example", "Judged", "examples", "read_judged"]

Array = NDArray[np.float64]

MOST_CASES = 12
"""Cases with slices on a page: about 100 kB each."""


@dataclass(frozen=True)
class Judged:
    """Predictions with their truth."""

    labels: tuple[str, ...]  # binary ones
    case_ids: tuple[str, ...]
    probability: Array  # (n, L)
    truth: Array  # (n, L), 0, 1 or NaN = unknown

    def known(self, label: str) -> tuple[NDArray[np.bool_], Array, list[str]]:
        """Truth, probability and case ids of a label where it is known."""
        column = self.labels.index(label)
        keep = ~np.isnan(self.truth[:, column])
        ids = [case_id for case_id, k in zip(self.case_ids, keep, strict=True) if k]
        return self.truth[keep, column] > 0.5, self.probability[keep, column], ids


@dataclass(frozen=True)
class Example:
    """One case and label to look at."""

    case_id: str
    label: str
    truth: bool
    probability: float
    threshold: float

    @property
    def wrong(self) -> bool:
        """Whether the call at the threshold is wrong."""
        return (self.probability >= self.threshold) != self.truth

    @property
    def error(self) -> float:
        """Distance between probability and truth."""
        return abs(self.probability - float(self.truth))


def read_judged(folder: Path, metrics: Metrics) -> Judged:
    """The judged cases of a fine-tuning run or evaluation; truth is read from the raw dataset's cases.csv.

    Args:
        folder: with predictions.csv.
        metrics: what was measured on them.

    Raises:
        UsageError: headctssl_raw is not set.
        DataError: predictions.csv is missing or damaged, the raw dataset is not there, or its labels are no longer
            those the metrics were computed from.
    """
    names = tuple(entry.name for entry in metrics.labels if entry.type == "binary")
    case_ids, probability = _read_predictions(folder / "predictions.csv", names)
    raw = data_root("raw") / metrics.dataset_name
    if not (raw / "dataset.json").is_file():
        raise DataError(
            "The labels of the judged cases cannot be looked up.",
            got=f"no dataset {metrics.dataset_name} under headctssl_raw",
            expected="the raw dataset with its cases.csv",
            do="Set headctssl_raw to where it lies and make the page again.",
        )
    frame = open_raw_dataset(raw, 1).labels()
    gone = [name for name in names if name not in frame.columns]
    lost = sum(case_id not in frame.index for case_id in case_ids)
    truth = frame.reindex(index=list(case_ids), columns=list(names)).to_numpy(dtype=np.float64)
    for column, name in enumerate(names):
        entry = metrics.label(name)
        positive, negative = int((truth[:, column] > 0.5).sum()), int((truth[:, column] <= 0.5).sum())
        if (positive, negative) != (entry.n_positive, entry.n_negative):
            gone.append(name)
    if gone or lost:
        raise DataError(
            "cases.csv is no longer what it was when the classifier was judged.",
            got=f"{lost} judged cases are gone; changed labels: {', '.join(dict.fromkeys(gone)) or 'none'}",
            expected="the same cases and labels",
            do="Evaluate again with headct_evaluate.",
        )
    return Judged(names, case_ids, probability, truth)


def _read_predictions(path: Path, names: Sequence[str]) -> tuple[tuple[str, ...], Array]:
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        ids = tuple(row["case_id"] for row in rows)
        values = np.array([[float(row[name]) for name in names] for row in rows], np.float64)
    except FileNotFoundError:
        raise DataError(
            "There is no predictions.csv.", got=path.parent.name, expected="predictions.csv", do="Evaluate again."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "predictions.csv is damaged.",
            got=f"{type(error).__name__}: {error}"[:120],
            expected="case_id and a number per label: " + ", ".join(names),
            do="Evaluate again.",
        ) from None
    return ids, values.reshape(len(ids), len(names))


def examples(judged: Judged, threshold: dict[str, float], most: int = MOST_CASES) -> tuple[Example, ...]:
    """The most confident wrong and right calls, label by label in turn, each case at most once.

    Of every label in turn: the worst miss or false alarm, then the most confident right positive, then the next worst,
    then the most confident right negative, until `most` cases are found.

    Args:
        judged: predictions and truth.
        threshold: label -> least probability that is called positive.
        most: cases in all.
    """
    queues = []
    for label in judged.labels:
        truth, probability, ids = judged.known(label)
        found = [
            Example(i, label, bool(t), float(p), threshold[label])
            for i, t, p in zip(ids, truth, probability, strict=True)
        ]
        wrong = sorted((e for e in found if e.wrong), key=lambda e: (-e.error, e.case_id))
        right = sorted((e for e in found if not e.wrong), key=lambda e: (e.error, e.case_id))
        queues.append(_in_turn(wrong, [e for e in right if e.truth], [e for e in right if not e.truth]))
    chosen: dict[str, Example] = {}
    while len(chosen) < most and any(queues):
        for queue in queues:
            while queue and queue[0].case_id in chosen:
                queue.pop(0)
            if queue and len(chosen) < most:
                example = queue.pop(0)
                chosen[example.case_id] = example
    return tuple(sorted(chosen.values(), key=lambda e: (judged.labels.index(e.label), not e.wrong, -e.error)))


def _in_turn(wrong: list[Example], positive: list[Example], negative: list[Example]) -> list[Example]:
    """At most four wrong ones, and two right ones of each truth, wrong first and in turn."""
    right = [e for pair in zip_longest(positive[:2], negative[:2]) for e in pair if e is not None]
    order: list[Example] = []
    for k in range(4):
        order += wrong[k : k + 1] + right[k : k + 1]
    return order
