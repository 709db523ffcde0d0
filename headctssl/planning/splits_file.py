"""Splits file: splits.json made once, and added to when cases join a dataset."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from headctssl.console import say
from headctssl.dataset.manifest import RawDataset
from headctssl.dataset.splits import Fold, Splits, load_splits, make_splits
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
    cases = raw.cases[raw.cases["case_id"].isin(wanted)].reset_index(drop=True)
    labels = raw.labels().loc[list(cases["case_id"])] if raw.info.labels else None
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
    """Give cases that no split knows a place: where their subject is, else for training in every fold.

    Nothing that was drawn moves, so a test set stays a test set. The same object comes back when
    there is nothing to add.

    Args:
        splits: the splits so far.
        raw: the dataset, for subjects.
        case_ids: the cases that can be used.
    """
    known = {*splits.test, *(case for fold in splits.folds for case in (*fold.train, *fold.val))}
    added = sorted(set(case_ids) - known)
    if not added:
        return splits
    subject = dict(zip(raw.cases["case_id"], raw.cases["subject_id"], strict=True))

    def of_subjects(cases: Collection[str], members: Collection[str]) -> list[str]:
        subjects = {subject[m] for m in members if m in subject}
        return [case for case in cases if subject[case] in subjects]

    test = of_subjects(added, splits.test)
    rest = sorted(set(added) - set(test))
    folds = []
    for fold in splits.folds:
        val = of_subjects(rest, fold.val)
        train = sorted(set(rest) - set(val))
        folds.append(Fold(train=(*fold.train, *train), val=(*fold.val, *val)))
    note = f"{len(added)} cases were added: {len(test)} join the test cases by their subject, the others training."
    return Splits(test=(*splits.test, *test), folds=tuple(folds), notes=(*splits.notes, note))
