"""Adapt: full fine-tuning and LoRA through the training loop, and what they share with heads on frozen encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headctssl.finetuning.judging import judge
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.labelled import Labelled
from headctssl.finetuning.mirror import mirror_of
from headctssl.finetuning.phases import Phases, head_steps
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.tasks import Classifier, ClassifyTask, Features
from headctssl.finetuning.whole_head import encode, encode_stored, stored_views
from headctssl.loading.loader import BatchLoader
from headctssl.networks.heads import ClassifierHead
from headctssl.preprocessing.index import CaseIndex
from headctssl.training.distributed import Process, gather_shares, share_of
from headctssl.training.run_log import RunLog
from headctssl.training.trainer import Trainer
from headctssl.types import Clock, PretrainBatch

__all__ = ["Best", "Lesson", "adapt_full", "inputs_of", "settle_norm"]

_CACHE_BYTES = 500_000_000  # validation views are kept in memory up to this size
_SETTLE_CASES = 256  # training cases that the head's BatchNorm is settled on before full fine-tuning
_SETTLE_CASES_OF_TOKENS = 32  # each gives hundreds of tokens, which also take more memory


@dataclass(frozen=True)
class Lesson:
    """What is learnt from what, where."""

    classifier: Classifier  # encoder and head as they begin
    loss: LabelLoss
    train: Labelled
    validation: Labelled | None  # None: there is none
    settings: FinetuneSettings
    log: RunLog
    device: torch.device
    process: Process
    chances: NDArray[np.float64] | None = None  # of the scans or studies learnt from in class-balanced sampling


class Best:
    """The classifier of the best validation so far; its state travels in the run's checkpoint."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.epoch = 0  # from 1; 0: none yet
        self.score: float | None = None
        self.loss = math.inf

    def offer(self, module: nn.Module, epoch: int, score: float | None, loss: float) -> bool:
        """Keep the module's state when its validation is the best: highest score, then lowest loss, then first.

        Without a score (no validation cases, or all of them alike) the latest is kept.
        """
        if score is not None:
            known = -math.inf if self.score is None else self.score
            better = (score, -loss) > (known, -self.loss)
        else:
            better = self.score is None
        if better:
            self.state = {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
            self.epoch, self.score, self.loss = epoch, score, loss
        return better

    def state_dict(self) -> Mapping[str, Any]:
        """Plain values and tensors."""
        return {"state": self.state, "epoch": self.epoch, "score": self.score, "loss": self.loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.state, self.epoch = dict(state["state"]), state["epoch"]
        self.score, self.loss = state["score"], state["loss"]


def adapt_full(lesson: Lesson, folder: Path, *, resume: bool) -> Best:
    """Train the whole network, or its adapters and head, and keep the best epoch.

    Args:
        lesson: what is learnt; the classifier is changed.
        folder: run folder, for the checkpoint.
        resume: go on from the folder's checkpoint.

    Raises:
        StoppedError: a signal came; the checkpoint was written.
        TrainingError: the loss stayed not finite, the checkpoint cannot be written, or an adapter has no effect.
    """
    settings, train = lesson.settings, lesson.train
    best = Best()
    training = settings.training
    task = ClassifyTask(
        lesson.classifier,
        lesson.loss,
        settings.task,
        settings.views,
        settings.input,
        phases=Phases(settings.task.schedule, head_steps(settings.task, training.num_steps), training),
        mirror=mirror_of(settings.labels) if settings.views.flip_lr else None,
        most_scans=None if train.studies is None else settings.task.most_scans,
    )
    trainer = Trainer(
        task,
        training=training,
        input_spec=settings.input,
        make_batches=lambda start_step: _batches(lesson, start_step),
        folder=folder,
        log=lesson.log,
        digest=settings.digest(),
        device=lesson.device,
        process=lesson.process,
        on_epoch_end=_validation(lesson, best),
        extra=best,
    )
    if resume and trainer.resume():
        lesson.log.say(f"going on after step {trainer.step} of {training.num_steps}")
    else:
        most = _SETTLE_CASES_OF_TOKENS if lesson.classifier.head.reads_tokens else _SETTLE_CASES
        some = train.index.subset(train.index.case_ids[:: -(-len(train.index) // most)])
        settle_norm(lesson.classifier.head, inputs_of(lesson, some))
    lesson.log.open(trainer.step)
    trainer.run()
    return best


def _batches(lesson: Lesson, start_step: int) -> Iterable[PretrainBatch]:
    """The batches of this process from an optimiser step on."""
    settings, training, process = lesson.settings, lesson.settings.training, lesson.process
    return BatchLoader(
        lesson.train.index,
        read_shape=settings.read_shape,
        batch_size=training.batch_size // (process.world_size * training.accumulation),
        accumulation=training.accumulation,
        samples_per_epoch=training.samples_per_epoch,
        seed=training.seed,
        rank=process.rank,
        world_size=process.world_size,
        start_step=start_step,
        num_steps=training.num_steps,
        num_workers=training.num_workers,
        labels=lesson.train.labels_of_scans,
        sample_weights=lesson.chances,
        bags=lesson.train.studies,
        most_of_bag=settings.task.most_scans,
    )


EpochEnd = Callable[[Clock], Mapping[str, float] | None]


def _validation(lesson: Lesson, best: Best) -> EpochEnd:
    """What the loop calls at the end of every epoch: it offers the classifier to `best` when validation is due."""
    settings, validation = lesson.settings, lesson.validation
    cache: list[Tensor] = []

    def on_epoch_end(clock: Clock) -> Mapping[str, float] | None:
        epoch, last = clock.epoch + 1, clock.step + 1 >= clock.total_steps
        if epoch % settings.task.validate_every and not last:
            return None
        if validation is None:
            best.offer(lesson.classifier, epoch, None, 0.0)
            return None
        logits = validation.outputs(settings.labels, _validation_logits(lesson, validation.index, cache))
        verdict = judge(logits, validation.labels, lesson.loss)
        best.offer(lesson.classifier, epoch, verdict.score, verdict.loss)
        return verdict.line

    return on_epoch_end


def _validation_logits(lesson: Lesson, index: CaseIndex, cache: list[Tensor]) -> Tensor:
    """What the head says of all validation cases, row by row, each encoded by one process.

    Small sets of views are kept in `cache`.
    """
    spec, task = lesson.settings.input, lesson.settings.task
    mine = share_of(index.case_ids, lesson.process)
    rows = None
    if mine:
        views: Iterable[Tensor] = cache
        if not cache:
            workers = lesson.settings.training.num_workers
            views = stored_views(
                index.subset(mine), spec, batch_size=task.eval_batch_size, num_workers=workers, device=lesson.device
            )
            if 4 * len(mine) * len(spec.windows) * math.prod(spec.shape) <= _CACHE_BYTES:
                cache.extend(view.cpu() for view in views)
                views = cache
        rows = encode(lesson.classifier, views, lesson.device)
    return gather_shares(rows, len(index), lesson.process)


def settle_norm(head: ClassifierHead, inputs: Tensor) -> None:
    """Give the head's BatchNorm the mean and variance of real features or tokens.

    It starts at mean 0 and variance 1 and follows by a tenth per step. Until it has arrived, which takes tens of
    steps, the head in eval mode is another function than the one that was trained: ranks hold up, probabilities
    do not, and the best epoch may be an early one.

    Args:
        head: changed in place.
        inputs: (n, C) features or (n, N, C) tokens of training cases, two vectors or more.
    """
    vectors = inputs.flatten(0, -2)
    if isinstance(head.norm, nn.BatchNorm1d):
        assert head.norm.running_mean is not None
        assert head.norm.running_var is not None
        head.norm.running_mean.copy_(vectors.mean(dim=0))
        head.norm.running_var.copy_(vectors.var(dim=0, unbiased=True))


def inputs_of(lesson: Lesson, index: CaseIndex, module: nn.Module | None = None) -> Tensor:
    """What the head reads of the whole heads of stored cases, (n, C) or (n, N, C), on the CPU of every process.

    Args:
        lesson: what is learnt.
        index: the cases.
        module: (B, C, D, H, W) -> (B, ...) on `lesson.device` that is asked instead.
    """
    classifier = lesson.classifier
    return encode_stored(
        module or Features(classifier.encoder.to(lesson.device), tokens=classifier.head.reads_tokens),
        index,
        lesson.settings.input,
        batch_size=lesson.settings.task.eval_batch_size,
        num_workers=lesson.settings.training.num_workers,
        device=lesson.device,
        process=lesson.process,
    )
