"""Resolve training: steps 5-8, 10 and 11, the optimiser's side of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from headctssl.contract import InputSpec
from headctssl.errors import UsageError
from headctssl.families import FamilySettings
from headctssl.planning import resolve_speed
from headctssl.planning.budget import estimate
from headctssl.planning.check_schedule import check_schedule
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.machine import Machine
from headctssl.planning.run_settings import Estimate, TrainingSettings, ViewSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings, with_overrides

__all__ = ["MEMORY_SHARE", "StepInputs", "batch", "length", "rate"]

SAMPLE_BUDGET = 2_000_000
"""Scans seen in a whole run: 1,000 epochs x 250 steps x 8 scans of OpenMind (arXiv 2412.17041)."""

MOST_PASSES = 1_000
"""Passes over the scans beyond which a run only repeats itself."""

MOST_HOURS = 24.0
MOST_HOURS_PHANTOM = 10 / 60
FEWEST_STEPS = 20
EPOCH_STEPS = 250
MEMORY_SHARE = 0.8  # of the device; the rest is left to the allocator and to others
_CPU_BATCH = 8
_LARGEST_BATCH = 256  # HeadCT-Foundation's global batch
_CHECKPOINT_MINUTES = 10.0


@dataclass(frozen=True)
class StepInputs:
    """What the estimate of a step needs besides the training settings."""

    encoder: FamilySettings
    input_spec: InputSpec
    views: ViewSettings
    method_name: str
    method: Settings
    read_shape: tuple[int, int, int]
    machine: Machine
    world_size: int
    classes: int = 0  # that the method learns to segment

    def with_method(self, method: Settings) -> StepInputs:
        """The same with other method settings."""
        return replace(self, method=method)

    def cost(self, training: TrainingSettings) -> Estimate:
        """The estimate for these training settings."""
        return estimate(
            encoder=self.encoder,
            input_spec=self.input_spec,
            views=self.views,
            training=training,
            method_name=self.method_name,
            method=self.method,
            read_shape=self.read_shape,
            machine=self.machine,
            world_size=self.world_size,
            classes=self.classes,
        )


def batch(
    ledger: Ledger,
    asked: Asked,
    step: StepInputs,
    defaults: OptimizerDefaults,
    *,
    num_cases: int,
    batch_coupled: bool,
) -> TrainingSettings:
    """Steps 5-8: precision, workers, batch, accumulation; the other fields are the method's published ones."""
    wanted = _wanted(asked, defaults)
    draft = wanted.model_copy(
        update={
            "precision": _precision(ledger, asked, wanted, step.machine),
            "num_workers": _workers(ledger, asked, wanted, step.machine),
            "accumulation": 1,
        }
    )
    draft = resolve_speed.lines(ledger, asked, draft, step.machine)

    # 7. Activation checkpointing, then batch.
    given = asked.count("training.batch_size")

    def fits(scans: int, again: bool) -> bool:
        return _fits(step, draft.model_copy(update={"batch_size": scans * step.world_size, "recompute": again}))

    per_process = None if given is None else max(1, given // step.world_size)
    draft = resolve_speed.recompute(
        ledger, asked, draft, step.encoder, scans=per_process, batch_coupled=batch_coupled, fits=fits
    )
    fitting = _fitting_batch(step, draft, num_cases)
    size = ledger.take(
        "batch size",
        fitting,
        given,
        "CPU: 8; else the largest power of two up to 256 that fits 80 % of the memory and a quarter of the scans, "
        "at least 8; never more than the scans there are",
        "HeadCT-Foundation's batch of 256 as the upper end; at least 4 steps per pass over the scans",
        f"{num_cases} scans, {step.machine.memory_gb:g} GB on {step.machine.device}, {step.world_size} process(es)",
    )
    # 8. Accumulation.
    accumulation = _accumulation(ledger, asked, step, draft, size, batch_coupled)
    return draft.model_copy(update={"batch_size": size, "accumulation": accumulation})


def _wanted(asked: Asked, defaults: OptimizerDefaults) -> TrainingSettings:
    """The method's published settings with the user's changes; every name and type is checked here."""
    published = TrainingSettings(
        num_steps=1,
        samples_per_epoch=1,
        batch_size=1,
        optimizer=defaults.optimizer,
        lr=defaults.lr,
        schedule=defaults.schedule,
        weight_decay=defaults.weight_decay,
        weight_decay_end=defaults.weight_decay_end,
        betas=defaults.betas,
        momentum=defaults.momentum,
        clip_norm=defaults.clip_norm,
    )
    changes = {k: v for k, v in asked.section("training").items() if k != "num_epochs"}
    return with_overrides(published, changes, "training.")


def _precision(ledger: Ledger, asked: Asked, wanted: TrainingSettings, machine: Machine) -> str:
    """Step 5. Precision.

    Rule: bfloat16 where the device does it well, else float16 on CUDA, else float32. Source: measured on this machine
    just now.
    """
    best: Literal["bf16", "fp16", "float32"] = "bf16" if machine.bf16 else ("float32" if machine.is_cpu else "fp16")
    return ledger.take(
        "precision",
        best,
        wanted.precision if asked.has("training.precision") else None,
        "bf16 where the device does it well, else fp16 on CUDA, else float32",
        "measured at the start of this command",
        f"{machine.device}: {machine.matmul_gflops_float32:.0f} GFLOP/s float32, {machine.matmul_gflops_bf16:.0f} bf16",
    )


def _workers(ledger: Ledger, asked: Asked, wanted: TrainingSettings, machine: Machine) -> int:
    """Step 6. Workers.

    Rule: readers only decompress int16, so one core less than there are, at most 8 per process; on a CPU, where the
    cores also train, one.
    """
    spare = max(0, machine.cores - 1)
    return ledger.take(
        "reader processes",
        min(1, spare) if machine.is_cpu else min(8, spare),
        wanted.num_workers if asked.has("training.num_workers") else None,
        "one core less than there are, at most 8; on a CPU at most 1, none on a single core",
        "readers only decompress int16, about 10 ms a scan (measured)",
        f"{machine.cores} cores, training on {machine.device}",
    )


def _fits(step: StepInputs, training: TrainingSettings) -> bool:
    return step.cost(training).memory_gb <= MEMORY_SHARE * step.machine.memory_gb


def _fitting_batch(step: StepInputs, draft: TrainingSettings, num_cases: int) -> int:
    least, processes = _CPU_BATCH, step.world_size
    most = least if step.machine.is_cpu else min(_LARGEST_BATCH, max(least, num_cases // 4))
    size = processes  # the limits are those of the whole batch, which the processes share
    while size * 2 <= most and _fits(step, draft.model_copy(update={"batch_size": size * 2})):
        size *= 2
    # Fewer scans than the batch: no scan twice in a step, but every process has at least one.
    return max(processes, min(size, num_cases - num_cases % processes))


def _accumulation(
    ledger: Ledger, asked: Asked, step: StepInputs, draft: TrainingSettings, size: int, batch_coupled: bool
) -> int:
    """Step 8. Accumulation.

    Rule: the fewest passes whose share of the batch fits the memory; 1 where it all fits. Refused
    for losses that couple the samples of a batch: what they compare would be torn apart.
    """
    per_process, uneven = divmod(size, step.world_size)
    if uneven:
        raise UsageError(
            "The batch cannot be shared evenly by the processes.",
            got=f"training.batch_size={size} for {step.world_size} processes",
            expected=f"a multiple of {step.world_size}",
            do=f"Set training.batch_size={max(1, per_process) * step.world_size}.",
        )
    needed = 1
    while needed < per_process and (
        per_process % needed or not _fits(step, draft.model_copy(update={"batch_size": size, "accumulation": needed}))
    ):
        needed += 1
    given = asked.count("training.accumulation")
    if given is not None and per_process % given:
        raise UsageError(
            "The batch cannot be divided into so many passes.",
            got=f"training.accumulation={given} for {per_process} scans per process",
            expected=f"a divisor of {per_process}",
            do="Choose another accumulation or batch size.",
        )
    passes = given if given is not None else needed
    if passes > 1 and batch_coupled:
        fits = max(1, per_process // needed) * step.world_size
        raise UsageError(
            f"{step.method_name} compares the scans of a batch with each other, so a batch cannot be accumulated.",
            got=f"a batch of {size} in {passes} passes",
            expected="the whole batch in one pass",
            do=f"Set training.batch_size={fits}, use more processes, or a method whose loss is per scan (mae).",
        )
    return ledger.take(
        "accumulation",
        needed,
        given,
        "the fewest passes whose share of the batch fits 80 % of the memory",
        "planning.budget",
        f"batch {size} on {step.world_size} process(es) with {step.machine.memory_gb:g} GB",
    )


def rate(
    ledger: Ledger,
    asked: Asked,
    training: TrainingSettings,
    defaults: OptimizerDefaults,
    kind: Literal["transformer", "cnn"],
) -> TrainingSettings:
    """Step 10. Learning rate.

    Rule: the published rate, scaled with the batch as published; but AdamW below its reference
    batch by the square root. Source: the method's paper; arXiv 2205.10287 (adaptive optimisers keep
    their dynamics under the square-root rule; the linear rule starves small batches).
    """
    size = training.batch_size
    peak, how = defaults.peak_lr(size), f"{defaults.lr_rule} rule"
    if defaults.optimizer == "adamw" and defaults.lr_rule == "linear" and size < defaults.lr_reference_batch:
        peak = defaults.lr * (size / defaults.lr_reference_batch) ** 0.5
        how = "square-root rule below the reference batch"
    peak = float(f"{peak:.3g}")
    chosen = ledger.take(
        "learning rate",
        peak,
        asked.real("training.lr"),
        "the published rate scaled with the batch; AdamW below the reference batch by the square root",
        f"{defaults.source or 'the method'}; arXiv 2205.10287",
        f"{defaults.lr:g} at batch {defaults.lr_reference_batch} for a {kind}, {how}, batch {size}",
    )
    least = training.min_lr if asked.has("training.min_lr") else chosen * defaults.min_lr_share
    return training.model_copy(update={"lr": chosen, "min_lr": least})


def length(
    ledger: Ledger,
    asked: Asked,
    training: TrainingSettings,
    step: StepInputs,
    defaults: OptimizerDefaults,
    *,
    num_cases: int,
    profile: str,
) -> tuple[TrainingSettings, Estimate]:
    """Step 11. Length, warm-up, checkpoints, and the estimate.

    Rule: 2,000,000 scans in all, at most 1,000 passes over the scans there are, cut to 24 hours on
    this machine by the estimate (10 minutes for phantoms and templates), at least 20 steps.
    Source: OpenMind's schedule (arXiv 2412.17041). An epoch is max(scans, 250 batches).

    Raises:
        UsageError: a length, the warm-up or the last rate that the user set does not fit.
    """
    size = training.batch_size
    per_epoch = asked.count("training.samples_per_epoch") or max(num_cases, EPOCH_STEPS * size)
    cost = step.cost(training)
    budget = min(SAMPLE_BUDGET, MOST_PASSES * num_cases)
    hours = MOST_HOURS if profile == "real" else MOST_HOURS_PHANTOM
    by_budget = max(1, budget // size)
    by_time = int(hours * 3600 / max(cost.step_seconds, 1e-9))
    derived = _round_down(max(FEWEST_STEPS, min(by_budget, by_time)))
    given = asked.count("training.num_steps")
    epochs = asked.real("training.num_epochs")
    if epochs is not None:
        # The loader's epochs are whole batches (`loading.sampler.steps_per_epoch`), the last one filled up.
        given = max(1, round(epochs * -(-per_epoch // size)))
    limit = f"{hours:g} h" if profile == "real" else "10 min"
    because = f"{budget} scans are {by_budget} steps; {cost.step_seconds:.2g} s a step allow {by_time} in {limit}"
    steps = ledger.take(
        "steps",
        derived,
        given,
        "2,000,000 scans, at most 1,000 passes, at most 24 h on this machine (10 min for phantoms and templates)",
        "OpenMind's 1,000 x 250 x 8 (arXiv 2412.17041); time by planning.budget",
        because,
    )
    warmup = asked.count("training.warmup_steps", least=0)
    every = max(1, min(steps, round(_CHECKPOINT_MINUTES * 60 / max(cost.step_seconds, 1e-9))))
    changes: dict[str, int] = {
        "num_steps": steps,
        "samples_per_epoch": per_epoch,
        "warmup_steps": round(defaults.warmup_share * steps) if warmup is None else warmup,
    }
    if not asked.has("training.checkpoint_every"):
        changes["checkpoint_every"] = every
    training = training.model_copy(update=changes)
    check_schedule(training)
    ledger.note(
        "warm-up",
        f"{training.warmup_steps} steps",
        f"{defaults.warmup_share:.0%} of the steps as published",
        defaults.source or "the method",
        f"{steps} steps" if warmup is None else "you set it",
    )
    return training, step.cost(training)


def _round_down(steps: int) -> int:
    """Two significant digits: the measured throughput is no more exact than that."""
    unit = int(10 ** max(0, len(str(steps)) - 2))
    return steps // unit * unit
