"""Splits: test set and folds by subject, stratified by labels, the same for any order of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from headctssl.errors import DataError
from headctssl.seeding import derive_seed
from headctssl.settings import Settings, read_json

__all__ = ["Fold", "Splits", "load_splits", "make_splits"]

SMALLEST = 5
"""With fewer subjects than this nothing is held out."""


class Fold(Settings):
    """One fold of the cases that are not in the test set."""

    train: tuple[str, ...] = Field(description="Case ids to train on.")
    val: tuple[str, ...] = Field((), description="Case ids to validate on.")


class Splits(Settings):
    """splits.json."""

    format: Literal[1] = 1
    test: tuple[str, ...] = Field((), description="Case ids held out for the final test.")
    folds: tuple[Fold, ...] = Field(description="Folds over the other cases.")
    notes: tuple[str, ...] = Field((), description="Sentences on how the split was drawn.")


def load_splits(folder: Path) -> Splits:
    """Read splits.json of a preprocessed dataset.

    Args:
        folder: the dataset's folder under headctssl_preprocessed.

    Raises:
        DataError: the file is missing or does not fit.
    """
    return read_json(folder / "splits.json", Splits, do="Make it with headct_plan_and_preprocess.")


@dataclass(frozen=True)
class _Subject:
    name: str
    cases: tuple[str, ...]
    split: str  # train, val, test or ''
    strata: frozenset[str]  # what the subject has, e.g. "bleed=1"


def make_splits(
    cases: pd.DataFrame, labels: pd.DataFrame | None, *, test_share: float = 0.2, folds: int = 5, seed: int = 12345
) -> Splits:
    """Draw the test set and the folds by subject.

    1. Marks in a `split` column are kept: `test` subjects are the test set; when `val` is marked
       there is one fold with them; `train` subjects never become test.
    2. Without `test` marks, `test_share` of the unmarked subjects (at least one) are the test set.
    3. Without `val` marks, the other subjects are dealt to `folds` validation sets (as many as there
       are subjects when fewer; one validation set of a fifth when `folds` is 1).
    4. Draws are stratified by iterative stratification (Sechidis et al., ECML PKDD 2011): the rarest
       label value is dealt out first. Continuous labels do not take part.
    5. With fewer than five subjects and no marks all cases are for training, and `notes` says so.

    Args:
        cases: frame with `case_id` and optionally `subject_id`, `split`; '' = unknown.
        labels: frame of numbers with index case_id, NaN = unknown; None without labels.
        test_share: share of subjects held out, in [0, 1).
        folds: number of validation sets, 1 or more.
        seed: seed of the draw.

    Raises:
        DataError: a subject is in two splits, or a case id is repeated.
    """
    subjects = _subjects(cases, labels)
    notes: list[str] = []
    marked = any(s.split for s in subjects)
    if len(subjects) < SMALLEST and not marked:
        notes.append(
            f"{len(subjects)} subjects are fewer than {SMALLEST}: all cases are for training, none for test or"
            " validation."
        )
        return Splits(folds=(Fold(train=_case_ids(subjects)),), notes=tuple(notes))
    test, rest = _take_test(subjects, test_share, seed, notes)
    validation = [s for s in rest if s.split == "val"]
    if validation:
        notes.append("Validation cases are those marked 'val' in cases.csv, so there is one fold.")
        drawn = [Fold(train=_case_ids([s for s in rest if s.split != "val"]), val=_case_ids(validation))]
    else:
        drawn = _deal_folds(rest, folds, seed, notes)
    return Splits(test=_case_ids(test), folds=tuple(drawn), notes=tuple(notes))


def _subjects(cases: pd.DataFrame, labels: pd.DataFrame | None) -> list[_Subject]:
    """Group the cases by subject, sorted by name, so that the order of rows cannot matter."""
    ids = [str(v) for v in cases["case_id"]]
    if len(set(ids)) != len(ids):
        raise DataError(
            "A case id is repeated.", got="duplicates", expected="unique ids", do="Run headct_verify_dataset."
        )
    named = [str(v) for v in cases["subject_id"]] if "subject_id" in cases.columns else [""] * len(ids)
    splits = [str(v) for v in cases["split"]] if "split" in cases.columns else [""] * len(ids)
    strata = _strata(ids, labels)
    groups: dict[str, list[int]] = {}
    for row, (case_id, subject) in enumerate(zip(ids, named, strict=True)):
        groups.setdefault(subject or case_id, []).append(row)
    subjects = []
    for name in sorted(groups):
        rows = groups[name]
        marks = {splits[row] for row in rows}
        if len(marks) > 1:
            raise DataError(
                f"Subject '{name}' is in two splits.",
                got=", ".join(sorted(m or "empty" for m in marks)),
                expected="all cases of a subject in one split",
                do="Correct the column 'split' of cases.csv.",
            )
        members = tuple(sorted(ids[row] for row in rows))
        has = frozenset().union(*(strata.get(member, frozenset()) for member in members))
        subjects.append(_Subject(name, members, marks.pop(), has))
    return subjects


def _strata(ids: Sequence[str], labels: pd.DataFrame | None) -> Mapping[str, frozenset[str]]:
    """Per case the label values it has; labels with many distinct values (continuous) are left out."""
    if labels is None or labels.empty:
        return {}
    table: dict[str, set[str]] = {}
    for column in labels.columns:
        values = labels[column]
        distinct = values.dropna().unique()
        if len(distinct) > 20 or any(float(v) != round(float(v)) for v in distinct):
            continue
        for case_id, value in zip(labels.index, values, strict=True):
            if not math.isnan(value):
                table.setdefault(str(case_id), set()).add(f"{column}={value:g}")
    return {case_id: frozenset(table.get(case_id, ())) for case_id in ids}


def _take_test(
    subjects: list[_Subject], test_share: float, seed: int, notes: list[str]
) -> tuple[list[_Subject], list[_Subject]]:
    test = [s for s in subjects if s.split == "test"]
    if test:
        notes.append("Test cases are those marked 'test' in cases.csv.")
        return test, [s for s in subjects if s.split != "test"]
    free = [s for s in subjects if s.split == ""]
    count = min(max(1, round(test_share * len(free))), len(free) - 1) if test_share > 0 and len(free) > 1 else 0
    if count == 0:
        notes.append("There is no test set: no case is marked 'test' and none is free to be drawn.")
        return [], subjects
    chosen = {s.name for s in _deal(free, (count, len(free) - count), seed, "test")[0]}
    return [s for s in subjects if s.name in chosen], [s for s in subjects if s.name not in chosen]


def _deal_folds(rest: list[_Subject], folds: int, seed: int, notes: list[str]) -> list[Fold]:
    if len(rest) < 2:
        notes.append("One subject is left beside the test set: it is for training, none for validation.")
        return [Fold(train=_case_ids(rest))]
    if folds == 1:
        count = max(1, round(len(rest) / 5))
        parts = _deal(rest, (count, len(rest) - count), seed, "folds")[:1]
    else:
        number = min(folds, len(rest))
        if number < folds:
            notes.append(f"{len(rest)} subjects beside the test set allow {number} folds, not {folds}.")
        sizes = tuple(len(rest) // number + (k < len(rest) % number) for k in range(number))
        parts = _deal(rest, sizes, seed, "folds")
    result = []
    for part in parts:
        names = {s.name for s in part}
        result.append(Fold(train=_case_ids([s for s in rest if s.name not in names]), val=_case_ids(part)))
    return result


def _deal(subjects: Sequence[_Subject], sizes: Sequence[int], seed: int, purpose: str) -> list[list[_Subject]]:
    """Deal subjects to parts of exactly these sizes, each stratum spread in proportion.

    Args:
        subjects: who to deal; their order does not matter.
        sizes: subjects per part; they sum to the number of subjects.
        seed: seed of the draw.
        purpose: makes the draws of one seed independent.
    """
    order = sorted(subjects, key=lambda s: (derive_seed(seed, purpose, s.name), s.name))
    total = len(order)
    left = list(sizes)
    members: dict[str, list[_Subject]] = {"": order}
    for subject in order:
        for stratum in subject.strata:
            members.setdefault(stratum, []).append(subject)
    # How many of each stratum every part should still get.
    wanted = {key: [len(who) * size / total for size in sizes] for key, who in members.items()}
    parts: list[list[_Subject]] = [[] for _ in sizes]
    done: set[str] = set()
    # Rarest stratum first; the rest, that have nothing, come with the stratum '' of everybody.
    for key in sorted(members, key=lambda k: (k == "", len(members[k]), k)):
        for subject in members[key]:
            if subject.name in done:
                continue
            part = max((p for p in range(len(sizes)) if left[p] > 0), key=lambda p: (wanted[key][p], left[p], -p))
            parts[part].append(subject)
            left[part] -= 1
            done.add(subject.name)
            for stratum in subject.strata:
                wanted[stratum][part] -= 1
    return parts


def _case_ids(subjects: Iterable[_Subject]) -> tuple[str, ...]:
    return tuple(sorted(case for subject in subjects for case in subject.cases))
