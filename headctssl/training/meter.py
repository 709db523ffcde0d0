"""Meter: means of loss and logs between two lines of metrics.jsonl, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
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
    """

    def __init__(self, process: Process, batch_size: int) -> None:
        self.process, self.batch_size = process, batch_size
        self.before = 0.0  # seconds of training in earlier sessions of the run
        self.started = self.line_at = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self.pending: dict[str, list[Tensor]] = {}
        self.kept: dict[str, list[Tensor]] = {}

    def start(self) -> None:
        """Begin a session: what came before it is not counted as time of training."""
        self.started = self.line_at = time.perf_counter()

    def state_dict(self) -> dict[str, Tensor]:
        """Numbers of the steps since the last line, (steps,) by name, the same on every process.

        Every process must call it. The speed and the wait of the next line are those of its session alone.
        """
        return self._of_all_processes()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self.kept = {name: list(values.unbind()) for name, values in state.items()}

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
        collected = self._of_all_processes()
        means = torch.stack([values.mean() for values in collected.values()]).tolist() if collected else []
        values: dict[str, float | int | None] = {
            "step": step,
            "epoch": epoch,
            "loss": None,
            "lr": rate,
            "scans_per_second": self.steps * self.batch_size / passed,
            "data_wait": min(1.0, self.waited / passed),
            "seconds": self.elapsed(),
        }
        values.update(zip(collected, means, strict=True))
        self.kept, self.waited, self.steps, self.line_at = {}, 0.0, 0, now
        return values

    def _of_all_processes(self) -> dict[str, Tensor]:
        """What was kept since the last line, (steps,) by name in order, each the mean over the processes."""
        if not self.kept:
            return {}
        device = self.kept["loss"][0].device
        rows = {name: torch.stack([v.to(device) for v in self.kept[name]]) for name in sorted(self.kept)}
        flat = reduce_mean(torch.cat(list(rows.values())), self.process)
        return dict(zip(rows, torch.split(flat, [len(row) for row in rows.values()]), strict=True))
