"""Estimate report: what `headct_estimate` says of a run, as a file and as a table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from headctssl.console import say, table
from headctssl.planning.run_settings import Estimate
from headctssl.planning.suggest import Change
from headctssl.settings import JsonValue, Settings

__all__ = ["EstimateReport", "Suggestion", "print_report", "suggestion_of"]


class Suggestion(Settings):
    """A change of the call with which the run fits, by the same model."""

    what: str = Field(description="What changes, in words.")
    flags: str = Field(description="Flags to add to the call, in place of the same ones there.")
    config: str = Field(description="Encoder preset of the changed call, `-c`.")
    overrides: tuple[str, ...] = Field(description="All `--set` of the changed call.")
    batch_size: int
    accumulation: int
    memory_gb: float = Field(description="Modelled memory of one process in GB.")
    hours: float = Field(description="Modelled hours for all steps.")


class EstimateReport(Settings):
    """estimate.json: no case, path or host."""

    format: Literal[1] = 1
    method: str
    config: str
    dataset_ids: tuple[int, ...]
    num_scans: int = Field(description="Scans to train on.")
    device: str = Field(description="'cpu', 'cuda:0' ..., or 'cuda' for a GPU that is not there.")
    gpus: int = Field(description="Processes, one per GPU; 1 on a CPU.")
    measured_steps: int = Field(description="Steps that were run to measure; 0: everything is modelled.")
    why_modelled: str = Field("", description="Why no step was measured.")
    assumptions: tuple[str, ...] = Field(description="What the numbers rest on.")
    batch_size: int
    accumulation: int
    precision: str
    num_workers: int
    num_steps: int
    step_seconds: float = Field(description="Seconds per optimiser step, waiting for data included.")
    scans_per_second: float = Field(description="Over all processes.")
    data_wait: float = Field(description="Share of the time spent waiting for data.")
    memory_gb: float = Field(description="Peak memory of one process in GB.")
    memory_available_gb: float
    fits: bool = Field(description="Whether the memory is enough and a step has enough scans for the method.")
    why_not: str = Field("", description="What is too much or too little.")
    hours: float
    gpu_hours: float | None = Field(description="Hours times GPUs; none on a CPU.")
    modelled: Estimate = Field(description="The same by the model alone.")
    suggestions: tuple[Suggestion, ...] = ()


def suggestion_of(change: Change, config: str) -> Suggestion:
    """A change as flags.

    Args:
        change: what fits.
        config: the preset of the call as it was; another one is named with `-c`.
    """
    flags = [f"--set {shlex.quote(text)}" for text in _texts(change.new)]
    if change.config != config:
        flags.insert(0, f"-c {change.config}")
    settings = change.settings
    return Suggestion(
        what=change.what,
        flags=" ".join(flags),
        config=change.config,
        overrides=tuple(_texts(change.overrides)),
        batch_size=settings.training.batch_size,
        accumulation=settings.training.accumulation,
        memory_gb=settings.estimate.memory_gb,
        hours=settings.estimate.hours,
    )


def _texts(overrides: dict[str, JsonValue]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def print_report(report: EstimateReport, *, quiet: bool) -> None:
    """Print the numbers, what they rest on, and what would have to change."""
    how = f"measured over {report.measured_steps} steps" if report.measured_steps else "modelled"
    rows: list[Sequence[object]] = [
        ("memory of a process", f"{report.memory_gb:.3g} of {report.memory_available_gb:.3g} GB", how),
        ("step", f"{report.step_seconds:.3g} s for {report.batch_size} scans", how),
        ("speed", f"{report.scans_per_second:.3g} scans/s over {report.gpus} process(es)", how),
        ("waiting for data", f"{report.data_wait:.1%}", f"{how}, {report.num_workers} readers per process"),
        ("length", f"{_duration(report.hours)} for {report.num_steps} steps", f"{how}, times the steps"),
    ]
    if report.gpu_hours is not None:
        rows.append(("GPU-hours", f"{report.gpu_hours:.3g}", f"{report.gpus} x {_duration(report.hours)}"))
    if report.measured_steps:
        model = report.modelled
        rows.append(
            ("the model alone", f"{model.memory_gb:.3g} GB, {model.step_seconds:.3g} s a step", "for comparison")
        )
    title = f"{report.method} with {report.config} on {report.gpus} x {report.device}"
    table(title, ("what", "value", "from"), rows, quiet=quiet)
    if report.why_modelled:
        say(f"not measured: {report.why_modelled}", quiet=quiet)
    for sentence in report.assumptions:
        say(f"assumed: {sentence}", quiet=quiet)
    if report.fits:
        say("it fits", quiet=quiet)
        return
    say(f"it does not fit: {report.why_not}", quiet=quiet)
    if not report.suggestions:
        say("no change of precision, batch, views or encoder makes it fit: it takes a larger device", quiet=quiet)
        return
    columns = ("any one of these makes it fit", "add to the call", "batch", "memory", "length")
    changes = [
        (s.what, s.flags, f"{s.batch_size} in {s.accumulation}", f"{s.memory_gb:.3g} GB", _duration(s.hours))
        for s in report.suggestions
    ]
    table("what would have to change (modelled)", columns, changes, quiet=quiet)


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
