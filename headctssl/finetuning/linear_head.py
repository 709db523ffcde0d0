"""Linear head: learnt on features of the frozen encoder, which are computed once."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.finetuning.adapt import Best, Lesson, features_of, settle_norm
from headctssl.finetuning.judging import NO_VERDICT, judge
from headctssl.finetuning.label_loss import LabelLoss
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.whole_head import encode
from headctssl.loading.sampler import epoch_order
from headctssl.methods.method import split_decay
from headctssl.networks.heads import ClassifierHead
from headctssl.seeding import derive_seed
from headctssl.training.optimizer import build_optimizer, set_rates

__all__ = ["adapt_linear"]


def adapt_linear(lesson: Lesson) -> Best:
    """Train the head on features of the frozen encoder and keep the best epoch.

    Several processes share out the features; each then learns the same head, on the CPU.

    Args:
        lesson: what is learnt; the encoder stays as it is, in eval mode, the head is changed.
    """
    classifier, train, validation, log = lesson.classifier, lesson.train, lesson.validation, lesson.log
    began = time.perf_counter()
    table = features_of(lesson, train.index)
    held_out = None if validation is None else features_of(lesson, validation.index)
    log.say(f"features of {len(train) + len(validation or ())} cases in {time.perf_counter() - began:.1f} s")
    classifier.cpu().eval()
    settle_norm(classifier.head, table)
    log.open(0)
    best = Best()
    for epoch, line in _fit_head(classifier.head, lesson.loss, table, train.labels, lesson.settings):
        verdict = NO_VERDICT
        if held_out is not None and validation is not None:
            outputs = encode(classifier.head, [held_out], torch.device("cpu"))
            verdict = judge(outputs, validation.labels, lesson.loss)
        best.offer(classifier, epoch, verdict.score, verdict.loss)
        log.metrics({**line, **verdict.line}, lesson.settings.training.num_steps)
    log.picture(final=True)
    return best


def _fit_head(
    head: ClassifierHead,
    rule: LabelLoss,
    features: Tensor,
    labels: NDArray[np.float32],
    settings: FinetuneSettings,
) -> Iterable[tuple[int, dict[str, float | int]]]:
    """Yield (epoch from 1, line of metrics.jsonl) after every epoch of the head.

    The features are fixed, so their mean and variance over all training cases are exact: BatchNorm keeps them.
    """
    training = settings.training
    optimizer = build_optimizer(split_decay(head), training)
    target = torch.from_numpy(labels)
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
            loss: Tensor = rule(head(features[rows]), target[rows])
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
