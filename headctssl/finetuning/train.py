"""Train: one fine-tuning run that is decided, from the first weights of its classifier to its metrics."""

from __future__ import annotations

import json

import torch
from torch import Tensor

import headctssl
from headctssl.contract import Contract
from headctssl.finetuning.adapt import Best, Lesson, adapt_full
from headctssl.finetuning.balance import sampling_weights
from headctssl.finetuning.frozen import adapt_frozen
from headctssl.finetuning.held_out import choose_held_out, measured, outcome_of, outputs_of, studies_of
from headctssl.finetuning.judge import Judge
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.outputs import num_outputs
from headctssl.finetuning.prepare import Job
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.tasks import Classifier, with_prior
from headctssl.metrics.outcome import print_metrics, write_predictions
from headctssl.metrics.studies import write_studies_beside
from headctssl.networks import build_from_settings
from headctssl.networks.heads import build_head
from headctssl.networks.lora import add_lora, merge_lora
from headctssl.seeding import derive_seed
from headctssl.settings import write_json
from headctssl.training.checkpoint import load_into, save_weights
from headctssl.training.distributed import Process
from headctssl.training.run_log import RunLog

__all__ = ["build_classifier", "train"]


def build_classifier(job: Job) -> tuple[Classifier, str]:
    """Encoder and head as they begin, and where from; random parts depend on the seed alone.

    Args:
        job: the run.

    Raises:
        HeadCTSSLError: the weights do not fit the encoder, or nothing in it can be adapted.
    """
    settings = job.settings
    torch.manual_seed(derive_seed(settings.training.seed, "init"))
    encoder = build_from_settings(settings.encoder)
    loaded = "the encoder starts from random weights (scratch)"
    tensors = job.start.tensors
    if tensors is not None:
        loaded = load_into(encoder, tensors, source=job.start.encoder).summary
    head = build_head(settings.head, encoder.embed_dim, num_outputs(settings.labels))
    if settings.adapt == "lora":
        lora = settings.lora
        names = add_lora(encoder, lora.targets, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
        learning = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        loaded += f"; {len(names)} layers adapted, {learning} numbers of the encoder learn"
    return Classifier(encoder, head), loaded


def train(job: Job, classifier: Classifier, log: RunLog, process: Process, *, going_on: bool) -> None:
    """Learn, keep the best epoch, calibrate and save it, and judge it by the cases held out.

    Args:
        job: the run.
        classifier: from `build_classifier`; it is changed.
        log: of the run.
        process: this process; every process of the run must call this.
        going_on: whether the folder has a checkpoint to go on from.

    Raises:
        HeadCTSSLError: as `adapt_full`, or a case cannot be read.
    """
    best, loss = _learn(job, classifier, log, process, going_on=going_on)
    chosen = _chosen(best, job.settings)
    log.say(chosen)
    tensors = _take_best(classifier, best, loss)
    judge = Judge(job, classifier, process)
    checked = judge.validate()
    contract = _contract(job).model_copy(update={"temperature": checked.temperature})
    log.say(checked.note)
    if process.is_main:
        contract = save_weights(job.folder / "classifier.safetensors", tensors, contract)
        write_json(job.folder / "contract.json", contract)
    judge.describe(contract)
    _judge_held_out(job, classifier, contract, best, (chosen, checked.note), process, quiet=log.quiet)


def _learn(
    job: Job, classifier: Classifier, log: RunLog, process: Process, *, going_on: bool
) -> tuple[Best, LabelLoss]:
    """The best epoch, and the loss it was learnt with."""
    settings, cohort = job.settings, job.cohort
    learnt = job.labelled(cohort.train)
    validation = job.labelled(cohort.validation)
    for part, found in (("training", learnt), ("validation", validation)):
        for note in found.notes:
            log.say(f"note: {part}: {note}")
    chances = None
    if settings.task.balance == "sampling":
        chances = sampling_weights(learnt.labels, settings.labels, cohort.subjects(learnt.first_scans))
    loss = LabelLoss(settings.labels, learnt.labels, settings.task, chances)
    lesson = Lesson(
        classifier, loss, learnt, validation if len(validation) else None, settings, log, job.device, process, chances
    )
    frozen = settings.adapt in ("linear", "attentive")
    return adapt_frozen(lesson) if frozen else adapt_full(lesson, job.folder, resume=going_on), loss


def _take_best(classifier: Classifier, best: Best, loss: LabelLoss) -> dict[str, Tensor]:
    """Make the classifier that of the best epoch, as it is saved; its state, on the CPU."""
    classifier.load_state_dict(best.state)
    merge_lora(classifier)  # what is saved is a plain encoder
    tensors = with_prior(classifier, loss)
    classifier.load_state_dict(tensors)
    return tensors


def _judge_held_out(
    job: Job,
    classifier: Classifier,
    contract: Contract,
    best: Best,
    told: tuple[str, ...],
    process: Process,
    *,
    quiet: bool,
) -> None:
    """Predict the cases held out, and write predictions.csv, that of studies and metrics.json."""
    held_out = choose_held_out(job.cohort)
    index = job.index.subset(held_out.case_ids)
    outputs = outputs_of(job, classifier, index, process)
    if not process.is_main:
        return
    outcome = outcome_of(job, index, outputs, contract.temperature)
    metrics = measured(job, held_out, outcome, contract, best, told)
    studies = studies_of(job, outcome, outputs, contract.temperature)
    metrics = metrics.model_copy(update={"studies": None if studies is None else studies[1]})
    write_predictions(job.folder / "predictions.csv", outcome)
    write_studies_beside(job.folder / "predictions.csv", None if studies is None else studies[0])
    write_json(job.folder / "metrics.json", metrics)
    print_metrics(metrics, quiet=quiet)


def _chosen(best: Best, settings: FinetuneSettings) -> str:
    if best.score is not None:
        mixed = any(spec.type != "binary" for spec in settings.labels)
        what = "share of pairs ranked right, mean over the labels," if mixed else "AUROC"
        what += " of studies" if settings.head.scans == "attention" else ""
        return f"kept epoch {best.epoch}, mean validation {what} {best.score:.3f}"
    why = (
        "validation shows only one class of every label" if settings.num_validation else "there are no validation cases"
    )
    return f"kept the last epoch ({best.epoch}): {why}"


def _contract(job: Job) -> Contract:
    settings = job.settings
    return Contract(
        package_version=headctssl.__version__,
        kind="classifier",
        storage=settings.storage,
        input=settings.input,
        preset=settings.config,
        encoder=settings.encoder,
        method=settings.method,
        settings=json.dumps(settings.of_weights(), sort_keys=True),
        num_scans=len(job.cohort.train),
        cases_digest=job.index.subset(job.cohort.train).digest(),
        synthetic="all" if job.raw.info.synthetic else "no",
        labels=settings.labels,
        head=settings.head,
    )
