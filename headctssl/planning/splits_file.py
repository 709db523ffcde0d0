"""Splits file: splits.json made once, and added to when cases join a dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.console import say
from headctssl.dataset.manifest import RawDataset
from headctssl.dataset.splits import Fold, Splits, load_splits, make_splits
from headctssl.errors import DataError
from headctssl.planning.plans import SplitRule
from headctssl.settings import write_json

__all__ = ["add_cases", "ensure_splits"]


def ensure_splits(
    raw: RawDataset, folder: Path, rule: SplitRule, case_ids: Collection[str], *, quiet: bool = False
) -> Path:
    """Make splits.json when it is missing, and give added cases a place.

    Args:
        raw: the raw dataset, for subjects, the `split` column and labels.
        folder: the dataset's folder under headctssl_preprocessed.
        rule: how to draw.
        case_ids: the cases that can be used.
        quiet: print nothing.

    Returns:
        The file.

    Raises:
        DataError: see `add_cases`.
    """
    path = folder / "splits.json"
    wanted = set(case_ids)
    if path.is_file():
        before = load_splits(folder)
        splits = add_cases(before, raw, wanted)
        if splits is not before:
            write_json(path, splits)
            say(splits.notes[-1], quiet=quiet)
        return path
    usable = raw.cases["case_id"].isin(wanted).to_numpy()
    cases = raw.cases[usable].reset_index(drop=True)
    labels = raw.labels()[usable] if raw.info.labels else None
    splits = make_splits(cases, labels, test_share=rule.test_share, folds=rule.folds, seed=rule.seed)
    write_json(path, splits)
    for note in splits.notes:
        say(note, quiet=quiet)
    fold = splits.folds[0]
    say(
        f"splits: {len(splits.test)} test cases, {len(splits.folds)} fold(s), "
        f"fold 0 has {len(fold.train)} training and {len(fold.val)} validation cases",
        quiet=quiet,
    )
    return path


def add_cases(splits: Splits, raw: RawDataset, case_ids: Collection[str]) -> Splits:
    """Give cases that no split knows a place.

    A case goes where its subject is already. A new subject goes where its mark in the column `split`
    of cases.csv says (`val`: the validation cases of every fold), without a mark to training in every fold.
    Nothing that was drawn moves, so a test set stays a test set. The same object comes back when
    there is nothing to add.

    Args:
        splits: the splits so far.
        raw: the dataset, for subjects and marks.
        case_ids: the cases that can be used; those that left the dataset get no place.

    Raises:
        DataError: a subject is marked for another part than the one it is in, or stands on two sides of a split
            because its `subject_id` was changed after the splits were drawn.
    """
    ids = raw.case_ids
    subject = dict(zip(ids, raw.cases["subject_id"].tolist(), strict=True))
    mark = dict(zip(ids, raw.cases["split"].tolist(), strict=True)) if "split" in raw.cases.columns else {}
    known = set(splits.test).union(*(part for fold in splits.folds for part in (fold.train, fold.val)))
    _refuse_divided_subjects(splits, subject)
    _refuse_other_marks(splits, subject, mark)
    added = sorted((set(case_ids) & set(subject)) - known)
    if not added:
        return splits

    def of_subjects(cases: Collection[str], members: Collection[str]) -> list[str]:
        subjects = {subject[m] for m in members if m in subject}
        return [case for case in cases if subject[case] in subjects]

    joining = set(of_subjects(added, known))
    new = {part: [c for c in added if c not in joining and mark.get(c) == part] for part in ("test", "val")}
    test = sorted([*of_subjects(added, splits.test), *new["test"]])
    rest = sorted(set(added) - set(test))
    folds = []
    for fold in splits.folds:
        val = sorted([*of_subjects(rest, fold.val), *new["val"]])
        train = sorted(set(rest) - set(val))
        folds.append(Fold(train=(*fold.train, *train), val=(*fold.val, *val)))
    note = f"{len(added)} cases were added: {len(test)} join the test cases by their subject or mark, "
    note += f"{len(new['val'])} the validation cases of every fold by their mark, the others follow their subject or "
    note += "are for training."
    return Splits(test=(*splits.test, *test), folds=tuple(folds), notes=(*splits.notes, note))


def _refuse_divided_subjects(splits: Splits, subject: Mapping[str, str]) -> None:
    """Subjects filled in or merged after the draw may stand on two sides: then a patient leaks into the test."""
    number = {name: i for i, name in enumerate(dict.fromkeys(subject.values()))}
    names = list(number)
    of_case = {case: number[name] for case, name in subject.items()}

    def present(cases: Iterable[str]) -> NDArray[np.bool_]:
        """Which subjects have one of the cases."""
        has = np.zeros(len(names) + 1, np.bool_)
        has[[of_case.get(case, -1) for case in cases]] = True
        return has[:-1]

    test = present(splits.test)
    sides = [(present(fold.train), present(fold.val)) for fold in splits.folds]
    pairs = [("test", test, "training or validation", train | val) for train, val in sides]
    pairs += [("validation", val, "training", train) for train, val in sides]
    for one, first, other, second in pairs:
        both = [names[i] for i in np.flatnonzero(first & second)]
        if both:
            more = f" ({len(both) - 1} more subjects likewise)" if len(both) > 1 else ""
            raise DataError(
                f"Subject '{min(both)}' has scans on two sides of splits.json{more}.",
                got=f"scans in {one} and in {other}: subject_id in cases.csv changed after the splits were drawn",
                expected="every subject on one side",
                do="Correct 'subject_id' in cases.csv. Or delete splits.json to draw all splits anew, and train again: "
                "models trained so far may have seen the new test subjects.",
            )


def _refuse_other_marks(splits: Splits, subject: Mapping[str, str], mark: Mapping[str, str]) -> None:
    """A mark that the splits cannot honour without moving what was drawn is an error.

    All cases of a subject have one mark (`load_raw_dataset` sees to that), so looking at the cases
    that have a place finds added ones of the same subject too. A subject marked `train` may validate
    a fold, as in `make_splits`.
    """
    if not any(mark.values()):
        return
    validated = {case for fold in splits.folds for case in fold.val}
    trained = {case for fold in splits.folds for case in fold.train}
    for place, cases, others in (
        ("test", splits.test, ("train", "val")),
        ("training or validation", sorted(trained | validated), ("test",)),
        ("training", sorted(trained - validated), ("val",)),
    ):
        wrong = {subject[case]: mark[case] for case in cases if mark.get(case) in others}
        if wrong:
            name, asked = next(iter(wrong.items()))
            more = f" ({len(wrong) - 1} more subjects likewise)" if len(wrong) > 1 else ""
            raise DataError(
                f"Subject '{name}' is marked '{asked}' in cases.csv, but splits.json has it in {place}{more}.",
                got=f"split={asked}",
                expected=f"no mark, or one that leaves its cases in {place}: splits are never moved",
                do="Correct the column 'split' of cases.csv. Or delete splits.json to draw all splits anew; models "
                "trained so far may then have seen the new test cases.",
            )
