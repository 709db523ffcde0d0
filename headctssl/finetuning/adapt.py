"""Adapt: full fine-tuning through the training loop, and a linear head on features that are computed once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.tasks import Classifier, ClassifyTask, Features, masked_loss
from headctssl.finetuning.whole_head import encode, stored_views
from headctssl.loading.loader import BatchLoader
from headctssl.loading.sampler import epoch_order
from headctssl.methods.method import split_decay
from headctssl.metrics.statistics import weighted_auroc
from headctssl.networks.heads import LinearHead
from headctssl.preprocessing.index import CaseIndex
from headctssl.seeding import derive_seed
from headctssl.training.optimizer import build_optimizer, set_rates
from headctssl.training.run_log import RunLog
from headctssl.training.trainer import Trainer
from headctssl.types import Clock, PretrainBatch

__all__ = ["Best", "Labelled", "adapt_full", "adapt_linear"]

_CACHE_BYTES = 500_000_000  # validation views are kept in memory up to this size
_SETTLE_CASES = 256  # training cases that the head's BatchNorm is settled on before full fine-tuning


@dataclass(frozen=True)
class Labelled:
    """Stored cases with their labels, row by row."""

    index: CaseIndex
    labels: NDArray[np.float32]  # (n, L), NaN = unknown

    def __len__(self) -> int:
        return len(self.index)


class Best:
    """The classifier of the best validation so far; its state travels in the run's checkpoint."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.epoch = 0  # from 1; 0: none yet
        self.auroc: float | None = None
        self.loss = math.inf

    def offer(self, module: nn.Module, epoch: int, mean_auroc: float | None, loss: float) -> bool:
        """Keep the module's state when its validation is the best: highest AUROC, then lowest loss, then first.

        Without an AUROC (no validation cases, or only one class among them) the latest is kept.
        """
        if mean_auroc is not None:
            known = -math.inf if self.auroc is None else self.auroc
            better = (mean_auroc, -loss) > (known, -self.loss)
        else:
            better = self.auroc is None
        if better:
            self.state = {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
            self.epoch, self.auroc, self.loss = epoch, mean_auroc, loss
        return better

    def state_dict(self) -> Mapping[str, Any]:
        """Plain values and tensors."""
        return {"state": self.state, "epoch": self.epoch, "auroc": self.auroc, "loss": self.loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.state, self.epoch = dict(state["state"]), state["epoch"]
        self.auroc, self.loss = state["auroc"], state["loss"]


def adapt_full(
    classifier: Classifier,
    weights: Tensor,
    train: Labelled,
    validation: Labelled | None,
    settings: FinetuneSettings,
    *,
    folder: Path,
    log: RunLog,
    digest: str,
    device: torch.device,
    resume: bool,
) -> Best:
    """Train the whole network and keep the best epoch.

    Args:
        classifier: encoder and head as they begin.
        weights: (L, 2) from `class_weights`.
        train: training cases.
        validation: validation cases, None without.
        settings: of the run.
        folder: run folder, for the checkpoint.
        log: where lines go.
        digest: names the settings.
        device: where to compute.
        resume: go on from the folder's checkpoint.

    Raises:
        StoppedError: a signal came; the checkpoint was written.
        TrainingError: the loss stayed not finite.
    """
    training = settings.training
    task = ClassifyTask(classifier, weights, settings.task, settings.views, settings.input)
    best = Best()
    validate = _validator(validation, settings, device) if validation is not None else None
    view_cache: list[Tensor] | None = None if validate is None else []

    def batches(start_step: int) -> Iterable[PretrainBatch]:
        return BatchLoader(
            train.index,
            read_shape=settings.read_shape,
            batch_size=training.batch_size // training.accumulation,
            accumulation=training.accumulation,
            samples_per_epoch=training.samples_per_epoch,
            seed=training.seed,
            start_step=start_step,
            num_steps=training.num_steps,
            num_workers=training.num_workers,
            labels=train.labels,
        )

    def on_epoch_end(clock: Clock) -> Mapping[str, float] | None:
        epoch, last = clock.epoch + 1, clock.step + 1 >= clock.total_steps
        if epoch % settings.task.validate_every and not last:
            return None
        if validate is None or view_cache is None:
            best.offer(task.classifier, epoch, None, 0.0)
            return None
        mean, loss = validate(task.classifier, weights, view_cache)
        best.offer(task.classifier, epoch, mean, loss)
        found = {"validation_loss": loss}
        return found if mean is None else {**found, "validation_auroc": mean}

    trainer = Trainer(
        task,
        training=training,
        input_spec=settings.input,
        make_batches=batches,
        folder=folder,
        log=log,
        digest=digest,
        device=device,
        on_epoch_end=on_epoch_end,
        extra=best,
    )
    if not (resume and trainer.resume()):
        some = train.index.subset(train.index.case_ids[:: -(-len(train) // _SETTLE_CASES)])
        settle_norm(classifier.head, _features(classifier, some, settings, device))
    else:
        log.say(f"going on after step {trainer.step} of {training.num_steps}")
    log.open(trainer.step)
    trainer.run()
    return best


def settle_norm(head: LinearHead, features: Tensor) -> None:
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


def _features(classifier: Classifier, index: CaseIndex, settings: FinetuneSettings, device: torch.device) -> Tensor:
    """(n, C) features of the whole heads of stored cases, on the CPU."""
    views = stored_views(
        index,
        settings.input,
        batch_size=settings.task.eval_batch_size,
        num_workers=settings.training.num_workers,
        device=device,
    )
    return encode(Features(classifier.encoder.to(device)), views, device)


Validate = Callable[[Classifier, Tensor, list[Tensor]], tuple[float | None, float]]


def _validator(validation: Labelled, settings: FinetuneSettings, device: torch.device) -> Validate:
    """A function (classifier, class weights, cache) -> (mean AUROC or None, loss) on the whole-head views."""
    spec, batch = settings.input, settings.task.eval_batch_size
    size = 4 * len(validation) * len(spec.windows) * math.prod(spec.shape)

    def validate(classifier: Classifier, weights: Tensor, cache: list[Tensor]) -> tuple[float | None, float]:
        views: Iterable[Tensor] = cache
        if not cache:
            workers = settings.training.num_workers
            views = stored_views(validation.index, spec, batch_size=batch, num_workers=workers, device=device)
            if size <= _CACHE_BYTES:
                cache.extend(view.cpu() for view in views)
                views = cache
        logits = encode(classifier, views, device)
        return _judge(logits, validation.labels, weights)

    return validate


def _judge(logits: Tensor, labels: NDArray[np.float32], weights: Tensor) -> tuple[float | None, float]:
    """Mean AUROC over the labels where it is defined, and the training loss."""
    values = []
    for column, scores in enumerate(logits.double().numpy().T):
        known = ~np.isnan(labels[:, column])
        values.append(weighted_auroc(labels[known, column] > 0.5, scores[known], np.ones((1, int(known.sum()))))[0])
    defined = [value for value in values if not np.isnan(value)]
    loss = float(masked_loss(logits, torch.from_numpy(labels), weights.cpu()))
    return (float(np.mean(defined)) if defined else None), loss


def adapt_linear(
    classifier: Classifier,
    weights: Tensor,
    train: Labelled,
    validation: Labelled | None,
    settings: FinetuneSettings,
    *,
    log: RunLog,
    device: torch.device,
) -> Best:
    """Train the head on features of the frozen encoder, computed once, and keep the best epoch.

    Args:
        classifier: the encoder stays as it is, in eval mode; the head learns.
        weights: (L, 2) from `class_weights`.
        train: training cases.
        validation: validation cases, None without.
        settings: of the run.
        log: where lines go.
        device: where the encoder computes; the head learns on the CPU.
    """
    began = time.perf_counter()
    table = _features(classifier, train.index, settings, device)
    held_out = None if validation is None else _features(classifier, validation.index, settings, device)
    log.say(f"features of {len(train) + len(validation or ())} cases in {time.perf_counter() - began:.1f} s")
    classifier.cpu().eval()
    settle_norm(classifier.head, table)
    log.open(0)
    best = Best()
    for epoch, line in _fit_head(classifier.head, weights, table, train.labels, settings):
        found: dict[str, float] = {}
        mean, loss = None, 0.0
        if held_out is not None and validation is not None:
            mean, loss = _judge(encode(classifier.head, [held_out], torch.device("cpu")), validation.labels, weights)
            found = {"validation_loss": loss} if mean is None else {"validation_loss": loss, "validation_auroc": mean}
        best.offer(classifier, epoch, mean, loss)
        log.metrics({**line, **found}, settings.training.num_steps)
    log.picture(final=True)
    return best


def _fit_head(
    head: LinearHead, weights: Tensor, features: Tensor, labels: NDArray[np.float32], settings: FinetuneSettings
) -> Iterable[tuple[int, dict[str, float | int]]]:
    """Yield (epoch from 1, line of metrics.jsonl) after every epoch of the head.

    The features are fixed, so their mean and variance over all training cases are exact: BatchNorm keeps them.
    """
    training = settings.training
    optimizer = build_optimizer(split_decay(head), training)
    target = torch.from_numpy(labels)
    weights = weights.cpu()
    began = last = time.perf_counter()
    step = epoch = 0
    while step < training.num_steps:
        head.train()
        head.norm.eval()
        samples = settings.steps_per_epoch * training.batch_size
        order = torch.from_numpy(epoch_order(len(features), samples, training.seed, epoch))
        losses: list[float] = []
        rate = 0.0
        for rows in order.view(-1, training.batch_size):
            if step == training.num_steps:
                break
            rate = set_rates(optimizer, training, step)
            torch.manual_seed(derive_seed(training.seed, step, 0, "torch"))
            optimizer.zero_grad(set_to_none=True)
            loss = masked_loss(head(features[rows]), target[rows], weights)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's method
            if training.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(head.parameters(), training.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        now = time.perf_counter()
        line: dict[str, float | int] = {
            "step": step,
            "epoch": epoch,
            "loss": float(np.mean(losses)),
            "lr": rate,
            "scans_per_second": len(losses) * training.batch_size / max(now - last, 1e-9),
            "data_wait": 0.0,
            "seconds": now - began,
        }
        last = now
        epoch += 1
        yield epoch, line
