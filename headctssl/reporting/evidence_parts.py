"""Evidence parts: how a classifier does by group, by distance from what it was trained on, and by sureness."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from headctssl.errors import DataError
from headctssl.evaluation.evaluation_file import AbstentionCurve, Distances, Evaluation, Subgroup
from headctssl.reporting.charts import Line, histogram_chart, interval_chart, line_chart
from headctssl.reporting.page import Section, as_table
from headctssl.reporting.run_parts import interval_text, number
from headctssl.reporting.svg import Chart
from headctssl.settings import read_json

__all__ = ["EVALUATION_FILE", "evidence_sections"]

EVALUATION_FILE = "evaluation.json"

_MOST_GROUPS = 40  # of a column
_MOST_CURVES = 8
_ORDERS = {"probability": "least sure first", "distance": "farthest scan first"}


def evidence_sections(folder: Path) -> list[Section]:
    """Subgroups, distances and abstention of an evaluation; none where it has no evaluation.json.

    Args:
        folder: of the evaluation.

    Raises:
        DataError: evaluation.json or distances.csv is damaged.
    """
    if not (folder / EVALUATION_FILE).is_file():
        return []
    found = read_json(folder / EVALUATION_FILE, Evaluation)
    sections = [_subgroups(found.subgroups)]
    sections.append(_distances(found.distances, folder / "distances.csv", found.notes))
    if found.abstention:
        sections.append(_abstention(found.abstention))
    return sections


def _subgroups(groups: Sequence[Subgroup]) -> Section:
    title = "By group"
    if not groups:
        text = "cases.csv has no column with more than one group of scanner, kernel, slice thickness, age or sex."
        return Section(title, (text,))
    charts, tables = [], []
    for column in dict.fromkeys(group.column for group in groups):
        of_column = [group for group in groups if group.column == column]
        rows = [
            (
                group.group,
                f"{group.num_cases:,}",
                f"{group.num_subjects:,}",
                label.name,
                f"{label.n_positive} / {label.n_negative}",
                interval_text(label.auroc, label.auroc_ci),
                label.reason or "",
            )
            for group in of_column[:_MOST_GROUPS]
            for label in group.labels
        ]
        cut = "" if len(of_column) <= _MOST_GROUPS else f", the first {_MOST_GROUPS} of {len(of_column)} groups"
        columns = ("group", "cases", "patients", "label", "positive / negative", "AUROC (95 % interval)", "note")
        name = column.replace("_", " ")
        tables.append(as_table(columns, rows, f"{name}: {of_column[0].rule}{cut}"))
        charts += _forest(name, of_column[:_MOST_GROUPS])
    text = (
        "Groups with few patients of a class are counted but not scored. With many groups some differ by chance: "
        "overlapping intervals are no sign of a difference, and none of these was tested."
    )
    return Section(title, (text,), tuple(tables), charts=tuple(charts))


def _forest(name: str, groups: Sequence[Subgroup]) -> list[Chart]:
    """AUROC of every scored label in every group; none where nothing was scored."""
    drawn: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for group in groups:
        for label in group.labels:
            if label.auroc is not None:
                low, high = label.auroc_ci or (None, None)
                drawn.setdefault(label.name, {})[group.group] = (label.auroc, low, high)
    if not drawn:
        return []
    some = dict(list(drawn.items())[:5])
    text = "Bar: 95 % interval." + (f" The first 5 of {len(drawn)} labels." if len(drawn) > 5 else "")
    return [interval_chart(some, "AUROC", title=f"AUROC by {name}", caption=text, chance=0.5)]


def _distances(found: Distances | None, path: Path, notes: Sequence[str]) -> Section:
    title = "How far these scans are from the training scans"
    if found is None:
        return Section(title, tuple(f"{note[0].upper()}{note[1:]}." for note in notes if note))
    interval = "" if found.share_beyond_ci is None else " ({:.0%} to {:.0%})".format(*found.share_beyond_ci)
    texts = (
        f"Distance in the classifier's feature space, where 1 is as far as 95 % of {found.num_reference:,} training "
        f"scans lie themselves. {found.share_beyond:.0%}{interval} of these scans lie beyond 1, where 5 % are to be "
        f"expected; the middle scan lies at {found.median:.2f}.",
        "A far scan is unlike what the classifier was trained on. That its answer is wrong does not follow: the table "
        "says how well the distance tells wrong answers from right ones (AUROC, 0.5 is chance).",
    )
    rows = [(label, f"{value:.3f}") for label, value in list(found.error_auroc.items())[:_MOST_GROUPS]]
    tables = (as_table(("label", "AUROC of the distance for errors"), rows),) if rows else ()
    values = _read_distances(path)
    charts: tuple[Chart, ...] = ()
    if values:
        charts = (histogram_chart(values, "distance (1: as far as 95 % of the training scans)", title="Distances"),)
    return Section(title, texts, tables, charts=charts)


def _read_distances(path: Path) -> list[float]:
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            return [float(row["distance"]) for row in csv.DictReader(handle)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "distances.csv is damaged.",
            got=f"{type(error).__name__}: {error}"[:100],
            expected="a column of numbers named distance",
            do="Evaluate again with headct_evaluate.",
        ) from None


def _abstention(curves: Sequence[AbstentionCurve]) -> Section:
    by_label: dict[str, list[AbstentionCurve]] = {}
    for curve in curves:
        by_label.setdefault(curve.label, []).append(curve)
    charts = [
        line_chart(
            [Line(_ORDERS[c.order], [x for x, _ in c.curve], [y for _, y in c.curve]) for c in of_label],
            "share of cases answered",
            "share of wrong answers",
            title=f"Abstention: {label}",
            markers=False,
        )
        for label, of_label in list(by_label.items())[:_MOST_CURVES]
    ]
    rows = [
        (c.label, _ORDERS[c.order], interval_text(c.aurc, c.aurc_ci), number(c.error_rate), number(c.best_aurc))
        for c in curves[: 2 * _MOST_GROUPS]
    ]
    columns = ("label", "left out", "area under the curve (95 % interval)", "wrong when all are answered",
               "best possible area")  # fmt: skip
    text = (
        "What is gained when the classifier leaves its least sure cases to somebody else. An order that says nothing "
        "about errors keeps the share of wrong answers where it is; a lower area is better."
    )
    return Section("Leaving out what it is not sure of", (text,), (as_table(columns, rows),), charts=tuple(charts))
