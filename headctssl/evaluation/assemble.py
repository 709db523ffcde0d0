"""Assemble: the results of all runs as one comparison, judged on the same test cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import headctssl
from headctssl.evaluation.cells import CellResult, Predictions, read_cell
from headctssl.evaluation.comparison import (
    Arm,
    CellOutcome,
    Comparison,
    Cost,
    LabelScore,
    Overlap,
    Ranked,
    TestSet,
)
from headctssl.evaluation.grid import Cell, reference_of
from headctssl.evaluation.roster import Roster
from headctssl.evaluation.schedule import Schedule
from headctssl.evaluation.standing import Standing, defined_columns, stand
from headctssl.evaluation.tidy import tidy_rows
from headctssl.metrics.outcome import Outcome, interval_warnings, measure
from headctssl.metrics.paired import holm
from headctssl.metrics.statistics import subject_codes
from headctssl.paths import data_root
from headctssl.training.run_lines import read_metrics

__all__ = ["State", "assemble"]


@dataclass(frozen=True)
class State:
    """How a run of the comparison stands."""

    key: str  # '' when it was never ready
    kept: Path | None  # folder of its result
    status: str  # done, reused or failed
    error: str = ""


@dataclass(frozen=True)
class _Judged:
    """A finished run, its predictions of the common test cases, and its metrics."""

    cell: Cell
    result: CellResult
    probability: NDArray[np.float64]  # (n, L)


@dataclass(frozen=True)
class _Test:
    """The common test cases of a dataset."""

    case_ids: tuple[str, ...]
    truth: NDArray[np.float64]  # (n, L)
    subject_ids: tuple[str, ...]
    info: TestSet

    @property
    def subjects(self) -> NDArray[np.int64]:
        """(n,) subject number per case."""
        return subject_codes(self.subject_ids, self.case_ids)


def assemble(
    schedule: Schedule,
    states: Mapping[Cell, State],
    overlaps: Mapping[Cell, Overlap],
    *,
    name: str,
    notes: Sequence[str],
    num_resamples: int,
) -> tuple[Comparison, list[tuple[object, ...]]]:
    """Everything that comparison.json and comparison.csv say.

    Args:
        schedule: the runs.
        states: how each of them stands.
        overlaps: what is known of test cases in pretraining, per run.
        name: of the comparison.
        notes: sentences so far.
        num_resamples: bootstrap resamples, and permutations.

    Raises:
        DataError: a kept result is damaged.
    """
    found: dict[Cell, tuple[CellResult, Predictions]] = {}
    for cell, state in states.items():
        if state.status != "failed" and state.kept is not None:
            found[cell] = read_cell(state.kept)
    tests: dict[int, _Test] = {}
    ranking: list[Ranked] = []
    judged: dict[Cell, _Judged] = {}
    more = list(notes)
    for dataset_id, roster in schedule.rosters.items():
        of_dataset = {cell: pair for cell, pair in found.items() if cell.dataset_id == dataset_id}
        if not of_dataset:
            continue
        test = _common(roster, schedule, of_dataset)
        tests[dataset_id] = test
        more += _remarks(test, schedule)
        judged |= {cell: _judge(cell, *pair, test, roster) for cell, pair in of_dataset.items()}
        for budget in schedule.grid.label_budgets:
            group = [j for cell, j in judged.items() if (cell.dataset_id, cell.label_budget) == (dataset_id, budget)]
            entries = _rank(group, test, schedule, overlaps, num_resamples)
            ranking += entries
            if entries and all(entry.rank_ci is None for entry in entries):
                more.append(
                    f"{test.info.dataset_name}: no intervals, because too few resamples of the test patients keep both "
                    "classes of every label"
                )
    ranking = _corrected(ranking)
    outcomes = [_outcome(cell, states[cell], judged.get(cell), overlaps.get(cell), schedule) for cell in schedule.cells]
    comparison = Comparison(
        package_version=headctssl.__version__,
        name=name,
        grid=schedule.grid,
        arms=schedule.arms,
        tests=tuple(test.info for test in tests.values()),
        cells=tuple(outcomes),
        ranking=tuple(ranking),
        num_resamples=num_resamples,
        notes=tuple(dict.fromkeys(more)),
    )
    by_cell = dict(zip(schedule.cells, outcomes, strict=True))
    rows = [row for cell, j in judged.items() for row in tidy_rows(j.result, by_cell[cell])]
    return comparison, rows


def _common(roster: Roster, schedule: Schedule, found: Mapping[Cell, tuple[CellResult, Predictions]]) -> _Test:
    """The test cases that every run predicted."""
    sets = [set(predictions.case_ids) for _, predictions in found.values()]
    common = sorted(set.intersection(*sets))
    cell = next(iter(found))
    cohort = roster.cohort(roster.index(schedule.storage(cell)), None, 0)
    truth = cohort.labels(common).astype(np.float64)
    subject_ids = tuple(cohort.subject[c] for c in common)
    text = json.dumps([[c, *np.nan_to_num(row, nan=-1).tolist()] for c, row in zip(common, truth, strict=True)])
    info = TestSet(
        dataset_id=roster.dataset_id,
        dataset_name=roster.raw.folder.name,
        synthetic=roster.raw.info.synthetic,
        num_cases=len(common),
        num_subjects=int(np.unique(subject_codes(subject_ids, common)).size),
        num_left_out=len(set.union(*sets)) - len(common),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        labels=roster.labels,
        positives=tuple(int((column > 0.5).sum()) for column in truth.T),
        negatives=tuple(int((column <= 0.5).sum()) for column in truth.T),
    )
    return _Test(tuple(common), truth, subject_ids, info)


def _remarks(test: _Test, schedule: Schedule) -> list[str]:
    """What a reader must know of the test cases."""
    roster = schedule.rosters[test.info.dataset_id]
    dummy = np.zeros_like(test.truth)
    remarks = [
        f"{test.info.dataset_name}: {sentence}"
        for sentence in interval_warnings(Outcome(roster.specs, test.case_ids, test.subject_ids, test.truth, dummy))
    ]
    defined = set(defined_columns(test.truth))
    lost = [name for column, name in enumerate(roster.labels) if column not in defined]
    if lost:
        remarks.append(f"{test.info.dataset_name}: only one class in the test cases, not ranked by: {', '.join(lost)}")
    if test.info.num_left_out:
        remarks.append(
            f"{test.info.dataset_name}: {test.info.num_left_out} test cases are left out, because one of the runs"
            " could not read or predict them"
        )
    return remarks


def _judge(cell: Cell, result: CellResult, predictions: Predictions, test: _Test, roster: Roster) -> _Judged:
    """A run on the common cases; its metrics are measured again only where it predicted more of them."""
    probability = predictions.of(test.case_ids, roster.labels)
    if set(predictions.case_ids) != set(test.case_ids):
        outcome = Outcome(roster.specs, test.case_ids, test.subject_ids, test.truth, probability)
        entries, mean, interval = measure(outcome)
        result = result.model_copy(update={"labels": entries, "mean_auroc": mean, "mean_auroc_ci": interval})
    return _Judged(cell, result, probability)


def _rank(
    group: Sequence[_Judged], test: _Test, schedule: Schedule, overlaps: Mapping[Cell, Overlap], num_resamples: int
) -> list[Ranked]:
    """The ranking of one dataset and label budget."""
    if not group or not defined_columns(test.truth):
        return []
    runs: dict[str, dict[tuple[int, int], NDArray[np.float64]]] = {}
    for j in group:
        runs.setdefault(j.cell.arm.name, {})[j.cell.seed, j.cell.draw] = j.probability
    arms = {arm.name: arm for arm in schedule.arms if arm.name in runs}
    references = {}
    for arm in arms.values():
        other = reference_of(arm, tuple(arms.values()))
        if other is not None:
            references[arm.name] = other.name
    standings = stand(test.truth, test.subjects, runs, references, num_resamples=num_resamples)
    ranked = [
        _ranked(arms[name], standing, references.get(name), [j for j in group if j.cell.arm.name == name], test,
                overlaps, schedule)
        for name, standing in standings.items()
    ]  # fmt: skip
    return sorted(ranked, key=lambda entry: (entry.rank, entry.arm))


def _ranked(
    arm: Arm,
    standing: Standing,
    reference: str | None,
    own: Sequence[_Judged],
    test: _Test,
    overlaps: Mapping[Cell, Overlap],
    schedule: Schedule,
) -> Ranked:
    marks = {overlaps[j.cell].mark for j in own if j.cell in overlaps}
    labels = tuple(
        LabelScore(label=test.info.labels[column], auroc=value, auroc_ci=interval)
        for column, (value, interval) in standing.labels.items()
    )
    return Ranked(
        dataset_name=test.info.dataset_name,
        label_budget=own[0].cell.label_budget,
        arm=arm.name,
        num_seeds=len({j.cell.seed for j in own}),
        num_runs=len(own),
        mean_auroc=standing.mean,
        mean_auroc_ci=standing.interval,
        seed_spread=standing.seed_spread,
        rank=standing.rank,
        rank_ci=standing.rank_interval,
        reference=reference,
        difference=standing.difference,
        difference_ci=standing.difference_interval,
        p_value=standing.p_value,
        overlap="overlap" if "overlap" in marks else ("unchecked" if "unchecked" in marks else ""),
        labels=labels,
        cost=_mean_cost([_cost(j.cell, j.result, schedule) for j in own]),
    )


def _corrected(ranking: Sequence[Ranked]) -> list[Ranked]:
    """The same with p values corrected for all comparisons of the file."""
    places = [k for k, entry in enumerate(ranking) if entry.p_value is not None]
    adjusted = holm([float(ranking[k].p_value or 0.0) for k in places])
    corrected = list(ranking)
    for place, value in zip(places, adjusted, strict=True):
        corrected[place] = ranking[place].model_copy(update={"p_holm": value})
    return corrected


def _cost(cell: Cell, result: CellResult, schedule: Schedule) -> Cost:
    run = schedule.run_of(cell)
    hours = None
    if run is not None:
        lines = read_metrics(run.folder / "metrics.jsonl")
        seconds = lines[-1].get("seconds") if lines else None
        hours = None if seconds is None else float(seconds) / 3600
    return Cost(
        scans_seen=0 if run is None else run.scans_seen,
        pretraining_hours=hours,
        finetuning_hours=result.finetuning_hours,
        parameters_trained=result.parameters_trained,
    )


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    def mean(values: Sequence[float | int | None]) -> float | None:
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known else None

    parameters = mean([c.parameters_trained for c in costs])
    return Cost(
        scans_seen=round(mean([c.scans_seen for c in costs]) or 0),
        pretraining_hours=mean([c.pretraining_hours for c in costs]),
        finetuning_hours=mean([c.finetuning_hours for c in costs]),
        parameters_trained=None if parameters is None else round(parameters),
    )


def _outcome(
    cell: Cell, state: State, judged: _Judged | None, overlap: Overlap | None, schedule: Schedule
) -> CellOutcome:
    run = schedule.run_of(cell)
    folder = "" if run is None else str(run.folder.relative_to(data_root("results")))
    result = None if judged is None else judged.result
    return CellOutcome.model_validate(
        {
            "dataset_name": schedule.rosters[cell.dataset_id].raw.folder.name,
            "arm": cell.arm.name,
            "label_budget": cell.label_budget,
            "seed": cell.seed,
            "draw": cell.draw,
            "key": state.key,
            "status": state.status,
            "error": state.error,
            "run": "" if result is None else result.run,
            "pretraining_run": folder,
            "num_train": None if result is None else result.num_train,
            "mean_auroc": None if result is None else result.mean_auroc,
            "mean_auroc_ci": None if result is None else result.mean_auroc_ci,
            "overlap": overlap,
            "cost": Cost() if result is None else _cost(cell, result, schedule),
        }
    )
