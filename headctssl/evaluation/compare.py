"""Compare: objectives, encoders and ways of adaptation on the same test cases, beside baselines, in one table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headctssl.console import name_files, say, table
from headctssl.dataset.parallel import warm_up
from headctssl.errors import StoppedError, UsageError
from headctssl.evaluation.assemble import assemble
from headctssl.evaluation.compare_plan import (
    find_overlaps,
    look_ahead,
    print_outlook,
    refuse_overlap,
    require_something,
    require_vectors,
)
from headctssl.evaluation.comparison import Comparison, Grid
from headctssl.evaluation.comparison_pictures import draw_comparison
from headctssl.evaluation.embeddings import read_embeddings
from headctssl.evaluation.encoders import plan_pretraining
from headctssl.evaluation.grid import BASELINES, arms_of, cells_of, check_grid, split_overrides
from headctssl.evaluation.jobs import Share
from headctssl.evaluation.progress import Progress
from headctssl.evaluation.roster import open_rosters
from headctssl.evaluation.schedule import Schedule
from headctssl.evaluation.tidy import write_tidy
from headctssl.paths import results_dataset
from headctssl.planning.machine import Machine, detect_machine
from headctssl.settings import write_json
from headctssl.training.checkpoint import find_weights, load_weights
from headctssl.training.signals import stop_at_once

__all__ = ["CompareResult", "compare"]

Budget = int | str | None


@dataclass(frozen=True)
class CompareResult:
    """What a comparison left."""

    folder: Path
    comparison: Comparison | None  # None: only planned
    num_failed: int  # runs that failed

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some runs failed, 2 all failed."""
        if not self.num_failed:
            return 0
        return 1 if self.comparison is not None and self.comparison.ranking else 2


