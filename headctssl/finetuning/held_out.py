"""Held out: the cases a classifier is judged by, its predictions of them, and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import Contract
from headctssl.finetuning.adapt import Best
from headctssl.finetuning.cohort import Cohort
from headctssl.finetuning.leakage import describe_run
from headctssl.finetuning.outputs import pooled_outputs, predictions
from headctssl.finetuning.prepare import Job
from headctssl.finetuning.tasks import Classifier
from headctssl.finetuning.whole_head import encode_stored
from headctssl.metrics.metrics_file import Metrics, StudyMetrics
from headctssl.metrics.outcome import Outcome, interval_warnings, measure
from headctssl.metrics.studies import Aggregate, Pooled, Studies, measure_studies
from headctssl.preprocessing.index import CaseIndex
from headctssl.training.distributed import Process

__all__ = ["BY_STUDY", "HeldOut", "choose_held_out", "measured", "outcome_of", "outputs_of", "pooled_of", "studies_of"]

BY_STUDY = (
    "the labels of studies were learnt: the metrics of scans read every scan as a study of its own; studies of several"
    " scans are measured under 'studies'"
)
"""Said of metrics of scans by a classifier that has learnt from studies."""


@dataclass(frozen=True)
class HeldOut:
    """The cases that a classifier is judged by."""

    part: Literal["test", "validation", "training"]
    case_ids: tuple[str, ...]
    notes: tuple[str, ...]


def choose_held_out(cohort: Cohort) -> HeldOut:
    """The test cases, else the validation cases, else the training cases, with what is to be said of that.

    Args:
        cohort: the cases by part.
    """
    if cohort.test:
        return HeldOut("test", cohort.test, ())
    note = "there is no labelled test case: the metrics are of the cases the epoch was chosen by, optimistic"
    if cohort.validation:
        return HeldOut("validation", cohort.validation, (note,))
    more = "there is no labelled validation case either: the metrics are of the training cases themselves"
    return HeldOut("training", cohort.train, (note, more))


def outputs_of(job: Job, classifier: Classifier, index: CaseIndex, process: Process) -> Tensor:
    """What the head says of cases, each case encoded by one process.

    Args:
        job: the run.
        classifier: as it is saved.
        index: the cases.
        process: this process; every process of the run must call this.

    Returns:
        (n, O) float32 on the CPU, with the score of each scan in a last column where the head weighs scans.
    """
    settings = job.settings
    return encode_stored(
        classifier.to(job.device),
        index,
        settings.input,
        batch_size=settings.task.eval_batch_size,
        num_workers=settings.training.num_workers,
        device=job.device,
        process=process,
    )


def outcome_of(job: Job, index: CaseIndex, outputs: Tensor, temperature: float) -> Outcome:
    """The predictions that outputs mean, with the truth.

    Args:
        job: the run.
        index: the cases.
        outputs: of the head, from `outputs_of`.
        temperature: of the probabilities.
    """
    settings, cohort = job.settings, job.cohort
    return Outcome(
        specs=settings.labels,
        case_ids=tuple(index.case_ids),
        subject_ids=tuple(cohort.subject[c] for c in index.case_ids),
        truth=cohort.labels(index.case_ids).astype(np.float64),
        probability=predictions(settings.labels, outputs, temperature),
        uncalibrated=predictions(settings.labels, outputs),
    )


def pooled_of(job: Job, outputs: Tensor, temperature: float) -> Pooled:
    """What the run's classifier predicts of studies, where it weighs scans by attention.

    Args:
        job: the run.
        outputs: of the head, from `outputs_of`.
        temperature: of the probabilities.
    """
    labels = job.settings.labels

    def pooled(groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        return predictions(labels, pooled_outputs(labels, outputs, groups), temperature)

    return pooled


def studies_of(job: Job, outcome: Outcome, outputs: Tensor, temperature: float) -> tuple[Studies, StudyMetrics] | None:
    """The predictions of studies and their metrics, see `measure_studies`: by attention where it was learnt, else mean.

    Args:
        job: the run.
        outcome: predictions of scans.
        outputs: of the head, from `outputs_of`, in the same order.
        temperature: of the probabilities.
    """
    how: Aggregate = "attention" if job.by_study else "mean"
    return measure_studies(outcome, job.cohort.session, how, pooled_of(job, outputs, temperature))


def measured(
    job: Job, held_out: HeldOut, outcome: Outcome, contract: Contract, best: Best, told: Sequence[str]
) -> Metrics:
    """The content of metrics.json.

    Args:
        job: the run.
        held_out: the cases it is judged by.
        outcome: their probabilities and truth.
        contract: of the classifier, with the hash of its weights.
        best: the epoch that was kept.
        told: sentences on how the epoch was chosen and the temperature fitted.
    """
    entries, mean, interval = measure(outcome)
    return Metrics(
        dataset_name=job.settings.dataset_name,
        synthetic=job.raw.info.synthetic,
        evaluated_on=held_out.part,
        fold=job.settings.fold,
        num_cases=len(held_out.case_ids),
        num_subjects=int(np.unique(job.cohort.subjects(held_out.case_ids)).size),
        weights_hash=contract.weights_hash,
        temperature=contract.temperature,
        leakage=describe_run(job.folder, job.start.file, job.start.contract, job.index.subset(held_out.case_ids)),
        notes=(
            *told,
            *([BY_STUDY] if job.by_study else []),
            *job.cohort.notes,
            *held_out.notes,
            *interval_warnings(outcome),
        ),
        best_epoch=best.epoch,
        validation_score=best.score,
        validation_auroc=best.score if all(spec.type == "binary" for spec in job.settings.labels) else None,
        mean_auroc=mean,
        mean_auroc_ci=interval,
        labels=entries,
    )
