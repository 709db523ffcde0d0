"""Series page: folds and few-shot draws of a fine-tuning run beside each other, and learning curves over labels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from headctssl.errors import HeadCTSSLError
from headctssl.finetuning.pool_folds import ENSEMBLE, OUT_OF_FOLD
from headctssl.finetuning.series_file import Draws, LearningCurve, OverDraws
from headctssl.metrics.metrics_file import Metrics
from headctssl.reporting.charts import Line, interval_chart, line_chart
from headctssl.reporting.page import Page, Section, Table, as_table, attempted
from headctssl.reporting.run_parts import BANNER, CURVE_FILE, interval_text
from headctssl.reporting.svg import Chart
from headctssl.settings import read_json

__all__ = ["curve_page", "series_page"]

_DRAWS_FILE = "draws.json"
_TOGETHER = {
    ENSEMBLE: "the mean of the classifiers of all folds, on the test cases",
    OUT_OF_FOLD: "every case by the fold that did not learn from it",
}
_MOST_RUNS = 60


def series_page(run: Path) -> Page:
    """The page of a fine-tuning run with its folds and draws.

    Args:
        run: the folder that holds fold_0, fold_1, ..., and those of further draws in draw_1, draw_2, ...
    """
    configs = [*run.glob("fold_*/config.json"), *run.glob("draw_*/fold_*/config.json")]
    folders = sorted((path.parent for path in configs), key=lambda path: _order(path.relative_to(run)))
    folders = [run / name for name in _TOGETHER if (run / name).is_dir()] + folders
    found: dict[str, Metrics] = {}
    status = []
    for folder in folders:
        name = str(folder.relative_to(run))
        try:
            found[name] = read_json(folder / "metrics.json", Metrics)
        except HeadCTSSLError as error:
            status.append(f"{name} is not in the tables: {error.what}")
    shown = dict(list(found.items())[:_MOST_RUNS])
    sections = [_means(shown, len(found)), *_labels(shown)]
    if (run / _DRAWS_FILE).is_file():
        sections.append(attempted("Draws", lambda: _draws(read_json(run / _DRAWS_FILE, Draws))))
    sections.append(_parts(shown))
    facts = (("runs", f"{len(configs)}"), ("with metrics", f"{len([n for n in found if n not in _TOGETHER])}"))
    return Page("Fine-tuned classifiers of one task", run.name, tuple(sections), facts, BANNER, tuple(status))


def _order(path: Path) -> list[int]:
    """By number, so that fold_2 comes before fold_10."""
    return [0 if len(path.parts) == 1 else 1, *(int(n) for n in re.findall(r"\d+", str(path)))]


def _means(found: dict[str, Metrics], count: int) -> Section:
    rows = [
        (name, interval_text(m.mean_auroc, m.mean_auroc_ci), m.evaluated_on.replace("_", " "), f"{m.num_cases:,}",
         f"{m.num_subjects:,}")
        for name, m in found.items()
    ]  # fmt: skip
    drawn = {
        name: (m.mean_auroc, *(m.mean_auroc_ci or (None, None)))
        for name, m in found.items()
        if m.mean_auroc is not None
    }
    charts: tuple[Chart, ...] = ()
    if drawn:
        text = "Each is another classifier. Those judged by the same cases are not independent."
        chart = interval_chart({"": drawn}, "mean AUROC", title="Mean AUROC of each", caption=text, chance=0.5)
        charts = (chart,)
    told = [f"{name}: {text}." for name, text in _TOGETHER.items() if name in found]
    told += [f"The first {_MOST_RUNS} of {count}."] if count > _MOST_RUNS else []
    columns = ("run", "mean AUROC (95 % interval)", "judged on", "cases", "patients")
    return Section("Mean AUROC", (), (as_table(columns, rows),), charts=charts, points=tuple(told))


def _labels(found: dict[str, Metrics]) -> list[Section]:
    names = list(dict.fromkeys(e.name for m in found.values() for e in m.labels if e.auroc is not None))[:40]
    rows = []
    for name in names:
        cells = []
        for m in found.values():
            entry = next((e for e in m.labels if e.name == name), None)
            cells.append("-" if entry is None else interval_text(entry.auroc, entry.auroc_ci))
        rows.append((name, *cells))
    return [Section("Each label", (), (as_table(("label", *found), rows, "AUROC (95 % interval)"),))] if rows else []


def _draws(point: Draws) -> Section:
    text = (
        "A draw is another set of patients to learn from, judged by the same cases. The first interval says what other "
        "patients to learn from would change, the second also what other patients to judge by would."
    )
    return Section("Draws", (f"{_shots(point)}, judged by {point.evaluated_on} cases.", text), (_table((point,)),))


def _shots(point: Draws) -> str:
    if point.few_shots is None:
        return "All training cases"
    negatives = ", all negatives" if point.few_shot_negatives == "all" else ""
    return f"{point.few_shots} patient{'s' if point.few_shots > 1 else ''} per class{negatives}"


def _table(points: tuple[Draws, ...]) -> Table:
    rows = [
        (
            _shots(point),
            _named(one),
            f"{one.mean:.3f}",
            _range(one.draws_ci),
            _range(one.ci),
            ", ".join(f"{value:.3f}" for value in one.per_draw[:_MOST_RUNS]),
            f"{min(point.num_train)} to {max(point.num_train)}",
        )
        for point in points[:_MOST_RUNS]
        for one in point.auroc
    ]
    columns = ("labels", "label", "mean AUROC", "95 % over draws", "95 % over draws and patients", "each draw",
               "training cases")  # fmt: skip
    return as_table(columns, rows)


def _named(one: OverDraws) -> str:
    return "mean over labels" if one.name == "mean" else one.name


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else "{:.3f} to {:.3f}".format(*interval)


def _parts(found: dict[str, Metrics]) -> Section:
    rows = [(name, m.leakage or "-", "; ".join(m.notes) or "-") for name, m in found.items()]
    text = "headct_report of one run shows its cases, calibration and learning curves."
    return Section("What to know before reading the numbers", (text,), (as_table(("run", "leakage", "notes"), rows),))


def curve_page(folder: Path) -> Page:
    """The page of a learning curve over the number of labelled patients.

    Args:
        folder: with learning_curve.json.

    Raises:
        DataError: learning_curve.json is damaged.
    """
    found = read_json(folder / CURVE_FILE, LearningCurve)
    names = list(dict.fromkeys(one.name for point in found.points for one in point.auroc))
    lines = [line for name in names if (line := _line(found, name)).x]
    charts: tuple[Chart, ...] = ()
    if lines:
        text = "Bars: 95 % interval over draws and patients, moved aside; none with a single draw."
        chart = line_chart(
            lines, "training cases", "AUROC", title="AUROC over labelled cases", caption=text, log_x=True, chance=0.5,
            markers=True, ticks=_ticks(found),
        )  # fmt: skip
        charts = (replace(chart, wide=True),)
    section = Section(
        "Learning curve",
        ("How much is gained by more labels. Every point is judged by the same cases.",),
        (_table(found.points),),
        charts=charts,
    )
    facts = (
        ("numbers of shots", f"{len(found.points)}"),
        ("draws of each", ", ".join(str(len(point.draws)) for point in found.points[:12])),
    )
    return Page("Learning curve", f"{found.dataset_name}, {folder.name}", (section,), facts, BANNER)


def _line(found: LearningCurve, name: str) -> Line:
    """One label over the mean number of training cases."""
    points = [(p, one) for p in found.points for one in p.auroc if one.name == name]
    banded = any(one.ci is not None for _, one in points)
    nothing = (float("nan"), float("nan"))  # a single draw has no interval
    return Line(
        _named(points[0][1]) if points else name,
        [_cases(p) for p, _ in points],
        [one.mean for _, one in points],
        [(one.ci or nothing)[0] for _, one in points] if banded else None,
        [(one.ci or nothing)[1] for _, one in points] if banded else None,
    )


def _cases(point: Draws) -> float:
    return max(1.0, sum(point.num_train) / max(1, len(point.num_train)))


def _ticks(found: LearningCurve) -> list[tuple[float, str]]:
    return [(_cases(point), f"{_cases(point):.4g}") for point in found.points]