def compare(
    dataset_ids: Sequence[int] | int,
    *,
    encoders: Sequence[str] = (),
    methods: Sequence[str] = (),
    weights: Mapping[str, str | Path] | None = None,
    embeddings: Mapping[str, str | Path] | None = None,
    adapt: Sequence[str] = ("linear", "full"),
    few_shots: Sequence[Budget] = (8, "all"),
    seeds: int = 3,
    draws: int = 1,
    pretrain_on: Sequence[int] | None = None,
    fold: str | int = "0",
    labels: Sequence[str] | None = None,
    name: str = "comparison",
    allow_overlap: bool = False,
    dry_run: bool = False,
    num_jobs: int | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    num_resamples: int = 1000,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> CompareResult:
    """Compare objectives, encoders, adaptations and label budgets; the command is ``headct_compare``.

    Every run that exists with the same settings is reused, so that the same call goes on where it was stopped, and one
    more method costs its own runs only. Always in the table: every encoder trained from scratch, frozen at random, and
    a logistic regression on HU histograms, with the same patients to learn from and the same test cases.

    Args:
        dataset_ids: datasets to learn from and be tested on; one without binary labels is pretrained on only.
        encoders: encoder presets; those of `weights` when none is named.
        methods: objectives to pretrain with; baselines may be named and are there anyway.
        weights: name -> encoder's file or run folder, to be compared beside the methods.
        embeddings: name -> .csv or .npz of vectors by case id, made by any other model.
        adapt: ways of adaptation.
        few_shots: patients per class and label to learn from; 'all' or None for every training case.
        seeds: how many, 0, 1, ...; of pretraining and of adaptation.
        draws: few-shot draws per seed.
        pretrain_on: datasets to pretrain on; `dataset_ids` when None, together as `pretrain` does.
        fold: a fold of splits.json, or 'none' for no validation cases.
        labels: label names; all binary ones when None.
        name: of the comparison's folder.
        allow_overlap: go on when test cases were pretrained on, and mark the results.
        dry_run: print the plan and stop.
        num_jobs: processes at a time; one per core, on a GPU one, when None.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.
        num_workers: reader processes of a run; none where several runs share the machine.
        num_resamples: bootstrap resamples and permutations of the ranking.
        overrides: ``pretrain.KEY=VALUE`` and ``finetune.KEY=VALUE`` (`--set`), settings of the runs.
        quiet: print nothing.

    Raises:
        UsageError: the call does not fit, or a run exists with other settings (the field is named).
        DataError: a dataset, file or result cannot be used; test cases were pretrained on.
        StoppedError: a signal came; the same call goes on.
    """
    # Before anything else starts the server: processes then have everything imported.
    warm_up("headctssl.evaluation.work")
    order = _Order(name, allow_overlap, dry_run, num_resamples, quiet)
    given = {key: find_weights(path, "encoder") for key, path in (weights or {}).items()}
    presets = {key: load_weights(path, "encoder").contract.preset for key, path in given.items()}
    pretrain_set, finetune_set = split_overrides(overrides)
    ids = (dataset_ids,) if isinstance(dataset_ids, int) else tuple(dataset_ids)
    grid = Grid(
        dataset_ids=ids,
        pretrain_ids=ids if pretrain_on is None else tuple(pretrain_on),
        encoders=tuple(encoders) or tuple(dict.fromkeys(presets.values())),
        methods=tuple(m for m in methods if m not in BASELINES),
        weights=tuple(given),
        embeddings=tuple(embeddings or {}),
        adapt=tuple(adapt),
        label_budgets=tuple(_budget(k) for k in few_shots),
        seeds=seeds,
        draws=draws,
        fold=str(fold),
        labels=None if labels is None else tuple(labels),
        pretrain_overrides=pretrain_set,
        finetune_overrides=finetune_set,
    )
    check_grid(grid)
    share = Share.of(num_jobs, device, num_workers)
    schedule, machine, notes = _schedule(grid, given, presets, embeddings or {}, share, name, device)
    require_something(schedule)
    with _resumable():
        return _carry_out(schedule, order, share, machine, notes)


def _schedule(
    grid: Grid,
    weights: Mapping[str, Path],
    presets: Mapping[str, str],
    embeddings: Mapping[str, str | Path],
    share: Share,
    name: str,
    device: str | None,
) -> tuple[Schedule, Machine, list[str]]:
    """The runs that the grid stands for, the machine a run has, and sentences on what is left out."""
    with share.threads_of_a_job():
        machine = detect_machine(device)
        pretraining = plan_pretraining(grid, machine, share.readers)
    arms, notes = arms_of(grid, presets)
    rosters, left_out = open_rosters(grid)
    schedule = Schedule(
        grid=grid,
        arms=arms,
        cells=cells_of(grid, arms, tuple(rosters)),
        rosters=rosters,
        pretraining=tuple(pretraining),
        weights=weights,
        embeddings={key: read_embeddings(Path(path)) for key, path in embeddings.items()},
        logs=_folder(grid, name) / "logs",
        device=device,
        num_workers=share.readers,
    )
    return schedule, machine, [*left_out, *notes]


@dataclass(frozen=True)
class _Order:
    """What is asked for beside the grid."""

    name: str
    allow_overlap: bool
    dry_run: bool
    num_resamples: int
    quiet: bool


def _folder(grid: Grid, name: str) -> Path:
    """The comparison's folder.

    Raises:
        UsageError: the name cannot be that of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "cells":
        raise UsageError(
            "The name of the comparison cannot be that of its folder.",
            got=name,
            expected="letters, digits, '_', '.', '-', and not 'cells'",
            do="Choose another --name.",
        )
    return results_dataset(grid.dataset_ids[0]) / "compare" / name


def _budget(value: Budget) -> int | None:
    if value in (None, "all"):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UsageError(
        "--few_shots takes numbers.", got=value, expected="a whole number or 'all'", do="Correct --few_shots."
    )


@contextmanager
def _resumable() -> Iterator[None]:
    """Say how to go on after a signal."""
    try:
        with stop_at_once():
            yield
    except StoppedError as error:
        raise StoppedError(
            error.what.replace("The run", "The comparison").replace(" outside of its training steps", ""),
            do="Start the same command again: finished runs are kept, and unfinished ones go on.",
        ) from None


def _carry_out(schedule: Schedule, order: _Order, share: Share, machine: Machine, notes: list[str]) -> CompareResult:
    folder, quiet = schedule.logs.parent, order.quiet
    missing = _preprocess(schedule, share, dry_run=order.dry_run, quiet=quiet)
    stored = [cell for cell in schedule.cells if cell.dataset_id not in missing]
    require_vectors(schedule, stored)
    overlaps = find_overlaps(schedule, stored)
    refuse_overlap(schedule, overlaps, allow=order.allow_overlap)
    outlook = look_ahead(schedule, machine, share.jobs)
    for note in notes:
        say(f"note: {note}", quiet=quiet)
    print_outlook(schedule, outlook, quiet=quiet)
    if order.dry_run:
        return CompareResult(folder, None, 0)
    states = Progress(schedule, outlook, quiet).run(share)
    # Once more, now of the encoders that were trained meanwhile, by the lists of cases they left.
    overlaps = find_overlaps(schedule, [cell for cell, state in states.items() if state.status != "failed"])
    notes = [*notes, *refuse_overlap(schedule, overlaps, allow=order.allow_overlap)]
    comparison, rows = assemble(
        schedule, states, overlaps, name=order.name, notes=notes, num_resamples=order.num_resamples
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    files = [folder / "comparison.json", write_tidy(folder / "comparison.csv", rows)]
    if comparison.ranking:
        files += draw_comparison(folder, comparison)
    _print_ranking(comparison, quiet=quiet)
    failed = {cell: state for cell, state in states.items() if state.status == "failed"}
    for cell, state in failed.items():
        print(f"failed: {cell.text}: {state.error}", file=sys.stderr)
    name_files(files, quiet=quiet)
    return CompareResult(folder, comparison, len(failed))


def _preprocess(schedule: Schedule, share: Share, *, dry_run: bool, quiet: bool) -> set[int]:
    """Store every dataset as its runs need it; the numbers of those that are not stored, in a dry run."""
    missing = set()
    for cell in schedule.cells:
        roster, rule = schedule.rosters[cell.dataset_id], schedule.storage(cell)
        if dry_run and not roster.is_stored(rule):
            if cell.dataset_id not in missing:
                say(f"{roster.raw.folder.name} would be preprocessed as {rule.storage_id} first", quiet=quiet)
            missing.add(cell.dataset_id)
            continue
        roster.index(rule, num_workers=share.jobs if share.on_cpu else None, quiet=quiet)
    return missing


def _print_ranking(comparison: Comparison, *, quiet: bool) -> None:
    for test in comparison.tests:
        for budget in comparison.grid.label_budgets:
            rows = [
                (
                    entry.rank,
                    entry.arm + {"": "", "overlap": " (overlap!)", "unchecked": " (overlap unchecked)"}[entry.overlap],
                    entry.num_runs,
                    _with_interval(entry.mean_auroc, entry.mean_auroc_ci),
                    _with_interval(entry.difference, entry.difference_ci),
                    "" if entry.p_holm is None else f"{entry.p_holm:.3g}",
                )
                for entry in comparison.ranked(test.dataset_name, budget)
            ]
            count = "all labels" if budget is None else f"{budget} patients per class and label"
            title = f"{test.dataset_name}, {count}: {test.num_cases} test cases of {test.num_subjects} patients"
            columns = ("rank", "arm", "runs", "mean AUROC [95 %]", "minus from scratch [95 %]", "p (Holm)")
            table(title, columns, rows, quiet=quiet)
    for note in comparison.notes:
        say(f"note: {note}", quiet=quiet)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")
