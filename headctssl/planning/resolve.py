"""Resolve: plans x method x encoder x machine -> run settings, in numbered, sourced steps.

`resolve` is pure: it reads no file and asks no machine. Each step below has its rule in its
docstring; every value it takes ends up in `decisions` with the reason, and what the user set with
`--set` is taken as it is and said to be the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from headctssl.errors import UsageError
from headctssl.planning import (
    resolve_batch,
    resolve_method,
    resolve_monitor,
    resolve_targets,
    resolve_training,
    resolve_views,
)
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.machine import Machine, detect_machine
from headctssl.planning.plans import ConfigurationPlan, Plans, changed_encoder
from headctssl.planning.resolve_preset import choose_preset
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults, encoder_preset, pair_refusal
from headctssl.settings import JsonValue, Settings

__all__ = ["Machine", "detect_machine", "print_decisions", "resolve"]

Kind = Literal["transformer", "cnn"]


@dataclass(frozen=True)
class _Setting:
    """What the steps need of the situation; none of them changes it."""

    plans: tuple[Plans, ...]
    configuration: ConfigurationPlan
    machine: Machine
    num_cases: int
    world_size: int


def resolve(
    plans: tuple[Plans, ...],
    *,
    method_name: str,
    method_settings: type[Settings],
    optimizer: OptimizerDefaults | Callable[[Kind], OptimizerDefaults],
    config: str | None,
    overrides: Mapping[str, JsonValue],
    machine: Machine,
    num_train_cases: int,
    pretrain_on: Literal["train", "all"] = "train",
    init: str = "scratch",
    max_case_shape: tuple[int, int, int] | None = None,
    max_head_shape: tuple[int, int, int] | None = None,
    batch_coupled: bool = False,
    world_size: int = 1,
    segmentation_classes: tuple[str, ...] = (),
    num_labelled: int = 0,
    why_unlabelled: str = "no labels",
) -> RunSettings:
    """Decide everything a pretraining run needs.

    Args:
        plans: the plans of each dataset; the first one's storage rule and input hold for all.
        method_name: name in `METHOD_FACTS`.
        method_settings: the method's settings class; its defaults are the published numbers.
        optimizer: the method's optimiser defaults, or its `optimizer_defaults(kind)`.
        config: encoder preset, or None to let step 1 choose.
        overrides: `section.key` -> value; sections training, views, method, encoder, monitor.
            `training.num_epochs` is turned into `training.num_steps`.
        machine: what the run has to work with.
        num_train_cases: cases the run will train on.
        pretrain_on: `train`, or `all` when the test cases are used too.
        init: `scratch`, or the weights hash of the checkpoint to begin from.
        max_case_shape: largest stored case (z, y, x) in voxels; from the plans' head extent when None.
        max_head_shape: largest head box (z, y, x) in voxels of storage; as large as a case when None.
        batch_coupled: the loss couples the samples of a batch: accumulation above 1 is refused.
        world_size: processes that share the batch.
        segmentation_classes: what the method learns to segment; empty for a method without.
        num_labelled: cases outside the test set by which probes can watch the run.
        why_unlabelled: a sentence, when there are none.

    Raises:
        UsageError: a name or setting is unknown, both lengths are given, the batch cannot be
            divided, accumulation is asked of a batch-coupled method, or K is too large for the batch.
    """
    if num_train_cases < 1:
        raise UsageError(
            "There is no case to train on.",
            got="0 stored training cases",
            expected="at least 1",
            do="See preprocessing_report.json and splits.json, or use --pretrain_on all.",
        )
    asked = Asked(overrides)
    ledger = Ledger()
    first = plans[0]

    # 1. Configuration: which encoder preset.
    preset = choose_preset(ledger, first, method_name, config, machine, num_train_cases)
    refusal = pair_refusal(method_name, preset)
    if refusal is not None:
        raise UsageError(
            "This method and this encoder cannot be trained together.",
            got=f"-m {method_name} -c {preset}",
            expected=refusal,
            do="headct_pretrain --list shows every pair that works.",
        )
    configuration = first.configuration(preset)
    ledger.note(
        "input",
        f"{_text(configuration.input.shape)} voxels at {_text(configuration.input.spacing_mm)} mm, "
        f"{configuration.input.rule}",
        "the plans' fit of the preset to the heads of the dataset",
        "plans.json",
        f"plans '{first.plans_name}' of {first.dataset_name}",
    )
    if len({p.storage.with_masks(("head",)).digest() for p in plans}) > 1:
        ledger.note(
            "storage",
            first.storage.storage_id,
            "the first dataset's storage rule holds for all datasets of a run",
            "one contract per checkpoint",
            "the plans of the datasets differ; the others are stored once more under this rule",
        )

    # 2. Encoder: the preset with the planned input, then the user's changes.
    encoder = changed_encoder(configuration, asked.section("encoder"))

    # 3-4. Views, and how much of a scan is read for them.
    views = resolve_views.views(ledger, asked, method_name, configuration)
    read_shape = resolve_views.read_shape(ledger, first, configuration, max_case_shape, max_head_shape)

    # 5-8. Precision, workers, batch, accumulation.
    method = resolve_method.sizes(asked, method_settings, encoder, first.profile)
    defaults = optimizer if isinstance(optimizer, OptimizerDefaults) else optimizer(encoder_preset(preset).kind)
    step = resolve_training.StepInputs(
        encoder,
        configuration.input,
        views,
        method_name,
        method,
        read_shape,
        machine,
        world_size,
        len(segmentation_classes),
    )
    training = resolve_training.batch(
        ledger, asked, step, defaults, num_cases=num_train_cases, batch_coupled=batch_coupled
    )

    # 9. What the method must change at this batch: prototypes, weights.
    method = resolve_batch.for_batch(
        ledger,
        asked,
        method,
        batch_size=training.batch_size,
        accumulation=training.accumulation,
        num_cases=num_train_cases,
    )
    step = step.with_method(method)

    # 10-11. Rate and length.
    training = resolve_training.rate(ledger, asked, training, defaults, encoder_preset(preset).kind)
    training, cost = resolve_training.length(
        ledger, asked, training, step, defaults, num_cases=num_train_cases, profile=_profile(plans)
    )

    # 12-14. What the method must change at this length: momentum of the teacher and of the centre, the queue.
    method = resolve_method.for_length(ledger, asked, method, training)
    method = resolve_targets.queue(ledger, asked, method, rows=training.batch_size * views.global_count)

    # 15. What is watched while it trains.
    monitor = resolve_monitor.monitor(
        ledger,
        asked,
        step.with_method(method),
        training,
        cost,
        num_labelled=num_labelled,
        why_unlabelled=why_unlabelled,
    )
    return RunSettings(
        dataset_ids=tuple(p.dataset_id for p in plans),
        plans_name=first.plans_name,
        method_name=method_name,
        config=preset,
        init=init,
        pretrain_on=pretrain_on,
        storage=first.storage,
        input=configuration.input,
        encoder=encoder,
        read_shape=read_shape,
        training=training,
        views=views,
        monitor=monitor,
        method=method,
        segmentation_classes=segmentation_classes,
        estimate=cost,
        decisions=ledger.decisions,
    )


def print_decisions(run: RunSettings, *, quiet: bool = False) -> None:
    """Print the table decision, value, because, and the estimate."""
    from headctssl.console import say, table

    rows = [(d.what, d.value, d.because) for d in run.decisions]
    title = f"{run.method_name} with {run.config}: what was decided, and why"
    table(title, ("decision", "value", "because"), rows, quiet=quiet)
    cost = run.estimate
    say(
        f"estimate: {cost.step_seconds:.2g} s per step, {cost.scans_per_second:.3g} scans/s, "
        f"{cost.memory_gb:.3g} GB, {_duration(cost.hours)} for {run.training.num_steps} steps",
        quiet=quiet,
    )


def _profile(plans: tuple[Plans, ...]) -> str:
    """'real' as soon as one dataset is."""
    kinds = {p.profile for p in plans}
    return "real" if "real" in kinds else sorted(kinds)[0]


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in values)


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
