"""Type parts: sections on labels that are not binary, and on studies of several scans."""

from __future__ import annotations

from collections.abc import Sequence

from headctssl.metrics.metrics_file import LabelMetrics, StudyMetrics
from headctssl.reporting.page import Section, Table, as_table
from headctssl.reporting.run_parts import interval_text

__all__ = ["other_types_section", "studies_section"]

_HOW = {"mean": "their mean", "max": "their maximum", "attention": "attention over the scans, which was learnt"}

MOST_LABELS = 40
"""Labels in tables; metrics.json has them all."""


def other_types_section(labels: Sequence[LabelMetrics]) -> Section | None:
    """Metrics of multiclass, ordinal and continuous labels with intervals and confusion; None without such labels.

    Args:
        labels: what was measured, of any type.
    """
    tables = _tables(labels)
    if not tables:
        return None
    text = (
        "AUROC is the mean of one class against the rest. Balanced accuracy and macro F1 are means over the classes. "
        "Errors of ordinal labels are in classes, those of continuous labels in the label's own unit."
    )
    return Section("Classes, grades and numbers", (text,), tuple(tables))


def studies_section(studies: StudyMetrics | None) -> Section | None:
    """Metrics with one prediction per study; None where no study has several scans.

    Args:
        studies: the block of metrics.json.
    """
    if studies is None:
        return None
    text = (
        f"The predictions of the scans of one session of a patient were brought together by {_HOW[studies.aggregate]}: "
        f"{studies.num_studies:,} studies, {studies.num_with_several:,} of more than one scan."
    )
    binary = [m for m in studies.labels if m.type == "binary"][:MOST_LABELS]
    rows = [
        (m.name, interval_text(m.auroc, m.auroc_ci), interval_text(m.auprc, m.auprc_ci), m.n_positive, m.n_negative)
        for m in binary
    ]
    columns = ("label", "AUROC (95 % interval)", "AUPRC (95 % interval)", "positive", "negative")
    tables = [as_table(columns, rows)] if rows else []
    notes = tuple(f"{note[0].upper()}{note[1:]}." for note in studies.notes)
    return Section("By study", (text, *notes), (*tables, *_tables(studies.labels)))


def _tables(labels: Sequence[LabelMetrics]) -> list[Table]:
    shown = labels[:MOST_LABELS]
    tables = []
    classes = [m for m in shown if m.type in ("multiclass", "ordinal")]
    if classes:
        rows = [
            (
                m.name,
                m.n_known,
                interval_text(m.auroc if m.type == "multiclass" else m.quadratic_kappa, _agreement_interval(m)),
                interval_text(m.balanced_accuracy, m.balanced_accuracy_ci),
                interval_text(m.macro_f1, m.macro_f1_ci),
                interval_text(m.mae, m.mae_ci),
                m.reason or "",
            )
            for m in classes
        ]
        heads = ("label", "cases", "AUROC, or kappa of grades", "balanced accuracy", "macro F1", "mean error", "note")
        tables.append(as_table(heads, rows, "Classes and grades, with 95 % intervals"))
        tables += [_confusion(m) for m in classes if m.n_known]
    numbers = [m for m in shown if m.type == "continuous"]
    if numbers:
        rows_of_numbers = [
            (
                m.name,
                m.n_known,
                interval_text(m.mae, m.mae_ci),
                interval_text(m.rmse, m.rmse_ci),
                interval_text(m.r2, m.r2_ci),
                interval_text(m.spearman, m.spearman_ci),
                m.reason or "",
            )
            for m in numbers
        ]
        heads = ("label", "cases", "mean error", "root mean square", "R2", "Spearman", "note")
        tables.append(as_table(heads, rows_of_numbers, "Numbers, with 95 % intervals"))
    return tables


def _agreement_interval(m: LabelMetrics) -> tuple[float, float] | None:
    return m.auroc_ci if m.type == "multiclass" else m.quadratic_kappa_ci


def _confusion(m: LabelMetrics) -> Table:
    rows = [(name, *counts) for name, counts in zip(m.classes, m.confusion, strict=True)]
    return as_table(("truth", *(f"called {name}" for name in m.classes)), rows, f"Confusion of {m.name}: cases")
