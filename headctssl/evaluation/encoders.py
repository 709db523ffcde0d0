"""Encoders: the pretraining runs of a comparison, which are there, which must be made, and by what settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headctssl.errors import UsageError
from headctssl.evaluation.comparison import Grid
from headctssl.methods import method_class
from headctssl.paths import results_dataset
from headctssl.planning.machine import Machine
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import pair_refusal
from headctssl.training.pretrain_call import Opened, Request, open_request, resolve_request, run_name
from headctssl.training.stored_run import continued_settings, read_run_settings, require_same_cases

__all__ = ["PretrainingRun", "plan_pretraining", "tag_of"]

State = Literal["finished", "begun", "missing"]

_MACHINES_OWN = ("training", "method", "read_shape", "monitor")
"""Settings that also follow from the machine; all seeds of a method and encoder have the same."""


@dataclass(frozen=True)
class PretrainingRun:
    """One pretraining run."""

    method: str
    encoder: str
    seed: int
    request: Request
    settings: RunSettings
    folder: Path
    state: State
    sources: frozenset[str]  # SHA-256 of the scans it trains on

    @property
    def is_finished(self) -> bool:
        """Whether its encoder is there now."""
        return _is_finished(self.folder)

    @property
    def hours(self) -> float:
        """What is left of it by its estimate, as if nothing were done of a run that was begun."""
        return 0.0 if self.state == "finished" else self.settings.estimate.hours

    @property
    def scans_seen(self) -> int:
        """Scans drawn over all steps."""
        return self.settings.training.num_steps * self.settings.training.batch_size


def tag_of(seed: int) -> str:
    """The tag of a run's folder, ``seedS`` for every seed."""
    return f"seed{seed}"


def plan_pretraining(grid: Grid, machine: Machine, num_workers: int | None) -> list[PretrainingRun]:
    """Every pretraining run of a grid; a run that exists must be what the grid asks for.

    Length and batch may follow from a measurement of the machine. So that seeds differ in the seed only, the others
    take them from a run of the method and encoder that exists, else from the first seed.

    Args:
        grid: what was asked for.
        machine: what a process has to work with.
        num_workers: reader processes of a run, chosen by the planner when None.

    Raises:
        UsageError: a run exists with other settings (the field is named) or cases, or a setting does not exist.
        HeadCTSSLError: as `pretrain` before its first step.
    """
    runs: list[PretrainingRun] = []
    for method in grid.methods:
        requests = {}
        for encoder in (name for name in grid.encoders if pair_refusal(method, name) is None):
            requests[encoder] = [_request(grid, method, encoder, seed, num_workers) for seed in range(grid.seeds)]
        if requests:
            opened = open_request(next(iter(requests.values()))[0])
            for encoder, of_encoder in requests.items():
                runs += _of_seeds(method, encoder, of_encoder, opened, machine)
    return runs


def _request(grid: Grid, method: str, encoder: str, seed: int, num_workers: int | None) -> Request:
    return Request(
        dataset_ids=grid.pretrain_ids,
        method=method,
        config=encoder,
        plans_name="plans",
        init=None,
        pretrain_on="train",
        num_workers=num_workers,
        overrides=(*grid.pretrain_overrides, f"training.seed={seed}"),
    )


def _of_seeds(
    method: str, encoder: str, requests: Iterable[Request], opened: Opened, machine: Machine
) -> list[PretrainingRun]:
    sources = frozenset(row.source_sha256 for index in opened.data.indexes for row in index.rows)
    wanted = [resolve_request(request, opened, machine, 1) for request in requests]
    folders = [_folder(settings, seed) for seed, settings in enumerate(wanted)]
    stored = {seed: _stored(folder, wanted[seed], opened) for seed, folder in enumerate(folders) if folder.is_dir()}
    known = {seed: settings for seed, settings in stored.items() if settings is not None}
    pattern = next(iter(known.values()), wanted[0])
    runs = []
    for seed, (request, settings, folder) in enumerate(zip(requests, wanted, folders, strict=True)):
        state: State = "missing"
        if folder.is_dir():
            state = "finished" if _is_finished(folder) else "begun"
        own = known.get(seed) or _as(settings, pattern, seed)
        runs.append(PretrainingRun(method, encoder, seed, request, own, folder, state, sources))
    return runs


def _is_finished(folder: Path) -> bool:
    return (folder / "contract.json").is_file() and (folder / "encoder.safetensors").is_file()


def _folder(settings: RunSettings, seed: int) -> Path:
    return results_dataset(settings.dataset_ids[0]) / "pretrain" / run_name(settings, tag_of(seed))


def _as(settings: RunSettings, pattern: RunSettings, seed: int) -> RunSettings:
    """The settings with what another seed's run took from the machine."""
    update: dict[str, object] = {name: getattr(pattern, name) for name in _MACHINES_OWN}
    update["training"] = pattern.training.model_copy(update={"seed": seed})
    return settings.model_copy(update=update)


def _stored(folder: Path, wanted: RunSettings, opened: Opened) -> RunSettings | None:
    """The settings of a run that exists; None when it was stopped before it wrote them.

    Raises:
        UsageError: they are not what is wanted; the field is named.
    """
    if not (folder / "config.json").is_file():
        return None
    stored = read_run_settings(folder / "config.json", method_class(wanted.method_name).Settings)
    try:
        continued_settings(folder, stored, wanted)
        require_same_cases(folder, opened.data)
    except UsageError as error:
        raise UsageError(
            error.what,
            got=error.got,
            expected=error.expected,
            do="Give the comparison the settings that the run has (--set pretrain.KEY=VALUE), or move its folder away.",
        ) from None
    return stored
