"""Pool folds: the out-of-fold predictions of a task, and the mean of its classifiers on the test cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import Contract, LabelSpec
from headctssl.errors import DataError
from headctssl.finetuning.held_out import BY_STUDY
from headctssl.finetuning.judge import VALIDATION_FILE
from headctssl.finetuning.leakage import describe_out_of_fold
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.metrics.metrics_file import Metrics, StudyMetrics
from headctssl.metrics.outcome import (
    Outcome,
    interval_warnings,
    measure,
    print_metrics,
    read_predictions,
    write_predictions,
)
from headctssl.metrics.statistics import subject_codes
from headctssl.metrics.studies import (
    Aggregate,
    Studies,
    measure_studies,
    read_studies_beside,
    write_studies_beside,
)
from headctssl.settings import read_json, write_json

__all__ = ["ENSEMBLE", "OUT_OF_FOLD", "pool_folds"]

OUT_OF_FOLD, ENSEMBLE = "out_of_fold", "ensemble"
"""Folders of a task, each with predictions.csv and metrics.json."""

Labels = tuple[LabelSpec, ...]
Truth = Mapping[str, NDArray[np.floating]]


def pool_folds(folders: Sequence[Path], truth: Truth, sessions: Mapping[str, str], *, quiet: bool) -> list[Path]:
    """Write what the folds of a task say together.

    ``out_of_fold``: every validation case, predicted by the one classifier that did not learn from it, before the
    temperature (which was fitted on these very cases). ``ensemble``: the test cases, by the mean of the calibrated
    predictions of all folds, as `headct_predict` and `headct_evaluate` make of the folder of the task. Both also by
    study, where one has several scans: by attention where the classifiers have learnt it, else by the mean.

    Args:
        folders: finished runs ``fold_K`` of one task, two or more.
        truth: case id -> (L,) of the task's labels, NaN = unknown.
        sessions: case id -> session id, '' = unknown.
        quiet: print nothing.

    Returns:
        The folders written, the best to judge the task by first.

    Raises:
        DataError: a file of a run is missing or damaged, or a case was validated twice.
    """
    settings = [read_json(folder / "config.json", FinetuneSettings) for folder in folders]
    contracts = [read_json(folder / "contract.json", Contract) for folder in folders]
    metrics = [read_json(folder / "metrics.json", Metrics) for folder in folders]
    specs, folds = contracts[0].labels, ", ".join(one.fold for one in settings)
    pools = {}
    if all(one.evaluated_on == "test" for one in metrics):
        temperature = float(np.mean([c.temperature for c in contracts]))
        files = [folder / "predictions.csv" for folder in folders]
        pools[ENSEMBLE] = _ensemble(files, specs, truth, temperature, folds)
    files = [folder / VALIDATION_FILE for folder in folders if (folder / VALIDATION_FILE).is_file()]
    if len(files) > 1:
        pools[OUT_OF_FOLD] = _out_of_fold(files, specs, truth, folds)
    leakage = {ENSEMBLE: metrics[0].leakage, OUT_OF_FOLD: describe_out_of_fold(folders, contracts[0])}
    common = {"dataset_name": settings[0].dataset_name, "fold": folds}
    attention = settings[0].head.scans == "attention"
    written = []
    for name, pool in pools.items():
        studies = _studies(pool, sessions, attention=attention)
        content = _measured(
            pool,
            {**common, "leakage": leakage[name]},
            (BY_STUDY,) if attention else (),
            None if studies is None else studies[1],
        )
        written.append(folders[0].parent / name)
        _write(written[-1], pool.outcome, None if studies is None else studies[0], content, quiet)
    return written


@dataclass(frozen=True)
class _Pool:
    """What folds say together."""

    evaluated_on: str
    outcome: Outcome
    studies: Mapping[tuple[str, str], NDArray[np.float64]]  # (subject, session) -> (P,), as the folds wrote them
    temperature: float
    notes: tuple[str, ...]


def _ensemble(files: Sequence[Path], specs: Labels, truth: Truth, temperature: float, folds: str) -> _Pool:
    outcome = _mean([read_predictions(file, specs, truth) for file in files])
    tables = [read_studies_beside(file, specs) for file in files]
    all_have = [study for study in tables[0] if all(study in table for table in tables)]
    studies = {study: np.asarray(np.mean([table[study] for table in tables], axis=0)) for study in all_have}
    return _Pool("test", outcome, studies, temperature, (f"the mean of the classifiers of folds {folds}",))


def _out_of_fold(files: Sequence[Path], specs: Labels, truth: Truth, folds: str) -> _Pool:
    outcome = _union([read_predictions(file, specs, truth) for file in files])
    studies = {study: row for file in files for study, row in read_studies_beside(file, specs).items()}
    notes = (
        f"every case by the classifier of folds {folds} that did not learn from it, without the temperature",
        "the epoch of each fold was chosen by these cases: slightly optimistic",
        "folds share most of their training cases, so the interval is that of the cases, not of other trainings",
    )
    return _Pool("out_of_fold", outcome, studies, 1.0, notes)


def _studies(pool: _Pool, sessions: Mapping[str, str], *, attention: bool) -> tuple[Studies, StudyMetrics] | None:
    """The same by study, see `measure_studies`: by attention as the folds wrote it, else by the mean.

    Raises:
        DataError: the folds do not have a study of several scans.
    """
    outcome = pool.outcome

    def of_study(group: Sequence[int]) -> NDArray[np.float64]:
        row = group[0]
        if len(group) == 1:  # what is said of the scan
            return np.asarray(outcome.probability[row])
        study = (outcome.subject_ids[row], sessions[outcome.case_ids[row]])
        if study not in pool.studies:
            raise DataError(
                "The folds do not say what they predict of a study.",
                got=f"no prediction of session '{study[1]}' of subject '{study[0]}'",
                expected="every study of several scans in the files of studies of the folds",
                do="Train the folds again with --overwrite.",
            )
        return pool.studies[study]

    how: Aggregate = "attention" if attention else "mean"
    return measure_studies(outcome, sessions, how, lambda groups: np.array([of_study(group) for group in groups]))


def _mean(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of the predictions of the same cases."""
    first = outcomes[0]
    place = [{case_id: row for row, case_id in enumerate(one.case_ids)} for one in outcomes]
    if any(set(one) != set(place[0]) for one in place):
        raise DataError(
            "The folds were tested on different cases.",
            got=", ".join(str(len(one)) for one in place),
            expected="the same test cases",
            do="Train the folds again with --overwrite.",
        )
    rows = [one.probability[[where[c] for c in first.case_ids]] for one, where in zip(outcomes, place, strict=True)]
    return Outcome(first.specs, first.case_ids, first.subject_ids, first.truth, np.asarray(np.mean(rows, axis=0)))


