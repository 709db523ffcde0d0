"""Meter: means of loss and logs between two lines of metrics.jsonl, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from headctssl.training.distributed import Process, reduce_mean
from headctssl.types import StepResult, Views

__all__ = ["Meter"]


class Meter:
    """Collects what steps log; numbers leave the device only when a line is due.

    Args:
        process: this process; means are taken over all processes.
        batch_size: scans per optimiser step over all processes.
        elapsed: seconds of training before this session.
    """

    def __init__(self, process: Process, batch_size: int, elapsed: float) -> None:
        self.process, self.batch_size, self.before = process, batch_size, elapsed
        self.started = self.line_at = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self.pending: dict[str, list[Tensor]] = {}
        self.kept: dict[str, list[Tensor]] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, result: StepResult, views: Views) -> None:
        """Note the loss, the logs (scalars) and the foreground share of one forward pass."""
        for name, share in views.foreground.items():
            self.pending.setdefault(f"foreground_{name}", []).append(share.float().mean())
        self.pending.setdefault("loss", []).append(result.loss.detach().float())
        for name, value in result.logs.items():
            number = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            self.pending.setdefault(name, []).append(number)

    def last_losses(self) -> Tensor:
        """Losses (accumulation,) of the step that is under way."""
        return torch.stack(self.pending["loss"])

    def keep_step(self, norm: Tensor) -> None:
        """End a step that was taken, with its gradient norm before clipping."""
        self.pending["gradient_norm"] = [norm.detach().float()]
        for name, values in self.pending.items():
            self.kept.setdefault(name, []).append(torch.stack(values).mean())
        self.pending = {}
        self.steps += 1

    def drop_step(self) -> None:
        """End a step that was skipped: its numbers do not count, its time does."""
        self.pending = {}
        self.steps += 1

    def elapsed(self) -> float:
        """Seconds of training over all sessions of the run."""
        return self.before + time.perf_counter() - self.started

    def line(self, step: int, epoch: int, rate: float) -> dict[str, float | int | None]:
        """One line of metrics.jsonl over the steps since the last one; `loss` is None when all were skipped.

        Args:
            step: optimiser steps done.
            epoch: epoch of the last step.
            rate: learning rate of the last step.
        """
        now = time.perf_counter()
        passed = max(now - self.line_at, 1e-9)
        names = sorted(self.kept)
        means: list[float] = []
        if names:
            device = self.kept["loss"][0].device
            stacked = torch.stack([torch.stack([v.to(device) for v in self.kept[name]]).mean() for name in names])
            means = reduce_mean(stacked, self.process).tolist()
        values: dict[str, float | int | None] = {
            "step": step,
            "epoch": epoch,
            "loss": None,
            "lr": rate,
            "scans_per_second": self.steps * self.batch_size / passed,
            "data_wait": min(1.0, self.waited / passed),
            "seconds": self.elapsed(),
        }
        values.update(zip(names, means, strict=True))
        self.kept, self.waited, self.steps, self.line_at = {}, 0.0, 0, now
        return values
