"""Evaluate: a classifier on the cases of a dataset, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from headctssl.console import name_files, say
from headctssl.contract import Contract, column_slices
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import DataError, UsageError
from headctssl.evaluation.examine import examine, print_examination, write_distances
from headctssl.evaluation.shared_labels import shared_labels, truth_of
from headctssl.finetuning.ensemble import Ensemble, open_ensemble
from headctssl.finetuning.held_out import BY_STUDY
from headctssl.finetuning.leakage import describe_reuse
from headctssl.finetuning.reference import Reference, load_reference
from headctssl.finetuning.whole_head import encode_stored
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome, interval_warnings, measure, print_metrics, write_predictions
from headctssl.metrics.statistics import subject_codes
from headctssl.metrics.studies import Aggregate, Pooled, measure_studies, write_studies_beside
from headctssl.paths import preprocessed_dataset, results_dataset
from headctssl.planning.machine import available_cores
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.settings import write_json
from headctssl.training.distributed import Process, current_process, processes, settle
from headctssl.training.pretrain_call import choose_device

__all__ = ["evaluate", "evaluation_folder"]

_BATCH = 8  # stored cases encoded at once


def evaluate(
    dataset_id: int,
    weights: str | Path,
    *,
    split: Literal["test", "all"] = "test",
    aggregate: Aggregate | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    quiet: bool = False,
) -> Metrics:
    """Run a classifier on a dataset and measure it where labels are known.

    The dataset is preprocessed as the classifier's contract says where that is missing. Writes metrics.json,
    predictions.csv, the classifier's contract.json and evaluation.json (subgroups, distances from the training cases,
    abstention) to ``evaluate/METHOD-CONFIG-HASH__SPLIT`` of the dataset's results, replacing an earlier evaluation of
    the same weights. The folder of a task with several folds is evaluated as the mean of their classifiers. Under
    ``torchrun -m headctssl evaluate ...`` the processes share out the cases.

    Args:
        dataset_id: the number of the raw dataset.
        weights: a classifier's file or fine-tuning folder.
        split: 'test' for the test cases of splits.json, 'all' for every case.
        aggregate: how the predictions of the scans of one study (same `subject_id` and `session_id`) become one,
            'mean', 'max', or 'attention' of a classifier that has learnt it; where there are such studies, they are
            measured beside the scans and written to predictions_studies.csv. None: attention if learnt, else mean.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.
        num_workers: reader processes; found when None.
        quiet: print nothing.

    Raises:
        UsageError: dataset, weights or split cannot be used.
        DataError: a file is damaged, or the split has no case.
        ContractError: the weights are not a classifier's, or the dataset has none of its labels.
    """
    if split not in ("test", "all"):
        raise UsageError("The split is unknown.", got=split, expected="test or all", do="Correct --split.")
    target = choose_device(device, current_process())
    with processes(target) as process:
        quiet = quiet or not process.is_main
        asked = settle(lambda: _open(dataset_id, weights, split, aggregate, num_workers, quiet), process)
        say(f"{len(asked.index)} {split} cases of {asked.raw.folder.name}", quiet=quiet)
        found = _predict(asked, target, num_workers, process)
        return settle(lambda: _finish(asked, split, found, quiet), process)


@dataclass(frozen=True)
class _Asked:
    """A classifier and the cases it is asked about."""

    ensemble: Ensemble  # the classifier, or those of several folds
    aggregate: Aggregate
    references: tuple[Reference, ...]  # one per classifier, or none
    columns: tuple[int, ...]  # outputs of the classifier that the dataset has a label of
    raw: RawDataset
    index: CaseIndex
    subject_ids: tuple[str, ...]  # per case of the index
    sessions: dict[str, str]  # case id -> session id, '' = unknown
    truth: NDArray[np.float64]  # (n, columns), NaN = unknown
    num_failed: int  # cases that are not preprocessed
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What the classifier says of them."""

    outcome: Outcome  # of the shared labels, with their truth
    distances: NDArray[np.float64] | None  # (n,)
    pooled: Pooled  # of a classifier that weighs scans


