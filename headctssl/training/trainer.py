"""Trainer: the loop. A learner (method or task) is passed in; this class is never subclassed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from headctssl.contract import InputSpec
from headctssl.errors import StoppedError
from headctssl.loading.sampler import steps_per_epoch
from headctssl.loading.views import make_views
from headctssl.networks.batch_norm import running_statistics
from headctssl.planning.run_settings import TrainingSettings
from headctssl.seeding import derive_seed
from headctssl.training.accelerate import accelerate
from headctssl.training.batches import opened, to_device
from headctssl.training.deterministic import deterministic_mode
from headctssl.training.distributed import Process, barrier, check_division, no_sync, reduce_max, settle, wrap
from headctssl.training.learner import Learner, Stateful, Watcher
from headctssl.training.meter import Meter
from headctssl.training.nonfinite import SkippedSteps
from headctssl.training.optimizer import build_optimizer, check_groups, set_rates, step_unless
from headctssl.training.process_memory import keep_freed_memory
from headctssl.training.run_log import RunLog
from headctssl.training.run_state import Checkpoints
from headctssl.training.signals import GO_ON, StopFlag, stop_flag
from headctssl.training.step_flags import StepFlags
from headctssl.types import Clock, PretrainBatch, StepResult, Views

__all__ = ["Trainer"]


class _Forward(nn.Module):
    """Lets a training step go through DistributedDataParallel, whose hooks sit on `forward`."""

    def __init__(self, module: nn.Module, training_step: Callable[[Views, Clock], StepResult]) -> None:
        super().__init__()
        self.module, self.training_step = module, training_step

    def forward(self, views: Views, clock: Clock) -> StepResult:
        return self.training_step(views, clock)


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
        monitor: watches the run, without gradients; what it finds goes to metrics.jsonl.
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
        monitor: Watcher | None = None,
        extra: Stateful | None = None,
    ) -> None:
        self.process = process or Process()
        check_division(training, device, self.process, coupled=bool(getattr(learner, "batch_coupled", False)))
        assert isinstance(learner, nn.Module), "a learner is an nn.Module"
        self.module: nn.Module = learner.to(device)
        self.learner: Learner = learner
        self.training, self.input_spec, self.device = training, input_spec, device
        self.make_batches = make_batches
        for line in accelerate(self.module, training, device):
            log.say(line)
        self.steps_per_epoch = steps_per_epoch(training.samples_per_epoch, training.batch_size)
        self.folder, self.log = folder, log
        self.checkpoints = Checkpoints(
            folder, digest, training.rewind_every if training.on_nonfinite == "rewind" else None
        )
        self.on_epoch_end, self.extra = on_epoch_end, extra
        self.monitor = monitor
        groups = learner.param_groups()
        check_groups(self.module, groups)
        self.parameters = [p for group in groups for p in group.parameters]
        self.optimizer = build_optimizer(groups, training)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        # On a GPU the optimiser is launched before the loop knows whether the step is finite, so that the device has
        # work while the loop reads it; fp16's scaler has the same switch of its own, for gradients alone.
        self.switched = device.type == "cuda" and not self.scaler.is_enabled()
        self.meter = Meter(self.process, training.batch_size)
        self.skips = SkippedSteps(training, log)
        self.step = 0
        self.last: tuple[Tensor, Tensor]  # losses (accumulation,) and gradient norm of the last step
        self.told_to_stop = False  # what several processes agreed on in this step

    def run(self, until: int | None = None) -> None:
        """Train to the last step.

        Args:
            until: end before this step instead, without a checkpoint.

        Raises:
            StoppedError: a signal came; a checkpoint of the last full step was written.
            TrainingError: too many steps in a row had a loss or gradient that is not finite, the checkpoint cannot be
                written, or an operation has no deterministic form and must have one.
        """
        with deterministic_mode(self.training.deterministic), stop_flag() as stop:
            self._run(self.training.num_steps if until is None else min(until, self.training.num_steps), stop)

    def _run(self, end: int, stop: StopFlag) -> None:
        training, learner = self.training, self.learner
        if self.device.type == "cpu":
            keep_freed_memory()
        step_through = wrap(
            _Forward(self.module, learner.training_step),
            self.process,
            find_unused=bool(getattr(learner, "find_unused_parameters", False)),
        )
        scheduled_rate = getattr(learner, "scheduled_rate", None)  # a learner whose rate has phases of its own
        plan = learner.views()
        meter = self.meter
        meter.start()
        statistics = running_statistics(self.module)
        self._look_first()
        self.module.train()
        with opened(self.make_batches(self.step) if self.step < end else ()) as batches:
            while self.step < end:
                passes = [self._next(batches, stop) for _ in range(training.accumulation)]
                clock = Clock(self.step, training.num_steps, passes[0].epoch, self.steps_per_epoch)
                planned = None if scheduled_rate is None else scheduled_rate(self.step)
                rate = set_rates(self.optimizer, training, self.step, planned)
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
                self.last = meter.last_losses(), norm
                flags = self._flags(norm, meter.last_losses(), stop)
                if self.switched:
                    step_unless(self.optimizer, flags.bad)
                if finite := self._all_finite(flags, stop):
                    if not self.switched:
                        self.scaler.step(self.optimizer)
                    learner.after_step(clock)
                else:
                    for values, old in zip(statistics, before, strict=True):
                        values.copy_(old)
                self.scaler.update()

                self.step += 1
                if finite:
                    meter.keep_step(norm)
                    self.skips.taken()
                else:
                    meter.drop_step()
                    if self.skips.skipped(clock):
                        self._rewind(clock)
                self._after(passes, clock, rate)
                if self.told_to_stop or (stop and self.process.world_size == 1):
                    self._stop(stop)

    def resume(self) -> bool:
        """Go on from the checkpoint of the folder; False when there is none.

        Raises:
            DataError: it cannot be read.
            TrainingError: it belongs to other settings.
        """
        state = self.checkpoints.read()
        if state is None:
            return False
        self._take_over(state)
        self.step, self.meter.before, self.skips.rewinds = state["step"], state["elapsed"], state["rewinds"]
        self.meter.load_state_dict({name: values.to(self.device) for name, values in state["meter"].items()})
        if self.extra is not None:
            self.extra.load_state_dict(state["extra"])
        if self.process.is_main:
            self.checkpoints.keep()  # the run may have been killed between writing it and this
        return True

    def save(self) -> None:
        """Write the checkpoint, on the main process only; every process must call it.

        Not after a step that was skipped: weights that gave no finite loss are not worth going back to. Going on
        from the one before repeats the steps since then, bit for bit.

        Raises:
            TrainingError: it cannot be written; the one before is as it was.
        """
        meter = self.meter.state_dict()
        if self.process.is_main:
            self._write(meter)

    def _write(self, meter: Mapping[str, Tensor]) -> None:
        if self.skips.in_a_row:
            return
        self.checkpoints.write(
            {
                "step": self.step,
                "elapsed": self.meter.elapsed(),
                "rewinds": self.skips.rewinds,
                "learner": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "meter": meter,
                "extra": {} if self.extra is None else self.extra.state_dict(),
            }
        )

    def _take_over(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["learner"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _rewind(self, clock: Clock) -> None:
        """Go back to the weights of the last good checkpoint, and on with the next scans."""
        barrier(self.process)  # the main process may still write it
        state = self.checkpoints.read_to_rewind()
        self._take_over(state)
        self.skips.rewound(clock, back_to=state["step"])

    def _next(self, batches: Iterator[PretrainBatch], stop: StopFlag) -> PretrainBatch:
        try:
            with self.meter.waiting():
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

    def _flags(self, norm: Tensor, losses: Tensor, stop: StopFlag) -> StepFlags:
        """Whether loss or gradient are not finite, and whether a signal came, on any process; on the device."""
        bad = ~(torch.isfinite(norm) & torch.isfinite(losses).all())
        told = torch.full_like(norm, 1.0 if stop else 0.0)
        return StepFlags(reduce_max(torch.stack([bad.float(), told.float()]), self.process))

    def _all_finite(self, flags: StepFlags, stop: StopFlag) -> bool:
        """Whether loss and gradient are finite on every process; also agrees on whether a signal came.

        With several processes a signal that comes later in the step is acted on in the next one: it may have
        reached only one of them, and the others would wait for it.
        """
        bad, told = flags.read()
        if self.process.world_size > 1:
            self.told_to_stop = told
            if told and not stop:
                stop.name = "a signal to another process"
        return not bad

    def _look_first(self) -> None:
        """What the monitor finds before any step was taken, as the line of step 0."""
        if self.step or self.monitor is None:
            return
        with torch.no_grad(), self._autocast():
            found = self.monitor.first()
        if found:
            rate = set_rates(self.optimizer, self.training, 0)
            self.log.metrics({**self.meter.line(0, 0, rate), **found}, self.training.num_steps)

    def _after(self, passes: list[PretrainBatch], clock: Clock, rate: float) -> None:
        training = self.training
        is_last = self.step == training.num_steps
        # Which lines are due must not depend on the process: their means are taken over all of them.
        looks = self.monitor is not None and (is_last or self.monitor.due(self.step))
        ends_epoch = self.on_epoch_end is not None and (is_last or self.step % self.steps_per_epoch == 0)
        found: dict[str, float] = {}
        if looks and self.monitor is not None:
            with torch.no_grad(), self._autocast():
                found.update(self.monitor.look(self.step, passes[-1], self.last[1]))
        if ends_epoch and self.on_epoch_end is not None:
            found.update(self.on_epoch_end(clock) or {})
        self.module.train()
        if looks or ends_epoch or is_last or self.step % training.log_every == 0:
            line = {**self.meter.line(self.step, clock.epoch, rate), **found}
            self.log.metrics(line, training.num_steps)
            if self.monitor is not None:
                self.monitor.judge(line, look=looks)
        if is_last or self.step % training.checkpoint_every == 0 or self.checkpoints.due(self.step):
            self.save()
            self.log.picture(final=is_last)

    def _stop(self, stop: StopFlag) -> None:
        meter = self.meter.state_dict()
        # Nobody leaves before the checkpoint is written: torchrun ends the others as soon as one has left.
        settle(lambda: self._write(meter), self.process)
        kept = "no checkpoint yet" if self.checkpoints.step is None else f"checkpoint of step {self.checkpoints.step}"
        self.log.say(f"stopped by {stop.name} after step {self.step}; {kept}")
        raise StoppedError(
            f"The run was stopped by {stop.name} after step {self.step} of {self.training.num_steps}.",
            do=GO_ON,
        )
