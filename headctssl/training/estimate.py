"""Estimate: what a pretraining run would decide, need and take, measured over a few steps or modelled."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from headctssl.console import name_files
from headctssl.errors import HeadCTSSLError, UsageError
from headctssl.planning.decisions import Ledger
from headctssl.planning.machine import Machine
from headctssl.planning.resolve import print_decisions
from headctssl.planning.resolve_preset import choose_preset
from headctssl.planning.resolve_training import MEMORY_SHARE
from headctssl.planning.run_settings import RunSettings
from headctssl.planning.suggest import Change, fits, needed_scans, suggest
from headctssl.settings import JsonValue, parse_overrides, write_json
from headctssl.training.distributed import Process, current_process
from headctssl.training.estimate_report import EstimateReport, print_report, suggestion_of
from headctssl.training.estimate_target import Target, choose_target
from headctssl.training.measure import Measured, measure, steps_to_measure
from headctssl.training.pretrain_call import (
    Opened,
    PretrainCall,
    Request,
    as_ids,
    asked_preset,
    choose_device,
    open_call,
    open_request,
    resolve_request,
)
from headctssl.training.pretrain_parts import make_batches

__all__ = ["estimate", "plan_run"]

_SCANS_READ = 6
_MEASURED_SHARE = 0.95  # of the memory that a measured run may take


def plan_run(
    dataset_ids: Sequence[int] | int,
    method: str,
    *,
    config: str | None = None,
    plans_name: str = "plans",
    init: Path | str | None = None,
    pretrain_on: Literal["train", "all"] = "train",
    where: str | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    overrides: Sequence[str] = (),
) -> RunSettings:
    """The settings that `pretrain` with the same arguments would have, with the modelled estimate; nothing is run.

    Raises:
        HeadCTSSLError: as `pretrain`, before its first step.
    """
    process = current_process()
    request = Request(
        as_ids(dataset_ids), method, config, plans_name, init, pretrain_on, num_workers, tuple(overrides), where
    )
    return open_call(request, choose_device(device, process), process).settings


def estimate(
    dataset_ids: Sequence[int] | int,
    method: str,
    *,
    config: str | None = None,
    plans_name: str = "plans",
    init: Path | str | None = None,
    tag: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    pretrain_on: Literal["train", "all"] = "train",
    where: str | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    overrides: Sequence[str] = (),
    gpu_memory: float | None = None,
    gpus: int | None = None,
    gpu_tflops: float | None = None,
    output: Path | None = None,
    quiet: bool = False,
) -> EstimateReport:
    """Say what `pretrain` with the same arguments would decide, need and take.

    A few steps are run where the device is here; nothing of them is kept. Otherwise the run is modelled.

    Args:
        dataset_ids: and all others up to `overrides` as for `pretrain`; `tag`, `resume` and `overwrite` change nothing,
            so that a call can be turned into its estimate as it is.
        gpu_memory: GB of the GPUs the run is meant for, when they are not those here.
        gpus: number of GPUs the run is meant for.
        gpu_tflops: their dense bfloat16 peak; assumed from the memory when None.
        output: a file for the numbers as JSON, or a folder for ``estimate.json``.
        quiet: print errors only.

    Raises:
        HeadCTSSLError: as `pretrain`, before its first step; but a batch that does not fit is reported.
    """
    del tag, resume, overwrite
    request = Request(
        as_ids(dataset_ids), method, config, plans_name, init, pretrain_on, num_workers, tuple(overrides), where
    )
    target = choose_target(device, gpu_memory, gpus, gpu_tflops)
    opened, settings, too_large = _planned(request, target)
    print_decisions(settings, quiet=quiet)
    report = _report(request, opened, settings, target, too_large)
    print_report(report, quiet=quiet)
    if output is not None:
        path = output if output.suffix else output / "estimate.json"
        write_json(path, report)
        name_files([path], quiet=quiet)
    return report


def _planned(request: Request, target: Target) -> tuple[Opened, RunSettings, str]:
    """The run as asked for; one that is refused for its memory is planned without that limit, and why is said."""
    opened = open_request(request)
    try:
        return opened, resolve_request(request, opened, target.machine, target.gpus), ""
    except UsageError as error:
        try:
            settings = _planned_without_limit(request, opened, target)
        except UsageError:
            raise error from None  # it is not the memory
        return opened, settings, error.what


def _planned_without_limit(request: Request, opened: Opened, target: Target) -> RunSettings:
    """The run if memory were no limit, with the encoder that it takes where memory is one."""
    ledger, data = Ledger(), opened.data
    asked = asked_preset(request, opened)
    preset = choose_preset(ledger, data.plans[0], request.method, asked, target.machine, data.num_cases)
    roomy = target.machine.model_copy(update={"memory_gb": 1e9})
    settings = resolve_request(replace(request, config=preset), opened, roomy, target.gpus)
    others = (decision for decision in settings.decisions if decision.what != "configuration")
    return settings.model_copy(update={"decisions": (*ledger.decisions, *others)})


def _report(request: Request, opened: Opened, settings: RunSettings, target: Target, too_large: str) -> EstimateReport:
    """Measure or model, and find what would have to change."""
    machine, training, model = target.machine, settings.training, settings.estimate
    found, why = _measured(request, settings, target, refused=bool(too_large))
    assumptions = target.assumptions
    if found.steps:
        seconds, wait, memory = found.step_seconds, found.data_wait, found.memory_gb
    else:
        reading = _read_seconds(opened, settings)
        seconds, wait = _with_reading(settings, reading, target.gpus)
        memory = model.memory_gb
        assumptions = (*assumptions, f"{1000 * reading:.3g} ms to read a scan, as measured here in one process")
    given = parse_overrides(request.overrides).get("training.batch_size")
    needed = needed_scans(
        settings.method_name, opened.data.num_cases, target.gpus, given if isinstance(given, int) else None
    )
    limits = _limits(found, settings, machine, needed)
    if too_large:
        limits.append(too_large)
    changes = _changes(request, opened, settings, target, needed) if limits else []
    hours = seconds * training.num_steps / 3600
    return EstimateReport(
        method=settings.method_name,
        config=settings.config,
        dataset_ids=settings.dataset_ids,
        num_scans=opened.data.num_cases,
        device=machine.device,
        gpus=target.gpus,
        measured_steps=found.steps,
        why_modelled=why,
        assumptions=assumptions,
        batch_size=training.batch_size,
        accumulation=training.accumulation,
        precision=training.precision,
        num_workers=training.num_workers,
        num_steps=training.num_steps,
        step_seconds=seconds,
        scans_per_second=training.batch_size / seconds,
        data_wait=wait,
        memory_gb=memory,
        memory_available_gb=machine.memory_gb,
        fits=not limits,
        why_not="; ".join(limits),
        hours=hours,
        gpu_hours=None if machine.is_cpu else hours * target.gpus,
        modelled=model,
        suggestions=tuple(suggestion_of(change, settings.config) for change in changes),
    )


def _measured(request: Request, settings: RunSettings, target: Target, *, refused: bool) -> tuple[Measured, str]:
    """A few steps of one process with its share of the batch, where they can be run; else why not."""
    if target.device is None:
        return Measured(), target.why_modelled
    if refused or not fits(settings, target.machine):
        return Measured(), "by the model it does not fit"
    steps = steps_to_measure(settings.estimate.step_seconds)
    if not steps:
        return Measured(), "a few steps would take minutes"
    share = settings.training.model_copy(update={"batch_size": settings.training.batch_size // target.gpus})
    found = measure(request, settings.model_copy(update={"training": share}), target.device, steps)
    return found, found.failure


def _limits(found: Measured, settings: RunSettings, machine: Machine, needed: int) -> list[str]:
    """What is too much or too little, a text each."""
    limits = []
    memory, share = settings.estimate.memory_gb, MEMORY_SHARE
    if found.steps:
        memory, share = found.memory_gb, _MEASURED_SHARE
    if memory > share * machine.memory_gb:
        limits.append(f"{memory:.3g} GB, where {share:.0%} of {machine.memory_gb:.3g} GB can be used")
    elif found.out_of_memory:
        limits.append(f"memory ran out while measuring, though the model says {memory:.3g} GB")
    if settings.training.batch_size < needed:
        limits.append(f"{settings.training.batch_size} scans per step, where {settings.method_name} needs {needed}")
    return limits


def _read_seconds(opened: Opened, settings: RunSettings) -> float:
    """Seconds that a process takes to read one scan: the fastest of a few, since others only slow it down."""
    training = settings.training.model_copy(
        update={"batch_size": 1, "accumulation": 1, "num_workers": 0, "num_steps": _SCANS_READ}
    )
    alone = settings.model_copy(update={"training": training})
    call = PretrainCall(opened.method, opened.data, opened.init, alone)
    times, began = [], time.perf_counter()
    for _ in make_batches(call, Process(), 0):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return min(times)


def _with_reading(settings: RunSettings, read_seconds: float, gpus: int) -> tuple[float, float]:
    """Seconds of a step and the share of them spent waiting, when reading takes so long per scan and process."""
    compute = settings.estimate.step_seconds
    reading = settings.training.batch_size / gpus * read_seconds
    if settings.training.num_workers == 0:
        return compute + reading, reading / (compute + reading)
    step = max(compute, reading / settings.training.num_workers)
    return step, (step - compute) / step


def _changes(request: Request, opened: Opened, settings: RunSettings, target: Target, needed: int) -> list[Change]:
    """Changes with which the run fits this machine."""

    def resolved(config: str, overrides: Mapping[str, JsonValue]) -> RunSettings | None:
        texts = tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
        try:
            changed = replace(request, config=config, overrides=texts)
            return resolve_request(changed, opened, target.machine, target.gpus)
        except HeadCTSSLError:
            return None  # what is refused is no suggestion

    return suggest(
        resolved,
        settings,
        parse_overrides(request.overrides),
        opened.data.plans[0],
        target.machine,
        needed,
        coupled=opened.method.batch_coupled,
    )
