"""Metrics parts: sections on what was measured: per label with intervals, at a threshold, and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headctssl.metrics.metrics_file import LabelMetrics, Metrics
from headctssl.metrics.outcome import Outcome
from headctssl.reporting.charts import Line, interval_chart, line_chart, reliability_chart, scatter_chart
from headctssl.reporting.judged import known_cases
from headctssl.reporting.page import Section, Table, as_table
from headctssl.reporting.run_parts import interval_text, number
from headctssl.reporting.svg import Chart

__all__ = [
    "calibration_section",
    "judged_facts",
    "metrics_table",
    "number_charts",
    "p_text",
    "quality_section",
    "threshold_section",
]

MOST_LABELS = 40
"""Labels in charts and tables; metrics.json has them all."""

MOST_CURVES = 12


def judged_facts(metrics: Metrics) -> tuple[tuple[str, str], ...]:
    """The facts at the top of a page about a classifier."""
    return (
        ("mean AUROC (95 % interval)", interval_text(metrics.mean_auroc, metrics.mean_auroc_ci)),
        ("judged on", f"{metrics.num_cases:,} {metrics.evaluated_on} cases"),
        ("patients", f"{metrics.num_subjects:,}"),
        ("labels", f"{len(metrics.labels)}"),
    )


def metrics_table(labels: Sequence[LabelMetrics]) -> Table:
    """AUROC and AUPRC of binary labels with intervals and counts."""
    rows = [
        (
            label.name,
            interval_text(label.auroc, label.auroc_ci),
            "-" if label.auroc_p_value is None else p_text(label.auroc_p_value),
            interval_text(label.auprc, label.auprc_ci),
            "-" if label.n_positive is None else label.n_positive,
            "-" if label.n_negative is None else label.n_negative,
            label.reason or "",
        )
        for label in labels[:MOST_LABELS]
    ]
    columns = ("label", "AUROC (95 % interval)", "p of chance", "AUPRC (95 % interval)", "positive", "negative", "note")
    return as_table(columns, rows)


def quality_section(metrics: Metrics, outcome: Outcome | None) -> Section:
    """Metrics per label with intervals, and ROC curves where the cases can be read.

    Args:
        metrics: what was measured.
        outcome: the cases; None where they cannot be read.
    """
    binary = [label for label in metrics.labels if label.type == "binary"][:MOST_LABELS]
    charts: list[Chart] = []
    drawn = {m.name: (m.auroc, *(m.auroc_ci or (None, None))) for m in binary if m.auroc is not None}
    if drawn:
        text = "Dot: value. Bar: 95 % interval over patients. Dotted line: chance."
        charts.append(interval_chart({"": drawn}, "AUROC", title="AUROC of each label", caption=text, chance=0.5))
    if outcome is not None:
        charts += _roc_charts(metrics, outcome)
    more = (
        (f"The first {MOST_LABELS} of {len(metrics.labels)} labels; metrics.json has all.",)
        if len(metrics.labels) > MOST_LABELS
        else ()
    )
    tables = (metrics_table(binary),) if binary else ()
    return Section("How good it is", (_lead(metrics), *more), tables, charts=tuple(charts))


def number_charts(outcome: Outcome) -> tuple[Chart, ...]:
    """Predicted against true numbers, one chart per continuous label.

    Args:
        outcome: the judged cases.
    """
    charts: list[Chart] = []
    for column, spec in enumerate(outcome.specs):
        truth, predicted, _ = known_cases(outcome, column)
        if spec.type == "continuous" and truth.size and len(charts) < MOST_CURVES:
            charts.append(scatter_chart(truth, predicted, ("truth", "predicted"), title=spec.name))
    return tuple(charts)


def _lead(metrics: Metrics) -> str:
    failed = (
        f" {metrics.num_failed} further cases could not be preprocessed and are not in the numbers."
        if metrics.num_failed
        else ""
    )
    return (
        f"Measured on {metrics.num_cases:,} {metrics.evaluated_on} cases of {metrics.num_subjects:,} patients. "
        f"Intervals: {100 * metrics.confidence:g} %, {metrics.interval}. An interval that contains 0.5 means that "
        f"chance explains the AUROC; the baseline of AUPRC is the share of positives.{failed}"
    )


def _roc_charts(metrics: Metrics, outcome: Outcome) -> list[Chart]:
    """One ROC curve per binary label, with the point of the threshold."""
    from sklearn.metrics import roc_curve

    charts: list[Chart] = []
    for column, spec in enumerate(outcome.specs):
        entry = metrics.label(spec.name)
        if entry.type != "binary" or entry.auroc is None or len(charts) == MOST_CURVES:
            continue
        truth, probability, _ = known_cases(outcome, column)
        false_alarms, hits, _ = roc_curve(truth > 0.5, probability)
        at = []
        if entry.sensitivity is not None and entry.specificity is not None:
            at = [(1 - entry.specificity, entry.sensitivity, f"threshold {entry.threshold:g}")]
        name = f"AUROC {entry.auroc:.3f}"
        line = Line(name, np.asarray(false_alarms).tolist(), np.asarray(hits).tolist())
        charts.append(
            line_chart(
                [line],
                "1 - specificity",
                "sensitivity",
                title=f"ROC of {spec.name}",
                caption=f"{entry.n_positive} positive, {entry.n_negative} negative cases.",
                unit_square=True,
                points=at,
            )
        )
    return charts


def threshold_section(labels: Sequence[LabelMetrics]) -> Section | None:
    """Confusion at the stated threshold and operating points; None without a binary label that has them."""
    shown = [m for m in labels if m.type == "binary" and m.sensitivity is not None][:MOST_LABELS]
    if not shown:
        return None
    confusion, rates, points = [], [], []
    for m in shown:
        assert m.n_positive is not None, "a label with a sensitivity has positives"
        assert m.n_negative is not None, "a label with a specificity has negatives"
        assert m.threshold is not None, "a sensitivity belongs to a threshold"
        hits = round((m.sensitivity or 0) * m.n_positive)
        alarms = m.n_negative - round((m.specificity or 0) * m.n_negative)
        name, at = m.name, f"{m.threshold:.3g}"
        confusion.append((name, at, hits, m.n_positive - hits, alarms, m.n_negative - alarms))
        rates.append(
            (
                name,
                interval_text(m.sensitivity, m.sensitivity_ci),
                interval_text(m.specificity, m.specificity_ci),
                interval_text(m.balanced_accuracy, m.balanced_accuracy_ci),
                interval_text(m.f1, m.f1_ci),
            )
        )
        points.append(
            (
                name,
                interval_text(m.sensitivity_at_90_specificity, m.sensitivity_at_90_specificity_ci),
                interval_text(m.specificity_at_90_sensitivity, m.specificity_at_90_sensitivity_ci),
            )
        )
    counts = ("label", "threshold", "true positive", "false negative", "false positive", "true negative")
    text = (
        "A probability of the threshold or more is called positive. The threshold was not tuned on these cases. "
        "The fixed operating points below were found on these very cases, so they are optimistic."
    )
    return Section(
        "Calls at a threshold",
        (text,),
        (
            as_table(counts, confusion, "Confusion: cases by truth and call"),
            as_table(("label", "sensitivity", "specificity", "balanced accuracy", "F1"), rates, "At that threshold"),
            as_table(
                ("label", "sensitivity at 90 % specificity", "specificity at 90 % sensitivity"),
                points,
                "Operating points",
            ),
        ),
    )


def calibration_section(labels: Sequence[LabelMetrics], temperature: float | None) -> Section | None:
    """Whether probabilities mean what they say; None without a label that has a reliability curve.

    Args:
        labels: what was measured.
        temperature: that the logits were divided by; None where it is not known.
    """
    shown = [m for m in labels if m.reliability][:MOST_LABELS]
    if not shown:
        return None
    rows = [
        (
            m.name,
            interval_text(m.brier, m.brier_ci),
            number(m.brier_uncalibrated),
            _prior(m),
            number(m.ece),
            number(m.ece_uncalibrated),
            number(m.log_loss),
            number(m.log_loss_uncalibrated),
        )
        for m in shown
    ]
    charts = tuple(
        reliability_chart(m.reliability, title=f"Reliability of {m.name}", caption=_bins(m))
        for m in shown[:MOST_CURVES]
    )
    scaled = "" if temperature in (None, 1.0) else f" Logits were divided by a temperature of {temperature:.3g}."
    text = (
        "Each dot is a bin of about equally many cases; a larger dot holds more. On the dotted line probabilities mean "
        "what they say. With few cases the dots scatter by chance alone, and the expected calibration error (ECE) of "
        "even a perfect model is above 0. Lower is better; the prior is always saying the share of positives." + scaled
    )
    columns = (
        "label",
        "Brier score (95 % interval)",
        "Brier score before the temperature",
        "Brier score of the prior",
        "ECE",
        "ECE before",
        "log loss",
        "log loss before",
    )
    return Section("Calibration", (text,), (as_table(columns, rows),), charts=charts)


def _bins(m: LabelMetrics) -> str:
    """How many cases the dots stand for, and whether they say anything."""
    cases = sum(count for *_, count in m.reliability)
    text = f"{cases} cases in {len(m.reliability)} bins."
    return text if cases >= 10 * len(m.reliability) else f"{text} Too few a bin to judge."


def p_text(value: float) -> str:
    """A p value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _prior(m: LabelMetrics) -> str:
    """Brier score of a model that gives everybody the share of positives."""
    if not m.n_positive or not m.n_negative:
        return "-"
    share = m.n_positive / (m.n_positive + m.n_negative)
    return f"{share * (1 - share):.3f}"
