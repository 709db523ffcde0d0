"""Head inputs: features or tokens of the frozen encoder, kept in memory or computed again for every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from headctssl.finetuning.adapt import Lesson, inputs_of, settle_norm
from headctssl.finetuning.labelled import Labelled
from headctssl.finetuning.tasks import Features
from headctssl.finetuning.whole_head import encode, stored_views
from headctssl.networks.encoder import Encoder
from headctssl.training.distributed import gather_shares, share_of

__all__ = ["ComputedInputs", "InputSource", "KeptInputs", "compute_inputs", "keep_inputs"]


class InputSource(Protocol):
    """Gives what a head reads of any cases, batch by batch, the same on every process."""

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """The inputs (B, ...) of cases, on the CPU.

        Args:
            parts: per batch int64 (B,), positions of its cases; one may come several times.
        """
        ...


@dataclass(frozen=True)
class KeptInputs:
    """Everything in memory."""

    table: Tensor  # (n, C) or (n, N, C)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """See `InputSource`."""
        yield from (self.table[rows] for rows in parts)


@dataclass(frozen=True)
class ComputedInputs:
    """Nothing in memory: the encoder computes every batch again, shared out over the processes."""

    lesson: Lesson
    cases: Labelled

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """See `InputSource`; every process of the run must ask for the same."""
        lesson, settings = self.lesson, self.lesson.settings
        mine = [share_of(rows.tolist(), lesson.process) for rows in parts]
        wanted = [row for share in mine for row in share]
        module = Features(lesson.classifier.encoder, tokens=lesson.classifier.head.reads_tokens)
        computed: Iterator[Tensor] = iter(())
        if wanted:
            views = stored_views(
                self.cases.index,
                settings.input,
                batch_size=settings.task.eval_batch_size,
                num_workers=settings.training.num_workers,
                device=lesson.device,
                order=wanted,
            )
            computed = (row for view in views for row in encode(module, [view], lesson.device))
        for rows, share in zip(parts, mine, strict=True):
            found = list(islice(computed, len(share)))
            yield gather_shares(torch.stack(found) if found else None, len(rows), lesson.process)


def keep_inputs(lesson: Lesson) -> tuple[InputSource, InputSource | None]:
    """Compute the inputs of all training and validation cases once, and settle the head's norm on the former."""
    table = inputs_of(lesson, lesson.train.index)
    settle_norm(lesson.classifier.head, table)
    validation = lesson.validation
    return KeptInputs(table), None if validation is None else KeptInputs(inputs_of(lesson, validation.index))


def compute_inputs(lesson: Lesson) -> tuple[InputSource, InputSource | None]:
    """Settle the head's norm on the tokens of all training cases, of which only mean and variance are kept."""
    encoder = lesson.classifier.encoder.to(lesson.device)
    moments = inputs_of(lesson, lesson.train.index, _Moments(encoder)).double()
    means, variances = moments.unbind(dim=1)
    norm = lesson.classifier.head.norm
    if isinstance(norm, nn.BatchNorm1d):
        assert norm.running_mean is not None, "running statistics are kept"
        assert norm.running_var is not None, "running statistics are kept"
        # Every case has as many tokens: the variance of all is that within cases plus that between them.
        count = len(means) * lesson.settings.tokens_per_case
        total = (variances.mean(dim=0) + means.var(dim=0, unbiased=False)) * count / (count - 1)
        norm.running_mean.copy_(means.mean(dim=0))
        norm.running_var.copy_(total)
    validation = lesson.validation
    return ComputedInputs(lesson, lesson.train), None if validation is None else ComputedInputs(lesson, validation)


class _Moments(nn.Module):
    """Mean and variance of every channel over the tokens of a case, (B, C, D, H, W) -> (B, 2, F)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.encoder(x).tokens.double(), dim=1, unbiased=False)
        return torch.stack([mean, variance], dim=1)
