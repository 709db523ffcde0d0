"""Cohort: which cases and labels a classifier learns from, is chosen by and is tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import LabelSpec
from headctssl.dataset.manifest import RawDataset
from headctssl.dataset.splits import Splits
from headctssl.errors import DataError, UsageError, unknown_name
from headctssl.finetuning.few_shot import FewShots, draw_few_shots
from headctssl.metrics.statistics import subject_codes
from headctssl.metrics.studies import contradiction_sentences, group_scans, study_truth
from headctssl.preprocessing.index import CaseIndex

__all__ = ["NO_FOLD", "Cohort", "choose_labels", "make_cohort", "value_counts"]

NO_FOLD = "none"
"""The fold in which every case outside the test set is for training."""


@dataclass(frozen=True)
class Cohort:
    """Case ids per part and the labels of all of them."""

    specs: tuple[LabelSpec, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    table: dict[str, NDArray[np.float32]]  # case id -> (L,) as `RawDataset.labels`
    subject: dict[str, str]  # case id -> subject id, '' = unknown
    session: dict[str, str]  # case id -> session id, '' = unknown
    notes: tuple[str, ...] = ()

    def labels(self, case_ids: Sequence[str]) -> NDArray[np.float32]:
        """(n, L) in the order of `case_ids`; NaN = unknown."""
        return np.array([self.table[c] for c in case_ids], dtype=np.float32).reshape(-1, len(self.specs))

    def subjects(self, case_ids: Sequence[str]) -> NDArray[np.int64]:
        """(n,) subject number per case."""
        return subject_codes([self.subject[c] for c in case_ids], case_ids)

    def studies(self, case_ids: Sequence[str]) -> tuple[list[list[int]], NDArray[np.float32], tuple[str, ...]]:
        """The positions of the scans of each study in `case_ids`, (s, L) their labels, and sentences on contradictions.

        See `group_scans` and `study_truth`.
        """
        groups = group_scans(case_ids, [self.subject[c] for c in case_ids], [self.session[c] for c in case_ids])
        truth, contradicted = study_truth(self.specs, self.labels(case_ids), groups)
        return groups, truth.astype(np.float32), contradiction_sentences(self.specs, contradicted)

    def digest(self, index: CaseIndex) -> str:
        """SHA-256 over id, subject, session, source, labels and part of every case in order, first 16 hex digits.

        Subjects belong to it: draws, class-balanced sampling and every interval go by them. So do sessions, by which
        scans are brought together.

        Args:
            index: the stored cases, all of the cohort's among them.
        """
        source = {row.case_id: row.source_sha256 for row in index.rows}
        sha = hashlib.sha256()
        for part, case_ids in (("train", self.train), ("val", self.validation), ("test", self.test)):
            for case_id in case_ids:
                who = [part, case_id, self.subject[case_id], self.session[case_id]]
                sha.update(json.dumps([*who, source[case_id], self.table[case_id].tolist()]).encode())
        return sha.hexdigest()[:16]


def choose_labels(known: Sequence[LabelSpec], wanted: Sequence[str] | None) -> tuple[LabelSpec, ...]:
    """The labels to learn, by name.

    Args:
        known: the labels of dataset.json.
        wanted: names in the order of the outputs; all of them when None.

    Raises:
        UsageError: a name is unknown (the known ones are listed) or given twice, or there are no labels.
    """
    if not known:
        raise UsageError(
            "The dataset has no labels.",
            got="no 'labels' in dataset.json",
            expected="at least one label",
            do="Add labels to dataset.json and a column of each to cases.csv.",
        )
    if wanted is None:
        return tuple(known)
    by_name = {spec.name: spec for spec in known}
    for name in wanted:
        if name not in by_name:
            raise unknown_name("label", name, by_name)
    if not wanted:
        raise UsageError("No label is chosen.", got="none", expected=", ".join(by_name), do="Name one with --labels.")
    if len(set(wanted)) != len(wanted):
        raise UsageError("A label is given twice.", got=" ".join(wanted), expected="each once", do="Remove one.")
    return tuple(by_name[name] for name in wanted)


def make_cohort(
    raw: RawDataset,
    splits: Splits,
    stored: Sequence[str],
    specs: tuple[LabelSpec, ...],
    *,
    fold: str,
    few_shots: FewShots | None,
    by_study: bool = False,
) -> Cohort:
    """Training, validation and test cases of a fold, as far as they are stored and labelled.

    Args:
        raw: the dataset; labels are taken by name.
        splits: its splits.json.
        stored: ids of the preprocessed cases.
        specs: the labels, from `choose_labels`.
        fold: a number, or 'none': every case outside the test set is for training, none for validation.
        few_shots: K patients per class and label, all when None. Validation and test cases are not reduced.
        by_study: whether a case without a label is kept where another scan of its study has one.

    Raises:
        UsageError: the fold does not exist, or few shots of a continuous label.
        DataError: no training case is labelled.
    """
    train, validation = _fold(splits, fold)
    frame = raw.labels()[[spec.name for spec in specs]]
    table = {str(c): row.astype(np.float32) for c, row in zip(frame.index, frame.to_numpy(), strict=True)}
    subject = {str(c): str(s) for c, s in zip(raw.cases["case_id"], raw.cases["subject_id"], strict=True)}
    session = raw.sessions()
    have = set(stored) & set(table)
    notes: list[str] = []

    def usable(case_ids: Sequence[str], what: str) -> tuple[str, ...]:
        here = [c for c in case_ids if c in have]
        if len(here) < len(case_ids):
            notes.append(
                f"{len(case_ids) - len(here)} of {len(case_ids)} {what} cases are not preprocessed and left out"
                " (see preprocessing_report.json)"
            )
        known = {c for c in here if not np.isnan(table[c]).all()}
        if by_study:
            groups = group_scans(here, [subject[c] for c in here], [session[c] for c in here])
            studies = [{here[row] for row in group} for group in groups]
            known = {c for study in studies if study & known for c in study}
        labelled = [c for c in here if c in known]
        if len(labelled) < len(here):
            notes.append(f"{len(here) - len(labelled)} {what} cases have none of the labels known and are left out")
        return tuple(labelled)

    parts = usable(train, "training"), usable(validation, "validation"), usable(splits.test, "test")
    cohort = Cohort(specs, *parts, table, subject, session)
    if not cohort.train:
        raise DataError(
            "No training case has a known label.",
            got=f"{len(train)} training cases in fold {fold}",
            expected=f"known values of {', '.join(s.name for s in specs)}",
            do="Fill in the label columns of cases.csv, or choose other labels with --labels.",
        )
    if few_shots is not None:
        pool = cohort.train
        draw = draw_few_shots(cohort.labels(pool), specs, [subject[c] for c in pool], pool, few_shots)
        notes.extend(f"few shots: {sentence}" for sentence in draw.shortages)
        chosen = [pool[row] for row in draw.rows]
        shown = {c: np.where(mask, table[c], np.float32("nan")) for c, mask in zip(chosen, draw.shown, strict=True)}
        cohort = replace(cohort, train=tuple(chosen), table={**table, **shown})
    notes.extend(_one_class(cohort))
    return replace(cohort, notes=tuple(notes))


def _fold(splits: Splits, fold: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if fold == NO_FOLD:
        together = dict.fromkeys(case for f in splits.folds for case in (*f.train, *f.val))
        return tuple(sorted(together)), ()
    known = [str(k) for k in range(len(splits.folds))]
    if fold not in known:
        raise unknown_name("fold", fold, [*known, NO_FOLD])
    return splits.folds[int(fold)].train, splits.folds[int(fold)].val


def _one_class(cohort: Cohort) -> list[str]:
    """Sentences on labels that the training cases show only one value of, and on classes that they do not show."""
    labels = cohort.labels(cohort.train)
    sentences = []
    for column, spec in enumerate(cohort.specs):
        known = labels[~np.isnan(labels[:, column]), column]
        if known.size == 0 or np.ptp(known) == 0:
            kind = "no known" if known.size == 0 else f"only {_value_name(spec, float(known[0]))}"
            text = f"label '{spec.name}' has {kind} training cases: nothing can be learnt for it"
            sentences.append(f"{text}, and every case gets the same prediction")
        elif missing := [name for k, name in enumerate(spec.classes) if not (known == k).any()]:
            names = ", ".join(f"'{name}'" for name in missing)
            sentences.append(f"label '{spec.name}' has no training case of {names}: it can hardly be predicted")
    return sentences


def _value_name(spec: LabelSpec, value: float) -> str:
    if spec.type == "binary":
        return "positive" if value > 0.5 else "negative"
    return f"'{spec.classes[int(value)]}'" if spec.has_classes else f"{value:g}"


def value_counts(spec: LabelSpec, values: NDArray[np.floating]) -> str:
    """How often a label has which value: positive/negative/unknown, or per class, or mean and deviation, then unknown.

    Args:
        spec: the label.
        values: (n,), NaN = unknown.
    """
    known = values[~np.isnan(values)]
    unknown = values.size - known.size
    if spec.type == "binary":
        return f"{int((known > 0.5).sum())}/{int((known <= 0.5).sum())}/{unknown}"
    if spec.has_classes:
        counts = [int((known == k).sum()) for k in range(len(spec.classes))]
        return "/".join(map(str, (*counts, unknown)))
    middle = f"{known.mean():.3g} ± {known.std():.2g}" if known.size else "-"
    return f"{middle} ({known.size}/{unknown})"
