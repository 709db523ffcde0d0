"""Comparison page: a ranking with intervals, radar and learning curves, what it cost, and what it does not show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from headctssl.evaluation.comparison import Arm, Comparison, Ranked, TestSet
from headctssl.reporting.charts import Line, interval_chart, line_chart, radar_chart
from headctssl.reporting.comparison_words import does_not_show, does_show, references
from headctssl.reporting.data_parts import is_synthetic
from headctssl.reporting.metrics_parts import p_text
from headctssl.reporting.page import Page, Section, Table, as_table
from headctssl.reporting.run_parts import interval_text
from headctssl.reporting.svg import Chart, shortened
from headctssl.settings import read_json

__all__ = ["COMPARISON_FILE", "comparison_page"]

COMPARISON_FILE = "comparison.json"

_BANNER = (
    "Not for sharing without a look: names of datasets and runs are on this page; it shows no case id and no scan. "
    "Research only: nothing on it may be used for the care of a patient."
)
_MOST_ROWS = 400
_MOST_CHARTS = 12
_SPOKES = 3  # fewest labels of a radar plot


def comparison_page(folder: Path) -> Page:
    """The page of a folder that headct_compare wrote.

    Args:
        folder: with comparison.json.

    Raises:
        DataError: comparison.json is missing or damaged.
    """
    found = read_json(folder / COMPARISON_FILE, Comparison)
    synthetic = any(is_synthetic(test.dataset_name, test.synthetic) for test in found.tests)
    failed = [cell for cell in found.cells if cell.status == "failed"]
    status = []
    if failed:
        status.append(f"{len(failed)} of {len(found.cells)} runs failed and are not in the ranking; they are listed.")
    if not found.ranking:
        status.append("No run was carried out to its end, so there is no ranking.")
    sections = [
        Section("What it shows", points=does_show(found), warnings=_overlap_words(found)),
        *(_ranking(found, test, budget) for test, budget in _tables(found)),
        _learning_curves(found),
        _radars(found),
        _cost(found),
        Section("What it does not show", points=does_not_show(found, synthetic)),
        _tests(found),
        _how(found),
        *([_failures(found)] if failed else []),
        _runs(found),
    ]
    return Page("Comparison", found.name, tuple(sections), _facts(found), _BANNER, tuple(status))


def _facts(found: Comparison) -> tuple[tuple[str, str], ...]:
    done = sum(cell.status != "failed" for cell in found.cells)
    patients = ", ".join(f"{test.num_subjects:,}" for test in found.tests)
    return (
        ("ways compared", f"{len(found.arms)}"),
        ("runs carried out", f"{done} of {len(found.cells)}"),
        ("seeds x draws", f"{found.grid.seeds} x {found.grid.draws}"),
        ("label budgets", ", ".join(budget_text(b) for b in found.grid.label_budgets)),
        ("test patients", patients),
    )


def budget_text(budget: int | None) -> str:
    """A label budget in a word."""
    return "all" if budget is None else str(budget)


def _tables(found: Comparison) -> Iterator[tuple[TestSet, int | None]]:
    """Every dataset and budget that has a ranking, the largest budget first."""
    for test in found.tests:
        budgets = sorted({r.label_budget for r in found.ranking if r.dataset_name == test.dataset_name}, key=_size)
        for budget in reversed(budgets):
            yield test, budget


def _size(budget: int | None) -> float:
    return float("inf") if budget is None else budget


def _labels_of(budget: int | None) -> str:
    if budget is None:
        return "all labels"
    return f"{budget} patient{'s' if budget > 1 else ''} per class"


def _overlap_words(found: Comparison) -> tuple[str, ...]:
    marked = {mark: sorted({r.arm for r in found.ranking if r.overlap == mark}) for mark in ("overlap", "unchecked")}
    told = []
    if marked["overlap"]:
        told.append(
            "Test cases were in the pretraining data of: " + ", ".join(marked["overlap"]) + ". Their results "
            "may be optimistic and are marked."
        )
    if marked["unchecked"]:
        told.append(
            "It cannot be checked whether test cases were in the pretraining data of: "
            + ", ".join(marked["unchecked"])
            + "."
        )
    return tuple(shortened(text, 600) for text in told)


def _ranking(found: Comparison, test: TestSet, budget: int | None) -> Section:
    rows = found.ranked(test.dataset_name, budget)
    table = as_table(
        (
            "rank (95 %)",
            "way",
            "mean AUROC (95 % interval)",
            "difference from scratch (95 % interval)",
            "p (Holm)",
            "seeds, runs",
            "spread over seeds",
            "mark",
        ),
        [
            (
                f"{r.rank}" + ("" if r.rank_ci is None else f" ({r.rank_ci[0]} to {r.rank_ci[1]})"),
                r.arm,
                interval_text(r.mean_auroc, r.mean_auroc_ci),
                _difference(r),
                "-" if r.p_holm is None else p_text(r.p_holm),
                f"{r.num_seeds}, {r.num_runs}",
                "-" if r.seed_spread is None else f"{r.seed_spread:.3f}",
                r.overlap or "-",
            )
            for r in rows[:_MOST_ROWS]
        ],
    )
    drawn = {r.arm: (r.mean_auroc, *(r.mean_auroc_ci or (None, None))) for r in rows[:40]}
    chart = interval_chart(
        {"": drawn},
        "mean AUROC",
        title=f"Mean AUROC, {_labels_of(budget)}",
        chance=0.5,
        caption=f"Bars: 95 % interval, {found.interval}. Overlapping bars do not rule out a paired difference.",
        wide=True,
    )
    per_label = _per_label(test, rows)
    text = (
        f"{len(rows)} ways judged by the same {test.num_cases:,} test cases of {test.num_subjects:,} patients. The "
        "rank interval says between which places a way moved over the bootstrap resamples. "
        f"{references(rows)}"
    ).strip()
    of = "" if len(found.tests) == 1 else f" on {test.dataset_name}"
    title = f"Ranking{of}, {_labels_of(budget)}"
    return Section(title, (text,), (table, *per_label), charts=(chart,))


def _difference(r: Ranked) -> str:
    if r.difference is None:
        return "-"
    interval = "" if r.difference_ci is None else f" ({r.difference_ci[0]:+.3f} to {r.difference_ci[1]:+.3f})"
    return f"{r.difference:+.3f}{interval}"


def _per_label(test: TestSet, rows: Sequence[Ranked]) -> tuple[Table, ...]:
    if len(test.labels) < 2:
        return ()
    names = test.labels[:20]
    cells = [(r.arm, *(_of_label(r, name) for name in names)) for r in rows[:_MOST_ROWS]]
    return (as_table(("way", *names), cells, "AUROC per label (95 % interval)"),)


def _of_label(r: Ranked, name: str) -> str:
    return next((interval_text(s.auroc, s.auroc_ci) for s in r.labels if s.label == name), "-")


def _groups(found: Comparison) -> list[tuple[str, list[Arm]]]:
    """Ways that belong into one chart: one encoder and adaptation, with the baselines to hold them against."""
    trained = [arm for arm in found.arms if arm.kind in ("pretrained", "given")]
    keys = list(dict.fromkeys((arm.encoder, arm.adapt) for arm in trained))
    if not keys:
        return [("", list(found.arms))]
    groups = []
    for encoder, adapt in keys:
        arms = [a for a in trained if (a.encoder, a.adapt) == (encoder, adapt)]
        arms += [a for a in found.arms if a not in trained and a.encoder in ("", encoder)]
        groups.append((" ".join(part for part in (encoder, adapt) if part), arms))
    return groups


def _learning_curves(found: Comparison) -> Section:
    title = "Learning curves"
    budgets = sorted(set(found.grid.label_budgets), key=_size)
    if len(budgets) < 2:
        return Section(title, ("Only one label budget was compared, so there is no curve.",))
    numbers = [b for b in budgets if b is not None]
    place: dict[int | None, float] = {b: float(b) for b in numbers}
    if None in budgets:
        place[None] = 2.0 * max(numbers)
    ticks = [(place[b], budget_text(b)) for b in budgets]
    charts: list[Chart] = []
    for test in found.tests:
        for name, arms in _groups(found):
            lines = [_curve(found, test, arm, place) for arm in arms]
            charts.append(
                line_chart(
                    [line for line in lines if line.x],
                    "patients per class and label to learn from",
                    "mean AUROC",
                    title=f"{test.dataset_name}: {name}",
                    caption="Bars: 95 % intervals, moved aside. 'all' stands at no number.",
                    log_x=True,
                    chance=0.5,
                    ticks=ticks,
                    markers=True,
                )
            )
    more = (f"The first {_MOST_CHARTS} of {len(charts)} charts.",) if len(charts) > _MOST_CHARTS else ()
    text = "How much is gained by more labels, and where pretraining saves them."
    return Section(title, (text, *more), charts=tuple(charts[:_MOST_CHARTS]))


def _curve(found: Comparison, test: TestSet, arm: Arm, place: dict[int | None, float]) -> Line:
    rows = [r for r in found.ranking if r.dataset_name == test.dataset_name and r.arm == arm.name]
    rows.sort(key=lambda r: _size(r.label_budget))
    banded = any(r.mean_auroc_ci is not None for r in rows)
    nothing = (float("nan"), float("nan"))
    return Line(
        arm.name,
        [place[r.label_budget] for r in rows],
        [r.mean_auroc for r in rows],
        [(r.mean_auroc_ci or nothing)[0] for r in rows] if banded else None,
        [(r.mean_auroc_ci or nothing)[1] for r in rows] if banded else None,
    )


def _radars(found: Comparison) -> Section:
    title = "Radar"
    charts: list[Chart] = []
    for test, budget in _tables(found):
        if len(test.labels) < _SPOKES:
            continue
        ranked = {r.arm: r for r in found.ranked(test.dataset_name, budget)}
        for name, arms in _groups(found):
            values = {a.name: {s.label: s.auroc for s in ranked[a.name].labels} for a in arms if a.name in ranked}
            if values:
                low = min(0.5, min(v for labels in values.values() for v in labels.values()))
                charts.append(
                    radar_chart(
                        values,
                        title=f"{test.dataset_name}, {budget_text(budget)}: {name}",
                        caption=f"AUROC per label from {low:.2f} in the middle to 1 at the rim.",
                        low=low,
                    )
                )
    if not charts:
        return Section(title, (f"A radar plot needs at least {_SPOKES} labels; the tables above have the values.",))
    text = (
        "One spoke per label. Radar plots show no intervals, and their area depends on the order of the spokes: read "
        "the tables before calling a difference real."
    )
    return Section(title, (text,), charts=tuple(charts[:_MOST_CHARTS]))


def _cost(found: Comparison) -> Section:
    rows = []
    for arm in found.arms:
        ranked = [r for r in found.ranking if r.arm == arm.name]
        if not ranked:
            continue
        cost = [r.cost for r in ranked]
        rows.append(
            (
                arm.name,
                f"{max(c.scans_seen for c in cost):,}",
                _hours([c.pretraining_hours for c in cost]),
                _hours([c.finetuning_hours for c in cost]),
                next((f"{c.parameters_trained:,}" for c in cost if c.parameters_trained is not None), "-"),
            )
        )
    text = (
        "Hours are wall-clock hours of one run on the machine that ran it, the mean over its runs, and depend on "
        "what else it did. Scans seen count every draw of pretraining."
    )
    columns = ("way", "scans seen in pretraining", "pretraining, h", "adaptation, h", "numbers that adaptation learns")
    return Section("Cost", (text,), (as_table(columns, rows),))


def _hours(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{max(known):.3f}" if known else "-"


def _tests(found: Comparison) -> Section:
    tables = []
    for test in found.tests:
        counts = zip(test.labels, test.positives, test.negatives, strict=True)
        caption = f"{test.dataset_name}: {test.num_cases:,} test cases of {test.num_subjects:,} patients" + (
            f", {test.num_left_out} left out for all because one way cannot see them" if test.num_left_out else ""
        )
        tables.append(as_table(("label", "positive", "negative"), list(counts), caption))
    return Section("Test cases", ("The same for every way.",), tuple(tables))


def _how(found: Comparison) -> Section:
    rows = [(a.name, a.kind, a.method, a.encoder or "-", a.adapt) for a in found.arms]
    grid = found.grid.model_dump(mode="json")
    settings = [(name, json.dumps(value, ensure_ascii=False)) for name, value in grid.items()]
    notes = tuple(f"{note[0].upper()}{note[1:]}." for note in found.notes if note)
    tables = (
        as_table(("way", "kind", "method", "encoder", "adaptation"), rows, "Ways"),
        as_table(("asked for", "value"), settings, "Grid"),
    )
    text = f"Made with headctssl {found.package_version}; {found.num_resamples:,} resamples."
    return Section("How it was compared", (text, *notes), tables, folded=True)


def _failures(found: Comparison) -> Section:
    rows = [
        (c.arm, c.dataset_name, budget_text(c.label_budget), c.seed, c.draw, shortened(c.error, 300))
        for c in found.cells
        if c.status == "failed"
    ]
    columns = ("way", "dataset", "labels", "seed", "draw", "why")
    return Section("Runs that failed", (), (as_table(columns, rows[:_MOST_ROWS]),))


def _runs(found: Comparison) -> Section:
    rows = [
        (
            c.arm,
            c.dataset_name,
            budget_text(c.label_budget),
            c.seed,
            c.draw,
            c.status,
            interval_text(c.mean_auroc, c.mean_auroc_ci),
            "-" if c.num_train is None else c.num_train,
            "-" if c.overlap is None else c.overlap.sentence,
        )
        for c in found.cells[:_MOST_ROWS]
    ]
    more = (
        f"The first {_MOST_ROWS} of {len(found.cells)}; comparison.csv has all."
        if len(found.cells) > _MOST_ROWS
        else ""
    )
    columns = ("way", "dataset", "labels", "seed", "draw", "status", "mean AUROC", "training cases", "overlap")
    return Section("Every run", (more,) if more else (), (as_table(columns, rows),), folded=True)
