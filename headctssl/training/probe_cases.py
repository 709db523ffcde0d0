"""Probe cases: the labelled cases outside the test set by which a pretraining run is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import HeadCTSSLError
from headctssl.metrics.statistics import subject_codes
from headctssl.paths import preprocessed_dataset
from headctssl.planning.plans import Plans
from headctssl.preprocessing.index import CaseIndex
from headctssl.seeding import derive_seed

__all__ = ["Labelled", "ProbeCases", "choose_probe_cases", "find_labelled"]

_LEAST_OF_A_CLASS = 2
"""Positive and negative cases a label needs in each of the two parts to be counted."""


@dataclass(frozen=True)
class Labelled:
    """The stored cases outside the test set of which a binary label is known; rows in the order of the indexes."""

    names: tuple[str, ...]  # of the labels
    places: tuple[tuple[int, str], ...]  # (position among the run's datasets, case id)
    labels: NDArray[np.float32]  # (n, L) 0, 1 or NaN = unknown
    subjects: tuple[str, ...]  # one per row, told apart over datasets
    why_none: str = ""  # a sentence when there are none

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class ProbeCases:
    """The cases of the probes in the order of the indexes, and in which part each is."""

    names: tuple[str, ...]
    indexes: tuple[CaseIndex, ...]  # one per dataset of the run, some of them empty
    labels: NDArray[np.float32]  # (n, L)
    learns: NDArray[np.bool_]  # (n,) the probe learns from it; it is scored on the others
    subjects: NDArray[np.int64]  # (n,)
    left_out: tuple[str, ...] = ()  # labels with too few cases of a class

    def __len__(self) -> int:
        return len(self.labels)


def find_labelled(plans: Sequence[Plans], indexes: Sequence[CaseIndex]) -> Labelled:
    """Every case that a probe may look at.

    Args:
        plans: of the datasets of a run.
        indexes: the cases that the run trains on, one index per dataset; test cases among them are left out.
    """
    frames, reasons = [], []
    for plan in plans:
        try:
            raw = load_raw_dataset(plan.dataset_id)
            binary = [spec.name for spec in raw.info.labels if spec.type == "binary"]
            subject = dict(zip(raw.case_ids, raw.cases["subject_id"].tolist(), strict=True))
            frames.append((raw.labels()[binary] if binary else None, subject))
            if not binary:
                reasons.append(f"{plan.dataset_name} has no binary labels")
        except HeadCTSSLError as error:  # pretraining itself needs no raw dataset
            frames.append((None, {}))
            reasons.append(f"the labels of {plan.dataset_name} cannot be read: {error.what}")
    names = tuple(dict.fromkeys(str(name) for frame, _ in frames if frame is not None for name in frame.columns))
    places: list[tuple[int, str]] = []
    rows: list[NDArray[np.float32]] = []
    subjects: list[str] = []
    for number, (plan, index, (frame, subject)) in enumerate(zip(plans, indexes, frames, strict=True)):
        if frame is None:
            continue
        test = set(load_splits(preprocessed_dataset(plan.dataset_id)).test)
        table = frame.reindex(columns=list(names))
        known = {str(case): row for case, row in zip(table.index, table.to_numpy(np.float32), strict=True)}
        for case_id in index.case_ids:
            row = known.get(case_id)
            if row is not None and case_id not in test and not np.isnan(row).all():
                places.append((number, case_id))
                rows.append(row)
                subjects.append(f"{plan.dataset_id}\x1f{subject[case_id]}")
    why = "" if places else "; ".join(reasons) or "no case outside the test set has a known label"
    return Labelled(
        names, tuple(places), np.array(rows, np.float32).reshape(len(rows), len(names)), tuple(subjects), why
    )


def choose_probe_cases(labelled: Labelled, indexes: Sequence[CaseIndex], count: int) -> ProbeCases:
    """Draw the cases of the probes by subject: one part to learn from, one to score.

    The draw depends on the subjects alone, not on the seed of a run, so that runs on a dataset are watched by the same
    cases. Labels take turns, a positive subject and then any, and each turn goes to the two parts alternately: rare
    labels are found in both, and no subject is.

    Args:
        labelled: from `find_labelled`.
        indexes: of the run, as given to it.
        count: cases wanted, over both parts.
    """
    by_subject: dict[str, list[int]] = {}
    for row, subject in enumerate(labelled.subjects):
        by_subject.setdefault(subject, []).append(row)
    order = sorted(by_subject, key=lambda subject: derive_seed("probe", subject))
    marked = labelled.labels > 0.5  # False where unknown
    queues = [[s for s in order if marked[by_subject[s], column].any()] for column in range(len(labelled.names))]
    part: dict[str, bool] = {}
    taken, turn = 0, 0
    while taken < min(count, len(labelled)):
        queue = queues[(turn // 4) % len(queues)] if turn % 4 < 2 else order  # two positive ones, two of any
        chosen = next((s for s in queue if s not in part), None)
        chosen = chosen if chosen is not None else next(s for s in order if s not in part)
        part[chosen] = turn % 2 == 0
        taken += len(by_subject[chosen])
        turn += 1
    rows = [row for row, subject in enumerate(labelled.subjects) if subject in part]
    learns = np.array([part[labelled.subjects[row]] for row in rows], np.bool_)
    labels = labelled.labels[rows]
    counted = [
        all(
            min((labels[side, column] > 0.5).sum(), (labels[side, column] <= 0.5).sum()) >= _LEAST_OF_A_CLASS
            for side in (learns, ~learns)
        )
        for column in range(len(labelled.names))
    ]
    chosen_ids = [labelled.places[row] for row in rows]
    parts = tuple(
        index.subset({case for place, case in chosen_ids if place == number}) for number, index in enumerate(indexes)
    )
    names = [labelled.subjects[row] for row in rows]
    return ProbeCases(
        tuple(name for name, kept in zip(labelled.names, counted, strict=True) if kept),
        parts,
        labels[:, counted],
        learns,
        subject_codes(names, names),
        tuple(name for name, kept in zip(labelled.names, counted, strict=True) if not kept),
    )
