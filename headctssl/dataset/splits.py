"""Splits: test set and folds by subject, stratified by labels, the same for any order of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
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
class _Subjects:
    """Cases and subjects as columns: one object for each of 361,663 cases would cost more than the draw."""

    case_ids: NDArray[np.object_]  # (cases,), sorted
    of_case: NDArray[np.int64]  # (cases,) position of the subject
    names: list[str]  # sorted
    marks: NDArray[np.object_]  # (subjects,) train, val, test or ''
    strata: dict[str, NDArray[np.bool_]]  # what a subject may have, e.g. "bleed=1" -> (subjects,) whether it does

    def cases_of(self, subjects: NDArray[np.int64]) -> tuple[str, ...]:
        """The case ids of some subjects, sorted."""
        wanted = np.zeros(len(self.names), np.bool_)
        wanted[subjects] = True
        return tuple(self.case_ids[wanted[self.of_case]].tolist())

    def marked(self, mark: str) -> NDArray[np.int64]:
        """The positions of the subjects that have a mark."""
        return np.flatnonzero(self.marks == mark)

    def less(self, some: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some subjects without others, in their order."""
        stays = np.ones(len(self.names), np.bool_)
        stays[others] = False
        return some[stays[some]]


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
    everybody = np.arange(len(subjects.names))
    if len(everybody) < SMALLEST and not subjects.marks.any():
        notes.append(
            f"{len(everybody)} subjects are fewer than {SMALLEST}: all cases are for training, none for test or"
            " validation."
        )
        return Splits(folds=(Fold(train=subjects.cases_of(everybody)),), notes=tuple(notes))
    test = _take_test(subjects, test_share, seed, notes)
    rest = subjects.less(everybody, test)
    validation = subjects.less(subjects.marked("val"), test)
    if len(validation):
        notes.append("Validation cases are those marked 'val' in cases.csv, so there is one fold.")
        parts = [validation]
    else:
        parts = _deal_folds(subjects, rest, folds, seed, notes)
    drawn = [Fold(train=subjects.cases_of(subjects.less(rest, p)), val=subjects.cases_of(p)) for p in parts]
    return Splits(test=subjects.cases_of(test), folds=tuple(drawn), notes=tuple(notes))


def _subjects(cases: pd.DataFrame, labels: pd.DataFrame | None) -> _Subjects:
    """Cases sorted by id, subjects by name, so that the order of rows cannot matter."""
    given = [str(v) for v in cases["case_id"].tolist()]
    if len(set(given)) != len(given):
        raise DataError(
            "A case id is repeated.", got="duplicates", expected="unique ids", do="Run headct_verify_dataset."
        )
    order = np.array(sorted(range(len(given)), key=given.__getitem__), np.int64)
    ids = np.array(given, object)[order]
    if "subject_id" in cases.columns:
        named = [str(v) or i for v, i in zip(cases["subject_id"].to_numpy(object)[order], ids, strict=True)]
    else:
        named = ids.tolist()
    names = sorted(set(named))
    position = {name: i for i, name in enumerate(names)}
    of_case = np.array([position[name] for name in named], np.int64)
    marks = np.full(len(names), "", object)
    if "split" in cases.columns:
        marks = _marks(names, of_case, cases["split"].to_numpy(object)[order])
    strata = {} if labels is None else _strata(ids, of_case, len(names), labels)
    return _Subjects(ids, of_case, names, marks, strata)


def _marks(names: Sequence[str], of_case: NDArray[np.int64], given: NDArray[np.object_]) -> NDArray[np.object_]:
    marks = np.full(len(names), "", object)
    marks[of_case] = given
    wrong = of_case[marks[of_case] != given]
    if len(wrong):
        first = int(wrong.min())
        raise DataError(
            f"Subject '{names[first]}' is in two splits.",
            got=", ".join(sorted({m or "empty" for m in given[of_case == first]})),
            expected="all cases of a subject in one split",
            do="Correct the column 'split' of cases.csv.",
        )
    return marks


