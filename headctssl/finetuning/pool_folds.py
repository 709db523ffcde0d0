"""Pool folds: the out-of-fold predictions of a task, and the mean of its classifiers on the test cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import Contract
from headctssl.errors import DataError
from headctssl.finetuning.held_out import BY_STUDY
from headctssl.finetuning.judge import VALIDATION_FILE
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import (
    Outcome,
    interval_warnings,
    measure,
    print_metrics,
    read_predictions,
    write_predictions,
)
from headctssl.metrics.statistics import subject_codes
from headctssl.settings import read_json, write_json

__all__ = ["ENSEMBLE", "OUT_OF_FOLD", "pool_folds"]

OUT_OF_FOLD, ENSEMBLE = "out_of_fold", "ensemble"
"""Folders of a task, each with predictions.csv and metrics.json."""


def pool_folds(folders: Sequence[Path], truth: Mapping[str, NDArray[np.floating]], *, quiet: bool) -> list[Path]:
    """Write what the folds of a task say together.

    ``out_of_fold``: every validation case, predicted by the one classifier that did not learn from it, before the
    temperature (which was fitted on these very cases). ``ensemble``: the test cases, by the mean of the calibrated
    predictions of all folds, as `headct_predict` and `headct_evaluate` make of the folder of the task.

    Args:
        folders: finished runs ``fold_K`` of one task, two or more.
        truth: case id -> (L,) of the task's labels, NaN = unknown.
        quiet: print nothing.

    Returns:
        The folders written, the best to judge the task by first.

    Raises:
        DataError: a file of a run is missing or damaged, or a case was validated twice.
    """
    settings = [read_json(folder / "config.json", FinetuneSettings) for folder in folders]
    contracts = [read_json(folder / "contract.json", Contract) for folder in folders]
    metrics = [read_json(folder / "metrics.json", Metrics) for folder in folders]
    specs, task = contracts[0].labels, folders[0].parent
    folds = ", ".join(one.fold for one in settings)
    common = {
        "dataset_name": settings[0].dataset_name,
        "fold": folds,
        "leakage": metrics[0].leakage,
    }
    said = (BY_STUDY,) if settings[0].head.scans == "attention" else ()
    written = []
    if all(one.evaluated_on == "test" for one in metrics):
        outcome = _mean([read_predictions(folder / "predictions.csv", specs, truth) for folder in folders])
        notes: tuple[str, ...] = (f"the mean of the classifiers of folds {folds}", *said)
        temperature = float(np.mean([c.temperature for c in contracts]))
        content = _measured(outcome, common, "test", notes, temperature)
        written.append(_write(task / ENSEMBLE, outcome, content, quiet))
    with_validation = [folder for folder in folders if (folder / VALIDATION_FILE).is_file()]
    if len(with_validation) > 1:
        outcome = _union([read_predictions(folder / VALIDATION_FILE, specs, truth) for folder in with_validation])
        notes = (
            f"every case by the classifier of folds {folds} that did not learn from it, without the temperature",
            "the epoch of each fold was chosen by these cases: slightly optimistic",
            "folds share most of their training cases, so the interval is that of the cases, not of other trainings",
            *said,
        )
        content = _measured(outcome, common, "out_of_fold", notes, 1.0)
        written.append(_write(task / OUT_OF_FOLD, outcome, content, quiet))
    return written


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
    outcome: Outcome, common: Mapping[str, object], evaluated_on: str, notes: tuple[str, ...], temperature: float
) -> Metrics:
    entries, mean, interval = measure(outcome)
    return Metrics.model_validate(
        {
            **common,
            "evaluated_on": evaluated_on,
            "num_cases": len(outcome.case_ids),
            "num_subjects": int(np.unique(subject_codes(outcome.subject_ids, outcome.case_ids)).size),
            "temperature": temperature,
            "notes": (*notes, *interval_warnings(outcome)),
            "mean_auroc": mean,
            "mean_auroc_ci": interval,
            "labels": entries,
        }
    )


def _write(folder: Path, outcome: Outcome, metrics: Metrics, quiet: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", outcome)
    write_json(folder / "metrics.json", metrics)
    print_metrics(metrics, quiet=quiet)
    return folder