def _union(outcomes: Sequence[Outcome]) -> Outcome:
    """All cases of all folds, in the order of their ids."""
    case_ids = [case_id for one in outcomes for case_id in one.case_ids]
    if len(set(case_ids)) < len(case_ids):
        twice = next(c for k, c in enumerate(case_ids) if c in case_ids[:k])
        raise DataError(
            f"The case '{twice}' was validated by two folds.",
            got="twice",
            expected="each case in the validation set of one fold",
            do="Plan the dataset again with --replan, then train the folds with --overwrite.",
        )
    order = sorted(range(len(case_ids)), key=case_ids.__getitem__)
    subject_ids = [subject for one in outcomes for subject in one.subject_ids]
    return Outcome(
        outcomes[0].specs,
        tuple(case_ids[k] for k in order),
        tuple(subject_ids[k] for k in order),
        np.concatenate([one.truth for one in outcomes])[order],
        np.concatenate([one.probability for one in outcomes])[order],
    )


def _measured(
    pool: _Pool, common: Mapping[str, object], said: tuple[str, ...], studies: StudyMetrics | None
) -> Metrics:
    outcome = pool.outcome
    entries, mean, interval = measure(outcome)
    return Metrics.model_validate(
        {
            **common,
            "evaluated_on": pool.evaluated_on,
            "num_cases": len(outcome.case_ids),
            "num_subjects": int(np.unique(subject_codes(outcome.subject_ids, outcome.case_ids)).size),
            "temperature": pool.temperature,
            "notes": (*pool.notes, *said, *interval_warnings(outcome)),
            "mean_auroc": mean,
            "mean_auroc_ci": interval,
            "studies": studies,
            "labels": entries,
        }
    )


def _write(folder: Path, outcome: Outcome, studies: Studies | None, metrics: Metrics, quiet: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", outcome)
    write_studies_beside(folder / "predictions.csv", studies)
    write_json(folder / "metrics.json", metrics)
    print_metrics(metrics, quiet=quiet)