def _open(
    dataset_id: int,
    weights: str | Path,
    split: str,
    aggregate: Aggregate | None,
    num_workers: int | None,
    quiet: bool,
) -> _Asked:
    """Open the classifier and the dataset, preprocess what is missing, and choose the cases.

    Raises:
        HeadCTSSLError: as `evaluate`.
    """
    ensemble = open_ensemble(weights)
    aggregate = ensemble.choose(aggregate) or "mean"
    contract = ensemble.contract
    pairs = zip(ensemble.files, ensemble.contracts, strict=True)
    references = [load_reference(file.parent, one.weights_hash) for file, one in pairs]
    raw = load_raw_dataset(dataset_id)
    columns, notes = shared_labels(contract, raw)
    truth = raw.labels()
    index = ensure_preprocessed(dataset_id, contract.storage, quiet=quiet, num_workers=num_workers)
    index, num_failed = _chosen(raw, split, index, notes)
    subjects = dict(zip(raw.case_ids, raw.cases["subject_id"].astype(str), strict=True))
    specs = [contract.labels[column] for column in columns]
    here_by_name = {spec.name: spec for spec in raw.info.labels}
    values = truth.loc[index.case_ids, [spec.name for spec in specs]].to_numpy(dtype=np.float64)
    known = [truth_of(spec, here_by_name[spec.name], values[:, k]) for k, spec in enumerate(specs)]
    return _Asked(
        ensemble=ensemble,
        aggregate=aggregate,
        references=tuple(r for r in references if r is not None) if None not in references else (),
        columns=tuple(columns),
        raw=raw,
        index=index,
        subject_ids=tuple(subjects[case_id] for case_id in index.case_ids),
        sessions=raw.sessions(),
        truth=np.stack(known, axis=1),
        num_failed=num_failed,
        notes=tuple(notes),
    )


def _chosen(raw: RawDataset, split: str, index: CaseIndex, notes: list[str]) -> tuple[CaseIndex, int]:
    """The stored cases of the split, and how many are not stored; what is left out is added to `notes`."""
    asked = _cases(raw, split)
    here = set(raw.case_ids)
    wanted = [case_id for case_id in asked if case_id in here]
    if len(wanted) < len(asked):
        notes.append(
            f"{len(asked) - len(wanted)} of {len(asked)} test cases of splits.json are no longer in the dataset and "
            "left out"
        )
    chosen = index.subset(wanted)
    if len(chosen) == 0:
        raise DataError(
            "None of the cases could be preprocessed."
            if wanted
            else "The dataset has none of its test cases any more.",
            got="; ".join([f"0 of {len(wanted)} {split} cases stored", *notes]),
            expected="at least one",
            do="See preprocessing_report.json for the reasons, and compare splits.json with cases.csv.",
        )
    if len(chosen) < len(wanted):
        notes.append(f"{len(wanted) - len(chosen)} of {len(wanted)} cases are not preprocessed and left out")
    return chosen, len(wanted) - len(chosen)


