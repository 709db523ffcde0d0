"""Evaluate: a classifier on the cases of a dataset, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from headctssl.console import name_files, say
from headctssl.contract import Contract, LabelSpec
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import ContractError, DataError, UsageError
from headctssl.finetuning.leakage import describe_reuse
from headctssl.finetuning.tasks import classifier_from
from headctssl.finetuning.whole_head import encode, stored_views
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome, interval_warnings, measure, print_metrics, write_predictions
from headctssl.metrics.statistics import subject_codes
from headctssl.paths import preprocessed_dataset, results_dataset
from headctssl.planning.machine import available_cores, detect_machine
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.settings import write_json
from headctssl.training.checkpoint import LoadedWeights, find_weights, load_weights

__all__ = ["evaluate"]

_BATCH = 8  # stored cases encoded at once


def evaluate(
    dataset_id: int,
    weights: str | Path,
    *,
    split: Literal["test", "all"] = "test",
    device: str | None = None,
    num_workers: int | None = None,
    quiet: bool = False,
) -> Metrics:
    """Run a classifier on a dataset and measure it where labels are known.

    The dataset is preprocessed as the classifier's contract says where that is missing. Writes metrics.json and
    predictions.csv to ``evaluate/METHOD-CONFIG-HASH__SPLIT`` of the dataset's results, replacing an earlier
    evaluation of the same weights.

    Args:
        dataset_id: the number of the raw dataset.
        weights: a classifier's file or fine-tuning folder.
        split: 'test' for the test cases of splits.json, 'all' for every case.
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
    file = find_weights(weights, "classifier")
    loaded = load_weights(file, "classifier")
    contract = loaded.contract
    raw = load_raw_dataset(dataset_id)
    columns, notes = _shared_labels(contract, raw)
    truth = raw.labels()
    index = ensure_preprocessed(dataset_id, contract.storage, quiet=quiet, num_workers=num_workers)
    asked = _cases(raw, split)
    here = set(raw.case_ids)
    wanted = [case_id for case_id in asked if case_id in here]
    if len(wanted) < len(asked):
        notes.append(
            f"{len(asked) - len(wanted)} of {len(asked)} test cases of splits.json are no longer in the dataset and "
            "left out"
        )
    index = index.subset(wanted)
    if len(index) == 0:
        raise DataError(
            "None of the cases could be preprocessed."
            if wanted
            else "The dataset has none of its test cases any more.",
            got="; ".join([f"0 of {len(wanted)} {split} cases stored", *notes]),
            expected="at least one",
            do="See preprocessing_report.json for the reasons, and compare splits.json with cases.csv.",
        )
    if len(index) < len(wanted):
        notes.append(f"{len(wanted) - len(index)} of {len(wanted)} cases are not preprocessed and left out")
    say(f"{len(index)} {split} cases of {raw.folder.name}", quiet=quiet)
    outcome = _predict(loaded, columns, raw, truth, index, device, num_workers)
    notes.extend(interval_warnings(outcome))
    entries, mean, interval = measure(outcome)
    metrics = Metrics(
        dataset_name=raw.folder.name,
        evaluated_on=split,
        num_cases=len(index),
        num_subjects=int(np.unique(subject_codes(outcome.subject_ids, outcome.case_ids)).size),
        num_failed=len(wanted) - len(index),
        weights_hash=contract.weights_hash,
        leakage=describe_reuse(file, contract, index),
        notes=tuple(notes),
        mean_auroc=mean,
        mean_auroc_ci=interval,
        labels=entries,
    )
    name = f"{contract.method}-{contract.preset}-{contract.weights_hash[:8]}__{split}"
    folder = results_dataset(dataset_id) / "evaluate" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", outcome)
    write_json(folder / "metrics.json", metrics)
    print_metrics(metrics, quiet=quiet)
    name_files([folder / "predictions.csv", folder / "metrics.json"], quiet=quiet)
    return metrics


def _predict(
    loaded: LoadedWeights,
    columns: list[int],
    raw: RawDataset,
    truth: pd.DataFrame,
    index: CaseIndex,
    device: str | None,
    num_workers: int | None,
) -> Outcome:
    """Probabilities of the shared labels for the cases of the index, with their truth."""
    contract = loaded.contract
    target = torch.device(detect_machine(device).device)
    classifier = classifier_from(contract, loaded.tensors).to(target)
    workers = min(4, max(1, available_cores() - 1)) if num_workers is None else num_workers
    views = stored_views(index, contract.input, batch_size=_BATCH, num_workers=workers, device=target)
    probability = torch.sigmoid(encode(classifier, views, target).double() / contract.temperature).numpy()
    subjects = dict(zip(raw.case_ids, raw.cases["subject_id"].astype(str), strict=True))
    specs = tuple(contract.labels[c] for c in columns)
    return Outcome(
        specs=specs,
        case_ids=tuple(index.case_ids),
        subject_ids=tuple(subjects[c] for c in index.case_ids),
        truth=truth.loc[index.case_ids, [spec.name for spec in specs]].to_numpy(dtype=np.float64),
        probability=probability[:, columns],
    )


def _shared_labels(contract: Contract, raw: RawDataset) -> tuple[list[int], list[str]]:
    """Columns of the classifier's outputs that the dataset has a label of, by name, and notes on the others."""
    known: dict[str, LabelSpec] = {spec.name: spec for spec in raw.info.labels}
    columns, notes = [], []
    for column, spec in enumerate(contract.labels):
        if spec.name in known and known[spec.name].type == spec.type:
            columns.append(column)
        else:
            notes.append(f"the classifier's label '{spec.name}' is not a {spec.type} label of the dataset: left out")
    if not columns:
        raise ContractError(
            "The dataset has none of the classifier's labels.",
            got=", ".join(known) or "no labels",
            expected="one of " + ", ".join(spec.name for spec in contract.labels),
            do="Evaluate on a labelled dataset; headct_predict needs no labels.",
        )
    return columns, notes


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
