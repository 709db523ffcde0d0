"""Frozen: a head learnt on features or tokens of the frozen encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from headctssl.finetuning.adapt import Best, Lesson
from headctssl.finetuning.head_inputs import InputSource, KeptInputs, compute_inputs, keep_inputs
from headctssl.finetuning.judging import NO_VERDICT, judge
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.whole_head import encode
from headctssl.loading.sampler import epoch_order
from headctssl.methods.method import split_decay
from headctssl.networks.heads import ClassifierHead, LinearHead
from headctssl.networks.scan_attention import pool_scans
from headctssl.networks.whitened_head import WhitenedHead
from headctssl.seeding import derive_seed
from headctssl.training.optimizer import build_optimizer, set_rates

__all__ = ["adapt_frozen"]

_CPU = torch.device("cpu")


def adapt_frozen(lesson: Lesson) -> Best:
    """Train the head on features or tokens of the frozen encoder and keep the best epoch.

    With `task.whitening` a linear head learns twice, on the features and on whitened ones, which are taken where they
    rank validation better: what a strong encoder says fills the directions of most variance, which whitening would
    drown in the noise of the others; what a weak one says may lie in directions of so little variance that nothing is
    learnt of them otherwise.

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
    learners = _learners(lesson, source)
    began = time.perf_counter()
    for number, learner in enumerate(learners):
        plain = best.score  # of the head before this one
        if number and plain is None:
            log.say("whitened features are not tried: validation cannot choose, it shows only one class of every label")
            break
        for epoch, line in _fit_head(learner, lesson, source, number, began):
            if isinstance(learner, WhitenedHead):
                assert isinstance(classifier.head, LinearHead), "only such a head is whitened"
                learner.put_back(classifier.head)
            verdict = NO_VERDICT
            if held_out is not None and validation is not None:
                wanted = torch.split(torch.arange(len(validation.index)), settings.training.batch_size)
                said = torch.cat([encode(classifier.head, [x], _CPU) for x in held_out.batches(wanted)])
                verdict = judge(validation.outputs(settings.labels, said), validation.labels, lesson.loss)
            # Few validation cases often rank alike. Then features as they are, which bear other scanners better.
            if plain is None or (verdict.score is not None and verdict.score > plain):
                best.offer(classifier, epoch, verdict.score, verdict.loss)
            log.metrics({**line, **verdict.line}, len(learners) * settings.training.num_steps)
    if len(learners) > 1 and best.score is not None:
        whitened = best.epoch > _epochs(settings)
        log.say(f"better on validation: the head on {'whitened features' if whitened else 'features as they are'}")
    log.picture(final=True)
    return best


def _learners(lesson: Lesson, source: InputSource) -> list[ClassifierHead | WhitenedHead]:
    """What learns, in turn: the head itself, and one on whitened features that it is made of after every epoch."""
    head, shrinkage = lesson.classifier.head, lesson.settings.task.whitening
    if shrinkage is None:
        return [head]
    assert isinstance(head, LinearHead), "another head refuses the setting"
    assert isinstance(source, KeptInputs), "features are kept"
    return [head, WhitenedHead(head, source.table, shrinkage)]


def _epochs(settings: FinetuneSettings) -> int:
    """Epochs of one head, the last one perhaps shorter."""
    return math.ceil(settings.training.num_steps / settings.steps_per_epoch)


def _fit_head(
    head: ClassifierHead | WhitenedHead, lesson: Lesson, source: InputSource, number: int, began: float
) -> Iterable[tuple[int, dict[str, float | int]]]:
    """Yield (epoch from 1, line of metrics.jsonl) after every epoch of the head.

    The encoder is fixed, so mean and variance over all training cases are exact: BatchNorm keeps them. Steps, epochs
    and seconds of the second head count on from those of the first.
    """
    settings = lesson.settings
    training = settings.training
    optimizer = build_optimizer(split_decay(head), training)
    target = torch.from_numpy(lesson.train.labels)
    last = time.perf_counter()
    step = epoch = 0
    epochs = _epochs(settings)
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
            "step": number * training.num_steps + step,
            "epoch": number * epochs + epoch,
            "loss": float(np.mean(losses)),
            "lr": rate,
            "scans_per_second": sum(len(scans) for scans, _ in read) / max(now - last, 1e-9),
            "data_wait": 0.0,
            "seconds": now - began,
        }
        last = now
        epoch += 1
        yield number * epochs + epoch, line