def _predict(asked: _Asked, device: torch.device, num_workers: int | None, process: Process) -> _Found:
    """Predictions, and distances where there are references, each case encoded by one process."""
    ensemble, contract = asked.ensemble, asked.ensemble.contract
    found = encode_stored(
        ensemble.build(device, features=bool(asked.references)),
        asked.index,
        contract.input,
        batch_size=_BATCH,
        num_workers=min(4, max(1, available_cores() - 1)) if num_workers is None else num_workers,
        device=device,
        process=process,
    )
    width = ensemble.width * len(ensemble.files)
    where = column_slices(contract.labels)

    def shared(table: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([table[:, where[column]] for column in asked.columns], axis=1)

    outcome = Outcome(
        specs=tuple(contract.labels[column] for column in asked.columns),
        case_ids=tuple(asked.index.case_ids),
        subject_ids=asked.subject_ids,
        truth=asked.truth,
        probability=shared(ensemble.predictions(found[:, :width])),
        uncalibrated=shared(ensemble.predictions(found[:, :width], calibrated=False)),
    )

    def pooled(groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        return shared(ensemble.of_studies(found[:, :width], groups))

    if not asked.references:
        return _Found(outcome, None, pooled)
    features = np.split(found[:, width:].double().numpy(), len(asked.references), axis=1)
    away = [one.distances(part) for one, part in zip(asked.references, features, strict=True)]
    return _Found(outcome, np.asarray(np.mean(away, axis=0)), pooled)


def _finish(asked: _Asked, split: Literal["test", "all"], found: _Found, quiet: bool) -> Metrics:
    """Measure, and write metrics.json, evaluation.json and the tables of cases."""
    outcome, distances = found.outcome, found.distances
    ensemble = asked.ensemble
    contract, count = ensemble.as_one(), len(ensemble.files)
    entries, mean, interval = measure(outcome)
    studies = measure_studies(outcome, asked.sessions, asked.aggregate, found.pooled)
    folds = (f"the mean of the classifiers of {count} folds",) if count > 1 else ()
    metrics = Metrics(
        dataset_name=asked.raw.folder.name,
        synthetic=asked.raw.info.synthetic,
        evaluated_on=split,
        num_cases=len(asked.index),
        num_subjects=int(np.unique(subject_codes(outcome.subject_ids, outcome.case_ids)).size),
        num_failed=asked.num_failed,
        weights_hash=contract.weights_hash,
        temperature=contract.temperature,
        leakage=_leakage(ensemble, asked.index),
        notes=(*folds, *([BY_STUDY] if ensemble.weighs_scans else []), *asked.notes, *interval_warnings(outcome)),
        mean_auroc=mean,
        mean_auroc_ci=interval,
        studies=None if studies is None else studies[1],
        labels=entries,
    )
    folder = evaluation_folder(asked.raw.dataset_id, contract, split)
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = examine(metrics, outcome, asked.raw.cases, distances, asked.references)
    files = [folder / name for name in ("predictions.csv", "contract.json", "metrics.json", "evaluation.json")]
    write_predictions(files[0], outcome)
    files += write_studies_beside(files[0], None if studies is None else studies[0])
    for path, content in zip(files[1:4], (contract, metrics, elsewhere), strict=True):
        write_json(path, content)
    far = folder / "distances.csv"
    far.unlink(missing_ok=True)  # of an earlier evaluation
    if distances is not None:
        files.append(write_distances(far, outcome, distances))
    print_metrics(metrics, quiet=quiet)
    print_examination(elsewhere, quiet=quiet)
    name_files(files, quiet=quiet)
    return metrics


def evaluation_folder(dataset_id: int, contract: Contract, split: str) -> Path:
    """Where the evaluation of a classifier on a dataset lies: ``evaluate/METHOD-CONFIG-HASH__SPLIT``.

    Args:
        dataset_id: the number of the dataset.
        contract: of the classifier.
        split: 'test' or 'all'.
    """
    name = f"{contract.method}-{contract.preset}-{contract.weights_hash[:8]}__{split}"
    return results_dataset(dataset_id) / "evaluate" / name


def _leakage(ensemble: Ensemble, judged: CaseIndex) -> str:
    """What is known of each classifier, said once where it is the same of all."""
    pairs = zip(ensemble.files, ensemble.contracts, strict=True)
    told = {file.parent.name: describe_reuse(file, contract, judged) for file, contract in pairs}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{name}: {sentence}" for name, sentence in told.items())


def _cases(raw: RawDataset, split: str) -> Sequence[str]:
    if split == "all":
        return raw.case_ids
    test = load_splits(preprocessed_dataset(raw.dataset_id)).test
    if not test:
        raise DataError(
            "The dataset has no test cases.",
            got="an empty test set in splits.json",
            expected="at least one case",
            do="Use --split all if none of its cases was used for training.",
        )
    return test
