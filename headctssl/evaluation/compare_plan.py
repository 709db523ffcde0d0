"""Compare plan: what a comparison would do, checked and printed with its hours before anything is begun."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headctssl.console import say, table
from headctssl.errors import DataError, UsageError
from headctssl.evaluation.cells import is_kept
from headctssl.evaluation.comparison import Overlap
from headctssl.evaluation.grid import Cell
from headctssl.evaluation.schedule import Schedule
from headctssl.families import FamilySettings
from headctssl.finetuning.derive import epochs_of_encoder, validation_interval
from headctssl.finetuning.leakage import pretraining_overlap
from headctssl.planning.budget import ATTENTION_EFFICIENCY, BACKWARD, MATMUL_EFFICIENCY
from headctssl.planning.encoder_cost import encoder_cost
from headctssl.planning.machine import Machine
from headctssl.preprocessing.index import CaseIndex
from headctssl.training.checkpoint import load_weights

__all__ = [
    "Outlook",
    "find_overlaps",
    "look_ahead",
    "print_outlook",
    "refuse_overlap",
    "require_something",
    "require_vectors",
]

_START_S = 3.0  # seconds that a run takes before and after its network computes, about


@dataclass(frozen=True)
class Outlook:
    """How much there is to do."""

    keys: Mapping[Cell, str]  # of the cells that are ready
    kept: frozenset[Cell]
    pretraining_hours: float  # of all runs to make, one after the other
    finetuning_hours: float
    num_jobs: int

    @property
    def hours(self) -> float:
        """Wall-clock hours with as many processes at a time as asked for."""
        return (self.pretraining_hours + self.finetuning_hours) / self.num_jobs


def look_ahead(schedule: Schedule, machine: Machine, num_jobs: int) -> Outlook:
    """Find what is kept and estimate the rest.

    Args:
        schedule: the runs.
        machine: what a process has to work with.
        num_jobs: processes at a time.

    Raises:
        HeadCTSSLError: cases of a run cannot be drawn, or its weights cannot be read.
    """
    keys = {cell: schedule.key(cell) for cell in schedule.cells if schedule.is_ready(cell)}
    kept = frozenset(cell for cell, key in keys.items() if is_kept(schedule.kept(cell, key)))
    seconds = sum(_seconds(schedule, cell, machine) for cell in schedule.cells if cell not in kept)
    return Outlook(keys, kept, sum(run.hours for run in schedule.pretraining), seconds / 3600, num_jobs)


def _seconds(schedule: Schedule, cell: Cell, machine: Machine) -> float:
    """About how long a fine-tuning run takes, by the cost of its encoder's forward pass; 0 where it has none."""
    run = schedule.run_of(cell)
    if run is not None:
        encoder, shape = run.settings.encoder, run.settings.input.shape
    elif schedule.weights_of(cell) is not None:
        start = schedule.start(cell)
        encoder, shape = start.encoder, start.input.shape
    else:
        return 0.0
    roster = schedule.rosters[cell.dataset_id]
    if not roster.is_stored(schedule.storage(cell)):
        return 0.0
    cohort = roster.cohort(roster.index(schedule.storage(cell)), cell.label_budget, cell.draw)
    train, validation, test = len(cohort.train), len(cohort.validation), len(cohort.test)
    scans = float(train + validation + test)
    if cell.arm.adapt in ("full", "lora"):
        epochs = epochs_of_encoder(train, small_profile=roster.raw.info.synthetic)
        judged = epochs / validation_interval(epochs) * validation
        scans = epochs * train * (1 + BACKWARD[encoder.kind]) + judged + test
    return _START_S + scans * forward_seconds(encoder, tuple(shape), machine)


@functools.lru_cache(maxsize=64)
def forward_seconds(encoder: FamilySettings, shape: tuple[int, int, int], machine: Machine) -> float:
    """Seconds of an encoder's forward pass over one scan, by the model of `planning.budget`.

    Args:
        encoder: its dimensions.
        shape: voxels (z, y, x) of the input.
        machine: measured throughput.
    """
    half = machine.bf16
    cost, _ = encoder_cost(encoder, shape, 1.0, half)
    matmul = (machine.matmul_gflops_bf16 if half else machine.matmul_gflops_float32) * 1e9
    conv = (machine.conv_gflops_bf16 if half else machine.conv_gflops_float32) * 1e9
    return (
        cost.matmul / (matmul * MATMUL_EFFICIENCY)
        + cost.attention / (matmul * ATTENTION_EFFICIENCY[half])
        + cost.conv / conv
        + cost.elements / (machine.elementwise_per_ns * 1e9)
    )


def find_overlaps(schedule: Schedule, cells: Iterable[Cell]) -> dict[Cell, Overlap]:
    """What is known of test cases in the pretraining data of every run's encoder.

    Args:
        schedule: the runs.
        cells: those to look at; their scans are stored.
    """
    known: dict[tuple[int, str], Overlap] = {}
    found = {}
    for cell in cells:
        source = schedule.weights_of(cell) or cell.arm.name
        place = (cell.dataset_id, source)
        if place not in known:
            known[place] = _overlap(schedule, cell)
        found[cell] = known[place]
    return found


