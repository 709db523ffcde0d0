"""Trainer: the loop. A learner (method or task) is passed in; this class is never subclassed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from headctssl.contract import InputSpec
from headctssl.errors import StoppedError, TrainingError
from headctssl.loading.sampler import steps_per_epoch
from headctssl.loading.views import ViewPlan, make_views
from headctssl.methods.method import ParamGroup
from headctssl.networks.batch_norm import running_statistics
from headctssl.planning.run_settings import TrainingSettings
from headctssl.seeding import derive_seed
from headctssl.training.batches import to_device
from headctssl.training.distributed import Process, check_division, no_sync, reduce_max, wrap
from headctssl.training.meter import Meter
from headctssl.training.optimizer import build_optimizer, check_groups, set_rates
from headctssl.training.run_log import RunLog
from headctssl.training.run_state import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from headctssl.training.signals import StopFlag, stop_flag
from headctssl.types import Clock, PretrainBatch, StepResult, Views

__all__ = ["Learner", "Stateful", "Trainer"]

_MOST_BAD_STEPS = 10


class Learner(Protocol):
    """What the loop needs of a method or task, which is also an nn.Module."""

    def views(self) -> ViewPlan: ...  # noqa: D102
    def training_step(self, views: Views, clock: Clock) -> StepResult: ...  # noqa: D102
    def before_optimizer_step(self, clock: Clock) -> None: ...  # noqa: D102
    def after_step(self, clock: Clock) -> None: ...  # noqa: D102
    def param_groups(self) -> list[ParamGroup]: ...  # noqa: D102


class Stateful(Protocol):
    """Something beside the learner whose state a resume must restore (plain values and tensors)."""

    def state_dict(self) -> Mapping[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...  # noqa: D102


class _Forward(nn.Module):
    """Lets a training step go through DistributedDataParallel, whose hooks sit on `forward`."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, views: Views, clock: Clock) -> StepResult:
        result: StepResult = self.learner.training_step(views, clock)  # type: ignore[operator]  # a Learner
        return result