def _strata(
    ids: NDArray[np.object_], of_case: NDArray[np.int64], num_subjects: int, labels: pd.DataFrame
) -> dict[str, NDArray[np.bool_]]:
    """Which subject has which label value; labels with many distinct values (continuous) are left out."""
    strata: dict[str, NDArray[np.bool_]] = {}
    if not len(labels.index):
        return strata
    rows = labels.index.get_indexer(pd.Index(ids))
    known, subject = rows[rows >= 0], of_case[rows >= 0]
    for column in labels.columns:
        values = labels[column]
        distinct = values.dropna().unique()
        if len(distinct) > 20 or any(float(v) != round(float(v)) for v in distinct):
            continue
        of_known = values.to_numpy(np.float64)[known]
        for value in distinct:
            has = np.zeros(num_subjects, np.bool_)
            has[subject[of_known == value]] = True
            if has.any():
                strata[f"{column}={value:g}"] = has
    return strata


def _take_test(subjects: _Subjects, test_share: float, seed: int, notes: list[str]) -> NDArray[np.int64]:
    test = subjects.marked("test")
    if len(test):
        notes.append("Test cases are those marked 'test' in cases.csv.")
        return test
    free = subjects.marked("")
    count = min(max(1, round(test_share * len(free))), len(free) - 1) if test_share > 0 and len(free) > 1 else 0
    if count == 0:
        notes.append("There is no test set: no case is marked 'test' and none is free to be drawn.")
        return test
    return _deal(subjects, free, (count, len(free) - count), seed, "test")[0]


def _deal_folds(
    subjects: _Subjects, rest: NDArray[np.int64], folds: int, seed: int, notes: list[str]
) -> list[NDArray[np.int64]]:
    """The subjects that each fold validates on."""
    if len(rest) < 2:
        notes.append("One subject is left beside the test set: it is for training, none for validation.")
        return [rest[:0]]
    if folds == 1:
        count = max(1, round(len(rest) / 5))
        return _deal(subjects, rest, (count, len(rest) - count), seed, "folds")[:1]
    number = min(folds, len(rest))
    if number < folds:
        notes.append(f"{len(rest)} subjects beside the test set allow {number} folds, not {folds}.")
    sizes = tuple(len(rest) // number + (k < len(rest) % number) for k in range(number))
    return _deal(subjects, rest, sizes, seed, "folds")


def _deal(
    subjects: _Subjects, who: NDArray[np.int64], sizes: Sequence[int], seed: int, purpose: str
) -> list[NDArray[np.int64]]:
    """Deal subjects to parts of exactly these sizes, each stratum spread in proportion.

    Args:
        subjects: their names and what they have.
        who: the positions of those to deal; their order does not matter.
        sizes: subjects per part; they sum to the number of subjects.
        seed: seed of the draw.
        purpose: makes the draws of one seed independent.
    """
    who = np.sort(who)
    seeds = np.array([derive_seed(seed, purpose, subjects.names[i]) for i in who.tolist()], np.int64)
    order = who[np.argsort(seeds, kind="stable")]
    members = {key: has[order] for key, has in subjects.strata.items()}
    members = {"": np.ones(len(order), np.bool_), **{key: has for key, has in members.items() if has.any()}}
    amounts = {key: int(has.sum()) for key, has in members.items()}
    # How many of each stratum every part should still get.
    wanted = {key: [amount * size / len(order) for size in sizes] for key, amount in amounts.items()}
    left = list(sizes)
    part_of = np.full(len(order), -1, np.int64)
    # Rarest stratum first; the rest, that have nothing, come with the stratum '' of everybody.
    for key in sorted(members, key=lambda k: (k == "", amounts[k], k)):
        now = np.flatnonzero(members[key] & (part_of < 0))
        part_of[now] = dealt = np.array(_places(len(now), wanted[key], left, key != ""), np.int64)
        for other, has in members.items():
            if other in ("", key):
                continue
            for part, count in enumerate(np.bincount(dealt[has[now]], minlength=len(sizes)).tolist()):
                for _ in range(count):  # one by one: the sum of many steps is rounded otherwise
                    wanted[other][part] -= 1
    return [order[part_of == part] for part in range(len(sizes))]


def _places(count: int, wanted: list[float], left: list[int], tally: bool) -> list[int]:
    """The part that each of `count` subjects of a stratum goes to, in turn; `wanted` and `left` are brought up to date.

    Whoever it is, the next one goes where most of its stratum is wanted, then where most room is left. Without
    `tally` what is wanted stays: those without a stratum fill up what is left.
    """
    places = []
    for _ in range(count):
        best = max((wanted[part], room, -part) for part, room in enumerate(left) if room > 0)
        part = -best[2]
        places.append(part)
        wanted[part] -= tally
        left[part] -= 1
    return places
