"""Schedule: which runs of a comparison are kept already, which must be made, from what, and for how many hours."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headctssl.contract import StorageRule
from headctssl.evaluation.cells import is_kept
from headctssl.evaluation.comparison import REGRESSION, Arm, Grid
from headctssl.evaluation.embeddings import Embeddings
from headctssl.evaluation.encoders import PretrainingRun
from headctssl.evaluation.grid import Cell, cell_key
from headctssl.evaluation.jobs import Job
from headctssl.evaluation.roster import Roster
from headctssl.evaluation.work import FinetuneTask, PretrainTask, ProbeTask, Task
from headctssl.finetuning.prepare import Call
from headctssl.finetuning.start import Start, resolve_start
from headctssl.paths import results_dataset
from headctssl.planning.plans import load_plans, plans_path
from headctssl.settings import JsonValue, parse_overrides
from headctssl.training.checkpoint import find_weights

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Everything that decides the runs of a comparison."""

    grid: Grid
    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]
    rosters: Mapping[int, Roster]  # dataset number -> its cases
    pretraining: tuple[PretrainingRun, ...]
    weights: Mapping[str, Path]  # name of given weights -> weights file
    embeddings: Mapping[str, Embeddings]
    logs: Path  # folder of the comparison's logs
    device: str | None
    num_workers: int | None
    _starts: dict[tuple[int, str, str], Start] = field(default_factory=dict)
    _keys: dict[Cell, str] = field(default_factory=dict)

    def run_of(self, cell: Cell) -> PretrainingRun | None:
        """The pretraining run that a cell needs; None where it needs none."""
        if cell.arm.kind != "pretrained":
            return None
        return self._runs[cell.arm.method, cell.arm.encoder, cell.seed]

    @functools.cached_property
    def _runs(self) -> dict[tuple[str, str, int], PretrainingRun]:
        return {(run.method, run.encoder, run.seed): run for run in self.pretraining}

    def weights_of(self, cell: Cell) -> str | None:
        """What `-w` of its fine-tuning is; None where there is none."""
        run = self.run_of(cell)
        if run is not None:
            return str(run.folder / "encoder.safetensors")
        if cell.arm.kind == "given":
            return str(self.weights[cell.arm.method])
        return "scratch" if cell.arm.kind in ("scratch", "random") else None

    def file_of(self, cell: Cell) -> Path:
        """The weights file that the fine-tuning of a cell begins from."""
        weights = self.weights_of(cell)
        assert weights is not None, "a cell that begins from weights"
        return find_weights(weights, "encoder")

    def start(self, cell: Cell) -> Start:
        """Where the fine-tuning of a cell begins; its weights must be there."""
        weights = self.weights_of(cell)
        assert weights is not None, "a cell that is fine-tuned"
        place = (cell.dataset_id, weights, cell.arm.encoder)
        if place not in self._starts:
            changes = {k.removeprefix("encoder."): v for k, v in parse_overrides(self.grid.finetune_overrides).items()
                       if k.startswith("encoder.")}  # fmt: skip
            config = cell.arm.encoder if weights == "scratch" else None
            self._starts[place] = resolve_start(cell.dataset_id, weights, config, changes)
        return self._starts[place]

    def storage(self, cell: Cell) -> StorageRule:
        """How the scans of a cell are stored; known before its encoder is trained."""
        run = self.run_of(cell)
        if run is not None:
            return run.settings.storage
        if self.weights_of(cell) is not None:
            return self.start(cell).storage
        if plans_path(cell.dataset_id).is_file():
            return load_plans(cell.dataset_id).storage
        others = [c for c in self.cells if c.dataset_id == cell.dataset_id and self.weights_of(c) is not None]
        return self.storage(others[0])  # there is always an arm from scratch

    def is_ready(self, cell: Cell) -> bool:
        """Whether what a cell begins with is there, and its scans are stored."""
        run = self.run_of(cell)
        return (run is None or run.is_finished) and self.rosters[cell.dataset_id].is_stored(self.storage(cell))

    def key(self, cell: Cell) -> str:
        """The key of a cell that is ready.

        Raises:
            HeadCTSSLError: its cases cannot be drawn, or its weights cannot be read.
        """
        if cell not in self._keys:
            roster = self.rosters[cell.dataset_id]
            index = roster.index(self.storage(cell))
            cases = roster.cohort(index, cell.label_budget, cell.draw).digest(index)
            self._keys[cell] = cell_key(
                cell, grid=self.grid, labels=roster.labels, start=self._identity(cell), cases=cases
            )
        return self._keys[cell]

    def _identity(self, cell: Cell) -> dict[str, JsonValue]:
        """What an arm begins with, in the key of its cells."""
        if cell.arm.kind == "embeddings":
            return {"vectors": self.embeddings[cell.arm.method].digest()}
        if cell.arm.kind == "histogram":
            return {"storage": self.storage(cell).digest()}
        start = self.start(cell)
        return {
            "config": start.config,
            "init": start.init,
            "encoder": start.encoder.model_dump(mode="json"),
            "storage": start.storage.digest(),
            "input": start.input.model_dump(mode="json"),
        }

    def kept(self, cell: Cell, key: str) -> Path:
        """The folder of a cell's result."""
        return results_dataset(cell.dataset_id) / "compare" / "cells" / key

    def pretraining_jobs(self) -> Iterator[Job[Task]]:
        """The pretraining runs that are not finished."""
        for run in self.pretraining:
            if run.state != "finished":
                task = PretrainTask(run.request, run.settings, run.folder.name.rpartition("__")[2], run.folder,
                                    self.device)  # fmt: skip
                yield Job(task, f"pretraining {run.folder.name}", self.logs / f"{run.folder.name}.log", 2 * run.seed)

    def cell_jobs(self, cells: list[Cell]) -> Iterator[Job[Task]]:
        """The runs of cells that are ready and not kept; probes of one data set and source share a process."""
        probes: dict[tuple[int, str], list[tuple[Cell, str, Path]]] = {}
        for cell in cells:
            key = self.key(cell)
            kept = self.kept(cell, key)
            if is_kept(kept):
                continue
            if self.weights_of(cell) is None:
                probes.setdefault((cell.dataset_id, cell.arm.name), []).append((cell, key, kept))
                continue
            yield Job(FinetuneTask(cell, key, kept, self._call(cell, key)), cell.text, self.logs / f"{key}.log",
                      2 * cell.seed + 1)  # fmt: skip  # every arm has its first seed before one has its second
        for (dataset_id, name), placed in probes.items():
            yield self._probe_job(dataset_id, name, placed)

    def _call(self, cell: Cell, key: str) -> Call:
        weights, adapt = self.weights_of(cell), cell.arm.adapt
        assert weights is not None, "a cell that is fine-tuned"
        assert adapt != REGRESSION, "a cell that is fine-tuned"
        return Call(
            dataset_id=cell.dataset_id,
            weights=weights,
            config=cell.arm.encoder if weights == "scratch" else None,
            adapt=adapt,
            few_shots=cell.label_budget,
            fold=self.grid.fold,
            labels=self.rosters[cell.dataset_id].labels_asked,
            tag=f"seed{cell.seed}-{key}",
            resume=True,
            overwrite=False,
            device=self.device,
            num_workers=self.num_workers,
            overrides=(*self.grid.finetune_overrides, f"training.seed={cell.seed}"),
            quiet=False,
            draw=cell.draw,
        )

    def _probe_job(self, dataset_id: int, name: str, placed: list[tuple[Cell, str, Path]]) -> Job[Task]:
        first = placed[0][0]
        vectors = self.embeddings.get(first.arm.method) if first.arm.kind == "embeddings" else None
        roster = self.rosters[dataset_id]
        task = ProbeTask(
            dataset_id=dataset_id,
            labels=roster.labels,
            fold=self.grid.fold,
            storage=self.storage(first),
            cells=tuple(placed),
            embeddings=None if vectors is None else vectors.file,
            num_workers=self.num_workers,
        )
        title = f"{name} on dataset {dataset_id}"
        return Job(task, title, self.logs / f"{name.replace('/', '-').replace(' ', '_')}-d{dataset_id}.log")