@final
class Trainer:
    """Runs optimiser steps ``step .. num_steps - 1`` and keeps a checkpoint from which they go on bit for bit.

    Random numbers need no saving: views and masks are functions of (seed, epoch, sample), and torch's
    generator is seeded anew from (seed, step, rank) before every step.

    Args:
        learner: method or task, built, on any device; moved to `device` here.
        training: steps, rates, precision.
        input_spec: what the views are made to.
        make_batches: start step -> this process's batches from that optimiser step on, ``accumulation`` of
            them per step, each of ``batch_size / world_size / accumulation`` scans (a `BatchLoader`).
        folder: the run folder; ``checkpoint_latest.pt`` lies in it.
        log: where lines go.
        digest: names the settings of the run; a checkpoint with another one is refused.
        device: where to compute.
        process: this process among those of the run.
        on_epoch_end: called after the last step of every epoch and after the last step, before the
            checkpoint; what it returns goes to metrics.jsonl.
        monitor: looks at a batch of the main process, on the device, without gradients; what it returns goes
            to metrics.jsonl.
        monitor_every: steps between two calls of `monitor`; also called after the last step.
        extra: further state to save and restore.

    Raises:
        UsageError: the batch size is not divisible, or precision and device do not go together.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        training: TrainingSettings,
        input_spec: InputSpec,
        make_batches: Callable[[int], Iterable[PretrainBatch]],
        folder: Path,
        log: RunLog,
        digest: str,
        device: torch.device,
        process: Process | None = None,
        on_epoch_end: Callable[[Clock], Mapping[str, float] | None] | None = None,
        monitor: Callable[[PretrainBatch], Mapping[str, float]] | None = None,
        monitor_every: int = 50,
        extra: Stateful | None = None,
    ) -> None:
        self.process = process or Process()
        check_division(training, device, self.process, coupled=bool(getattr(learner, "batch_coupled", False)))
        assert isinstance(learner, nn.Module), "a learner is an nn.Module"
        self.module: nn.Module = learner.to(device)
        self.learner: Learner = learner
        self.training, self.input_spec, self.device = training, input_spec, device
        self.make_batches = make_batches
        self.steps_per_epoch = steps_per_epoch(training.samples_per_epoch, training.batch_size)
        self.folder, self.log, self.digest = folder, log, digest
        self.on_epoch_end, self.extra = on_epoch_end, extra
        self.monitor, self.monitor_every = monitor, monitor_every
        groups = learner.param_groups()
        check_groups(self.module, groups)
        self.parameters = [p for group in groups for p in group.parameters]
        self.optimizer = build_optimizer(groups, training)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self.step = 0
        self.elapsed = 0.0  # seconds of training, over all sessions of the run
        self.bad_in_a_row = 0
        self.told_to_stop = False  # what several processes agreed on in this step

    def run(self) -> None:
        """Train to the last step.

        Raises:
            StoppedError: a signal came; a checkpoint of the last full step was written.
            TrainingError: ten steps in a row had a loss or gradient that is not finite.
        """
        training, learner = self.training, self.learner
        step_through = wrap(
            _Forward(self.module),
            self.process,
            find_unused=bool(getattr(learner, "find_unused_parameters", False)),
        )
        plan = learner.views()
        meter = Meter(self.process, training.batch_size, self.elapsed)
        statistics = running_statistics(self.module)
        self.module.train()
        with (
            stop_flag() as stop,
            _opened(self.make_batches(self.step) if self.step < training.num_steps else ()) as batches,
        ):
            while self.step < training.num_steps:
                passes = [self._next(batches, meter, stop) for _ in range(training.accumulation)]
                clock = Clock(self.step, training.num_steps, passes[0].epoch, self.steps_per_epoch)
                rate = set_rates(self.optimizer, training, self.step)
                torch.manual_seed(derive_seed(training.seed, self.step, self.process.rank, "torch"))
                self.optimizer.zero_grad(set_to_none=True)
                before = [values.clone() for values in statistics]

                for position, batch in enumerate(passes, start=1):
                    views = make_views(to_device(batch, self.device), plan, self.input_spec)
                    last = position == len(passes)
                    with no_sync(step_through, last), self._autocast():
                        result: StepResult = step_through(views, clock)
                    with no_sync(step_through, last):
                        torch.autograd.backward(self.scaler.scale(result.loss / len(passes)))
                    meter.add(result, views)

                self.scaler.unscale_(self.optimizer)
                learner.before_optimizer_step(clock)
                norm = self._clip()
                if finite := self._all_finite(norm, meter.last_losses(), stop):
                    self.scaler.step(self.optimizer)
                    learner.after_step(clock)
                else:
                    for values, old in zip(statistics, before, strict=True):
                        values.copy_(old)
                self.scaler.update()

                self.step += 1
                self._after(passes, clock, rate, norm, meter, finite=finite)
                if self.told_to_stop or (stop and self.process.world_size == 1):
                    self._stop(stop)

    def resume(self) -> bool:
        """Go on from the checkpoint of the folder; False when there is none.

        Raises:
            DataError: it cannot be read.
            TrainingError: it belongs to other settings.
        """
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return False
        state = load_checkpoint(path)
        if state["settings"] != self.digest:
            raise TrainingError(
                f"The checkpoint {path} was written under other settings.",
                got=state["settings"],
                expected=self.digest,
                do="Start again with --overwrite, or under another name with --tag.",
            )
        self.module.load_state_dict(state["learner"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.bad_in_a_row = state["bad_in_a_row"]
        if self.extra is not None:
            self.extra.load_state_dict(state["extra"])
        return True

    def save(self) -> None:
        """Write the checkpoint, on the main process only."""
        if not self.process.is_main:
            return
        state = {
            "format": 1,
            "settings": self.digest,
            "step": self.step,
            "elapsed": self.elapsed,
            "bad_in_a_row": self.bad_in_a_row,
            "learner": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "extra": {} if self.extra is None else self.extra.state_dict(),
        }
        save_checkpoint(self.folder / CHECKPOINT_FILE, state)

    def _next(self, batches: Iterator[PretrainBatch], meter: Meter, stop: StopFlag) -> PretrainBatch:
        try:
            with meter.waiting():
                batch = next(batches)
        except StopIteration:
            raise AssertionError(f"the loader ended at step {self.step} of {self.training.num_steps}") from None
        except Exception:
            # A signal to the whole process group may end the reader processes first. With several processes
            # the others are in the middle of a step, and one alone must not leave as if all had agreed.
            if stop and self.process.world_size == 1:
                self._stop(stop)
            raise
        return batch

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.training.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=types[self.training.precision])

    def _clip(self) -> Tensor:
        limit = self.training.clip_norm
        return torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)

    def _all_finite(self, norm: Tensor, losses: Tensor, stop: StopFlag) -> bool:
        """Whether loss and gradient are finite on every process; also agrees on whether a signal came.

        With several processes a signal that comes later in the step is acted on in the next one: it may have
        reached only one of them, and the others would wait for it.
        """
        bad = ~(torch.isfinite(norm) & torch.isfinite(losses).all())
        if self.process.world_size == 1:
            return not bool(bad)
        told = torch.tensor(1.0 if stop else 0.0, device=self.device)
        flags = reduce_max(torch.stack([bad.float(), told]), self.process).tolist()
        self.told_to_stop = bool(flags[1])
        if self.told_to_stop and not stop:
            stop.name = "a signal to another process"
        return not flags[0]

    def _after(
        self, passes: list[PretrainBatch], clock: Clock, rate: float, norm: Tensor, meter: Meter, *, finite: bool
    ) -> None:
        training = self.training
        if not finite:
            self._count_bad(passes, clock)
            meter.drop_step()
        else:
            self.bad_in_a_row = 0
            meter.keep_step(norm)
        is_last = self.step == training.num_steps
        # Which lines are due must not depend on the process: their means are taken over all of them.
        looks = self.monitor is not None and (is_last or self.step % self.monitor_every == 0)
        ends_epoch = self.on_epoch_end is not None and (is_last or self.step % self.steps_per_epoch == 0)
        found: dict[str, float] = {}
        if looks and self.monitor is not None and self.process.is_main:
            with torch.no_grad(), self._autocast():
                found.update(self.monitor(to_device(passes[-1], self.device)))
        if ends_epoch and self.on_epoch_end is not None:
            found.update(self.on_epoch_end(clock) or {})
        self.module.train()
        self.elapsed = meter.elapsed()
        if looks or ends_epoch or is_last or self.step % training.log_every == 0:
            self.log.metrics({**meter.line(self.step, clock.epoch, rate), **found}, training.num_steps)
        if is_last or self.step % training.checkpoint_every == 0:
            self.save()
            self.log.picture(final=is_last)

    def _count_bad(self, passes: list[PretrainBatch], clock: Clock) -> None:
        self.bad_in_a_row += 1
        samples = ", ".join(str(i) for batch in passes for i in batch.sample_index.tolist())
        self.log.say(
            f"step {clock.step}: loss or gradient is not finite, step skipped "
            f"(seed {self.training.seed}, epoch {clock.epoch}, samples {samples})"
        )
        if self.bad_in_a_row >= _MOST_BAD_STEPS:
            raise TrainingError(
                f"The loss or the gradient was not finite in {_MOST_BAD_STEPS} steps in a row.",
                got=f"steps {clock.step - _MOST_BAD_STEPS + 1} to {clock.step}, see train.log for the samples",
                expected="finite numbers",
                do="Lower training.lr or set training.precision=float32, and start again with --overwrite.",
            )

    def _stop(self, stop: StopFlag) -> None:
        self.save()
        self.log.say(f"stopped by {stop.name} after step {self.step}; checkpoint written")
        raise StoppedError(
            f"The run was stopped by {stop.name} after step {self.step} of {self.training.num_steps}.",
            do="Start the same command again with --continue.",
        )


@contextlib.contextmanager
def _opened(batches: Iterable[PretrainBatch]) -> Iterator[Iterator[PretrainBatch]]:
    """Iterate, and end the reader processes with the block, also after an error whose traceback is kept.

    A traceback keeps the loop's frame and with it the readers; Python would wait for them at exit for ever.
    """
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()