def _overlap(schedule: Schedule, cell: Cell) -> Overlap:
    if cell.arm.kind == "embeddings":
        return Overlap(num_shared=None, sentence="cannot be checked: vectors do not say what their model saw")
    run = schedule.run_of(cell)
    roster = schedule.rosters[cell.dataset_id]
    if run is None and cell.arm.kind != "given":
        return Overlap(num_shared=0, sentence="pretraining: none")
    index = roster.index(schedule.storage(cell))
    judged = index.subset(roster.cohort(index, cell.label_budget, cell.draw).test)
    if run is not None and not run.is_finished:
        return _of_sources(run.sources, judged)
    weights = schedule.weights_of(cell)
    assert weights is not None, "a pretrained or given encoder"
    loaded = load_weights(weights, "encoder")
    number, sentence = pretraining_overlap(schedule.file_of(cell), loaded.contract, judged)
    return Overlap(num_shared=number, sentence=sentence)


def _of_sources(sources: frozenset[str], judged: CaseIndex) -> Overlap:
    shared = sum(row.source_sha256 in sources for row in judged.rows)
    return Overlap(num_shared=shared, sentence=f"{shared} of {len(judged)} test cases are in the pretraining data")


def refuse_overlap(schedule: Schedule, overlaps: Mapping[Cell, Overlap], *, allow: bool) -> list[str]:
    """Refuse test cases that were in the pretraining data of an encoder, unless that was allowed.

    Args:
        schedule: the runs.
        overlaps: from `find_overlaps`.
        allow: go on and mark the results.

    Returns:
        Sentences for the comparison: what overlaps, and what cannot be checked.

    Raises:
        DataError: there is an overlap and it was not allowed.
    """
    sentences: dict[str, None] = {}
    shared: dict[str, int] = {}
    for cell, overlap in overlaps.items():
        name = schedule.rosters[cell.dataset_id].raw.folder.name
        source = "/".join(part for part in (cell.arm.method, cell.arm.encoder) if part)
        if overlap.num_shared:
            shared[f"{source} on {name}"] = overlap.num_shared
            sentences[f"{source} on {name}: {overlap.sentence}"] = None
        elif overlap.num_shared is None:
            sentences[f"{source} on {name}: overlap with its pretraining data: {overlap.sentence}"] = None
    if shared and not allow:
        raise DataError(
            "Test cases were in the pretraining data of an encoder.",
            got="; ".join(f"{what}: {number} test cases" for what, number in sorted(shared.items())),
            expected="test cases that no encoder has seen",
            do="Leave these encoders out, pretrain without the test cases of splits.json, or say --allow_overlap: the"
            " results are then marked.",
        )
    return list(sentences)


def print_outlook(schedule: Schedule, outlook: Outlook, *, quiet: bool) -> None:
    """Print the grid, what is to be run and what is reused, and the hours.

    Args:
        schedule: the runs.
        outlook: from `look_ahead`.
        quiet: print nothing.
    """
    grid = schedule.grid
    count = Counter(cell.arm.name for cell in schedule.cells)
    done = Counter(cell.arm.name for cell in outlook.kept)
    rows = [
        (arm.name, arm.kind, count[arm.name], done[arm.name], count[arm.name] - done[arm.name]) for arm in schedule.arms
    ]
    names = ", ".join(roster.raw.folder.name for roster in schedule.rosters.values())
    budgets = ", ".join("all" if k is None else str(k) for k in grid.label_budgets)
    say(
        f"{names}; {budgets} patients per class and label; {grid.seeds} seed(s), {grid.draws} draw(s) each", quiet=quiet
    )
    table("runs of classifiers", ("arm", "kind", "runs", "reused", "to make"), rows, quiet=quiet)
    if schedule.pretraining:
        states = Counter(run.state for run in schedule.pretraining)
        say(
            f"pretraining runs: {states['finished']} reused, {states['begun']} to go on with, {states['missing']} to "
            f"make, about {outlook.pretraining_hours:.2f} h one after the other",
            quiet=quiet,
        )
    say(
        f"fine-tuning and probing: {len(outlook.kept)} reused, {len(schedule.cells) - len(outlook.kept)} to make, "
        f"about {outlook.finetuning_hours:.2f} h one after the other",
        quiet=quiet,
    )
    say(f"in all about {outlook.hours:.2f} h with {outlook.num_jobs} process(es) at a time", quiet=quiet)


def require_vectors(schedule: Schedule, cells: Iterable[Cell]) -> None:
    """Refuse given vectors that lack a case.

    Args:
        schedule: the runs.
        cells: those to look at; their scans are stored.

    Raises:
        DataError: it says how many cases have no vector.
    """
    for cell in cells:
        if cell.arm.kind == "embeddings":
            roster = schedule.rosters[cell.dataset_id]
            index = roster.index(schedule.storage(cell))
            cohort = roster.cohort(index, cell.label_budget, cell.draw)
            schedule.embeddings[cell.arm.method].require(roster.needed([roster.cohort(index, None, 0), cohort]))


def require_something(schedule: Schedule) -> None:
    """Refuse a comparison without a labelled dataset.

    Raises:
        UsageError: no dataset has a binary label.
    """
    if not schedule.rosters:
        raise UsageError(
            "None of the datasets has a binary label.",
            got="-d " + " ".join(str(i) for i in schedule.grid.dataset_ids),
            expected="a dataset with labels in dataset.json",
            do="Add labels, or name a labelled dataset.",
        )
