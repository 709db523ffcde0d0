"""Folds page: the folds of one fine-tuning run beside each other."""

from __future__ import annotations

import re
from pathlib import Path

from headctssl.errors import HeadCTSSLError
from headctssl.metrics.metrics_file import Metrics
from headctssl.reporting.charts import interval_chart
from headctssl.reporting.page import Page, Section, as_table
from headctssl.reporting.run_parts import BANNER, interval_text
from headctssl.reporting.svg import Chart
from headctssl.settings import read_json

__all__ = ["folds_page"]


def folds_page(run: Path) -> Page:
    """The page of a fine-tuning run with its folds.

    Args:
        run: the folder that holds fold_0, fold_1, ...
    """
    folds = sorted((p for p in run.glob("fold_*") if (p / "config.json").is_file()), key=_order)
    found: dict[str, Metrics] = {}
    status = []
    for fold in folds:
        try:
            found[fold.name] = read_json(fold / "metrics.json", Metrics)
        except HeadCTSSLError as error:
            status.append(f"{fold.name} is not in the tables: {error.what}")
    sections = [_means(found), *_labels(found), _parts(found)]
    facts = (("folds", f"{len(folds)}"), ("with metrics", f"{len(found)}"))
    return Page("Fine-tuned classifiers, fold by fold", run.name, tuple(sections), facts, BANNER, tuple(status))


def _order(path: Path) -> tuple[int, str]:
    number = re.search(r"\d+$", path.name)
    return (int(number.group()) if number else 10**9, path.name)


def _means(found: dict[str, Metrics]) -> Section:
    rows = [
        (name, interval_text(m.mean_auroc, m.mean_auroc_ci), m.evaluated_on, f"{m.num_cases:,}", f"{m.num_subjects:,}")
        for name, m in found.items()
    ]
    drawn = {
        n: (m.mean_auroc, *(m.mean_auroc_ci or (None, None))) for n, m in found.items() if m.mean_auroc is not None
    }
    charts: tuple[Chart, ...] = ()
    if drawn:
        text = "Each fold is another classifier. Folds judged by the same test cases are not independent."
        chart = interval_chart({"": drawn}, "mean AUROC", title="Mean AUROC of each fold", caption=text, chance=0.5)
        charts = (chart,)
    columns = ("fold", "mean AUROC (95 % interval)", "judged on", "cases", "patients")
    return Section("Mean AUROC", (), (as_table(columns, rows),), charts=charts)


def _labels(found: dict[str, Metrics]) -> list[Section]:
    names = list(dict.fromkeys(entry.name for m in found.values() for entry in m.labels))[:40]
    rows = []
    for name in names:
        cells = []
        for m in found.values():
            entry = next((e for e in m.labels if e.name == name), None)
            cells.append("-" if entry is None else interval_text(entry.auroc, entry.auroc_ci))
        rows.append((name, *cells))
    return [Section("Each label", (), (as_table(("label", *found), rows, "AUROC (95 % interval)"),))] if rows else []


def _parts(found: dict[str, Metrics]) -> Section:
    rows = [(name, m.leakage or "-", "; ".join(m.notes) or "-") for name, m in found.items()]
    text = "headct_report of one fold shows its cases, calibration and learning curves."
    return Section("What to know before reading the numbers", (text,), (as_table(("fold", "leakage", "notes"), rows),))
