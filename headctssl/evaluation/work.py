"""Work: what a process of a comparison does, one pretraining run, one fine-tuning run, or the runs of a probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headctssl.contract import StorageRule
from headctssl.errors import DataError
from headctssl.evaluation.cells import CellResult, write_cell
from headctssl.evaluation.embeddings import read_embeddings
from headctssl.evaluation.grid import FROZEN, Cell
from headctssl.evaluation.probe import fit_probe
from headctssl.evaluation.roster import Roster
from headctssl.finetuning.finetune import run_finetuning
from headctssl.finetuning.prepare import Call, locate
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.tasks import classifier_from
from headctssl.metrics.histogram import histogram_features
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome, interval_warnings, measure
from headctssl.networks.lora import add_lora
from headctssl.paths import data_root
from headctssl.planning.run_settings import RunSettings
from headctssl.preprocessing.index import CaseIndex
from headctssl.settings import read_json
from headctssl.training.checkpoint import load_weights
from headctssl.training.pretrain import run_pretraining
from headctssl.training.pretrain_call import Request
from headctssl.training.run_folder import is_finished
from headctssl.training.run_lines import read_metrics

__all__ = ["FinetuneTask", "PretrainTask", "ProbeTask", "Task", "work"]


@dataclass(frozen=True)
class PretrainTask:
    """One pretraining run."""

    request: Request
    settings: RunSettings
    tag: str
    folder: Path  # the run folder
    device: str | None


@dataclass(frozen=True)
class FinetuneTask:
    """One fine-tuning run."""

    cell: Cell
    key: str
    kept: Path  # folder of the result
    call: Call


@dataclass(frozen=True)
class ProbeTask:
    """Runs that learn a logistic regression on features that are computed or read once."""

    dataset_id: int
    labels: tuple[str, ...]
    fold: str
    storage: StorageRule
    cells: tuple[tuple[Cell, str, Path], ...]  # with key and folder of the result
    embeddings: Path | None  # vectors by case id; None: HU histograms
    num_workers: int | None


Task = PretrainTask | FinetuneTask | ProbeTask


def work(task: Task) -> None:
    """Do a task; what it finds is in files when this returns.

    Raises:
        HeadCTSSLError: it cannot be done.
    """
    match task:
        case PretrainTask():
            _pretrain(task)
        case FinetuneTask():
            _finetune(task)
        case ProbeTask():
            _probe(task)


def _pretrain(task: PretrainTask) -> None:
    run_pretraining(
        task.request,
        tag=task.tag,
        resume=task.folder.is_dir(),
        overwrite=False,
        device=task.device,
        track=(),
        quiet=False,
        settings=task.settings,
    )


def _finetune(task: FinetuneTask) -> None:
    began = time.perf_counter()
    folder = locate(task.call).folder
    before = _seconds_so_far(folder) if folder.is_dir() else 0.0
    if not is_finished(folder):
        folder = run_finetuning(task.call, ())
    metrics = read_json(folder / "metrics.json", Metrics)
    if metrics.evaluated_on != "test":
        raise DataError(
            f"{task.cell.text}: there is no labelled test case.",
            got=f"metrics of the {metrics.evaluated_on} cases",
            expected="test cases in splits.json with a known label",
            do="Choose other labels with --labels.",
        )
    cell = task.cell
    result = CellResult(
        key=task.key,
        dataset_name=metrics.dataset_name,
        arm=cell.arm,
        label_budget=cell.label_budget,
        seed=cell.seed,
        draw=cell.draw,
        run=str(folder.relative_to(data_root("results"))),
        num_train=load_weights(folder, "classifier").contract.num_scans,
        finetuning_hours=(before + time.perf_counter() - began) / 3600,
        parameters_trained=trained_parameters(folder),
        mean_auroc=metrics.mean_auroc,
        mean_auroc_ci=metrics.mean_auroc_ci,
        labels=metrics.labels,
        notes=metrics.notes,
    )
    write_cell(task.kept, result, folder / "predictions.csv")


def _seconds_so_far(folder: Path) -> float:
    """Seconds of training of a run that was stopped, as its log has them."""
    lines = read_metrics(folder / "metrics.jsonl")
    return float(lines[-1].get("seconds") or 0.0) if lines else 0.0


def trained_parameters(folder: Path) -> int:
    """How many numbers a fine-tuning run learnt: the head's, and the adapters' or the encoder's where these learnt.

    Args:
        folder: a finished run.
    """
    loaded = load_weights(folder, "classifier")
    settings = read_json(folder / "config.json", FinetuneSettings)
    classifier = classifier_from(loaded.contract, loaded.tensors)
    if settings.adapt == "lora":  # what is saved is merged: the adapters are put beside it again to count them
        add_lora(classifier.encoder, settings.lora.targets, rank=settings.lora.rank, alpha=settings.lora.alpha)
    part: torch.nn.Module = classifier.head if settings.adapt in FROZEN else classifier
    return sum(p.numel() for p in part.parameters() if p.requires_grad)


def _probe(task: ProbeTask) -> None:
    roster = Roster.open(task.dataset_id, task.labels, task.fold)
    index = roster.index(task.storage, num_workers=task.num_workers)
    cohorts = {cell: roster.cohort(index, cell.label_budget, cell.draw) for cell, _, _ in task.cells}
    began = time.perf_counter()
    features = _features(task, index, roster.needed(cohorts.values()))
    shared = (time.perf_counter() - began) / len(task.cells)
    for cell, key, kept in task.cells:
        began = time.perf_counter()
        cohort = cohorts[cell]
        probability, learnt, note = fit_probe(cohort, features, choose=cell.arm.kind == "embeddings")
        test = cohort.test
        outcome = Outcome(
            specs=cohort.specs,
            case_ids=test,
            subject_ids=tuple(cohort.subject[c] for c in test),
            truth=cohort.labels(test).astype(np.float64),
            probability=probability,
        )
        entries, mean, interval = measure(outcome)
        result = CellResult(
            key=key,
            dataset_name=roster.raw.folder.name,
            arm=cell.arm,
            label_budget=cell.label_budget,
            seed=cell.seed,
            draw=cell.draw,
            num_train=len(cohort.train),
            finetuning_hours=(shared + time.perf_counter() - began) / 3600,
            parameters_trained=learnt,
            mean_auroc=mean,
            mean_auroc_ci=interval,
            labels=entries,
            notes=(*note, *cohort.notes, *interval_warnings(outcome)),
        )
        write_cell(kept, result, outcome)


Features = Callable[[Sequence[str]], NDArray[np.float64]]


def _features(task: ProbeTask, index: CaseIndex, needed: list[str]) -> Features:
    """Case ids -> (n, F); every case that is needed is computed or read once."""
    if task.embeddings is not None:
        table = read_embeddings(task.embeddings)
        table.require(needed)
        return table.of
    rows = histogram_features(index, needed)
    place = {case_id: row for row, case_id in enumerate(needed)}
    return lambda case_ids: rows[[place[c] for c in case_ids]]
