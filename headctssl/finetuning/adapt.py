"""Adapt: full fine-tuning through the training loop, and what it shares with the linear head."""

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

__all__ = ["Best", "Labelled", "Lesson", "adapt_full", "features_of", "settle_norm"]

_CACHE_BYTES = 500_000_000  # validation views are kept in memory up to this size
_SETTLE_CASES = 256  # training cases that the head's BatchNorm is settled on before full fine-tuning


@dataclass(frozen=True)
class Labelled:
    """Stored cases with their labels, row by row."""

    index: CaseIndex
    labels: NDArray[np.float32]  # (n, L), NaN = unknown

    def __len__(self) -> int:
        return len(self.index)


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
    """Train the whole network and keep the best epoch.

    Args:
        lesson: what is learnt; the classifier is changed.
        folder: run folder, for the checkpoint.
        resume: go on from the folder's checkpoint.

    Raises:
        StoppedError: a signal came; the checkpoint was written.
        TrainingError: the loss stayed not finite, or the checkpoint cannot be written.
    """
    settings, train = lesson.settings, lesson.train
    best = Best()
    task = ClassifyTask(lesson.classifier, lesson.loss, settings.task, settings.views, settings.input)
    trainer = Trainer(
        task,
        training=settings.training,
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
        lesson.log.say(f"going on after step {trainer.step} of {settings.training.num_steps}")
    else:
        some = train.index.subset(train.index.case_ids[:: -(-len(train) // _SETTLE_CASES)])
        settle_norm(lesson.classifier.head, features_of(lesson, some))
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
        labels=lesson.train.labels,
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
        logits = _validation_logits(lesson, validation.index, cache)
        verdict = judge(logits, validation.labels, lesson.loss)
        best.offer(lesson.classifier, epoch, verdict.score, verdict.loss)
        return verdict.line

    return on_epoch_end


def _validation_logits(lesson: Lesson, index: CaseIndex, cache: list[Tensor]) -> Tensor:
    """(n, O) of all validation cases, each encoded by one process; small sets of views are kept in `cache`."""
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


def settle_norm(head: ClassifierHead, features: Tensor) -> None:
    """Give the head's BatchNorm the mean and variance of real features.

    It starts at mean 0 and variance 1 and follows by a tenth per step. Until it has arrived, which takes tens of
    steps, the head in eval mode is another function than the one that was trained: ranks hold up, probabilities
    do not, and the best epoch may be an early one.

    Args:
        head: changed in place.
        features: (n, C) of training cases, n at least 2.
    """
    if isinstance(head.norm, nn.BatchNorm1d):
        assert head.norm.running_mean is not None
        assert head.norm.running_var is not None
        head.norm.running_mean.copy_(features.mean(dim=0))
        head.norm.running_var.copy_(features.var(dim=0, unbiased=True))


def features_of(lesson: Lesson, index: CaseIndex) -> Tensor:
    """(n, C) features of the whole heads of stored cases, on the CPU, the same on every process."""
    return encode_stored(
        Features(lesson.classifier.encoder.to(lesson.device)),
        index,
        lesson.settings.input,
        batch_size=lesson.settings.task.eval_batch_size,
        num_workers=lesson.settings.training.num_workers,
        device=lesson.device,
        process=lesson.process,
    )
