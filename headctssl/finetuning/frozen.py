"""Frozen: a head learnt on features or tokens of the frozen encoder."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from headctssl.finetuning.adapt import Best, Lesson
from headctssl.finetuning.head_inputs import InputSource, compute_inputs, keep_inputs
from headctssl.finetuning.judging import NO_VERDICT, judge
from headctssl.finetuning.whole_head import encode
from headctssl.loading.sampler import epoch_order
from headctssl.methods.method import split_decay
from headctssl.networks.scan_attention import pool_scans
from headctssl.seeding import derive_seed
from headctssl.training.optimizer import build_optimizer, set_rates

__all__ = ["adapt_frozen"]

_CPU = torch.device("cpu")


def adapt_frozen(lesson: Lesson) -> Best:
    """Train the head on features or tokens of the frozen encoder and keep the best epoch.

    Features, and tokens where they fit in the memory that is set, are computed once; other tokens are computed again in
    every epoch. Several processes share that out; each then learns the same head, on the CPU.

    Args:
        lesson: what is learnt; the encoder stays as it is, in eval mode, the head is changed.
    """
    classifier, validation, log, settings = lesson.classifier, lesson.validation, lesson.log, lesson.settings
    began = time.perf_counter()
    classifier.eval()
    tokens = classifier.head.reads_tokens
    kept = not tokens or settings.token_gb <= settings.task.cache_gb
    source, held_out = keep_inputs(lesson) if kept else compute_inputs(lesson)
    what = "tokens" if tokens else "features"
    cases = len(lesson.train.index) + (0 if validation is None else len(validation.index))
    log.say(
        f"{what if kept else 'mean and variance of tokens'} of {cases} cases in {time.perf_counter() - began:.1f} s"
    )
    classifier.head.cpu()
    lesson.loss.cpu()
    log.open(0)
    best = Best()
    for epoch, line in _fit_head(lesson, source):
        verdict = NO_VERDICT
        if held_out is not None and validation is not None:
            wanted = torch.split(torch.arange(len(validation.index)), settings.training.batch_size)
            said = torch.cat([encode(classifier.head, [x], _CPU) for x in held_out.batches(wanted)])
            verdict = judge(validation.outputs(settings.labels, said), validation.labels, lesson.loss)
        best.offer(classifier, epoch, verdict.score, verdict.loss)
        log.metrics({**line, **verdict.line}, settings.training.num_steps)
    log.picture(final=True)
    return best


def _fit_head(lesson: Lesson, source: InputSource) -> Iterable[tuple[int, dict[str, float | int]]]:
    """Yield (epoch from 1, line of metrics.jsonl) after every epoch of the head.

    The encoder is fixed, so mean and variance over all training cases are exact: BatchNorm keeps them.
    """
    head, settings = lesson.classifier.head, lesson.settings
    training = settings.training
    optimizer = build_optimizer(split_decay(head), training)
    target = torch.from_numpy(lesson.train.labels)
    began = last = time.perf_counter()
    step = epoch = 0
    while step < training.num_steps:
        head.train()
        head.norm.eval()
        samples = settings.steps_per_epoch * training.batch_size
        order = torch.from_numpy(epoch_order(len(target), samples, training.seed, epoch, lesson.chances))
        order = order[: (training.num_steps - step) * training.batch_size]
        samples_of = torch.split(order, training.batch_size)
        read = [
            lesson.train.read(rows, settings.task.most_scans, training.seed, epoch, k * training.batch_size)
            for k, rows in enumerate(samples_of)
        ]
        inputs = source.batches([scans for scans, _ in read])
        losses: list[float] = []
        rate = 0.0
        for rows, (_, study), x in zip(samples_of, read, inputs, strict=True):
            rate = set_rates(optimizer, training, step)
            torch.manual_seed(derive_seed(training.seed, step, 0, "torch"))
            optimizer.zero_grad(set_to_none=True)
            outputs: Tensor = head(x)
            if study is not None:
                outputs = pool_scans(outputs[:, :-1], outputs[:, -1], study, len(rows))
            loss: Tensor = lesson.loss(outputs, target[rows], smooth=True)
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
            "scans_per_second": sum(len(scans) for scans, _ in read) / max(now - last, 1e-9),
            "data_wait": 0.0,
            "seconds": now - began,
        }
        last = now
        epoch += 1
        yield epoch, line
