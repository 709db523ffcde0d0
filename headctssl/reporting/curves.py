"""Curves: what a run logged, as charts, and the signs of collapse among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from headctssl.reporting.charts import Line, line_chart
from headctssl.reporting.page import Table, as_table
from headctssl.reporting.svg import Chart
from headctssl.training.collapse import CollapseGuard
from headctssl.training.run_lines import read_lines

__all__ = [
    "CUT_SHORT",
    "RunLines",
    "collapse_note",
    "collapse_table",
    "finetune_charts",
    "metric_lines",
    "pretrain_charts",
]

CUT_SHORT = "The last line of metrics.jsonl was cut short, as after a crash, and is left out."

MOST_OTHERS = 12
"""Further quantities that are drawn."""

_SIGNS = {
    "feature_std": "spread of the encoder's features over the views of a step",
    "embedding_std": "spread of what the loss compares",
    "target_std": "spread of the teacher's tokens",
    "embedding_rank": "number of directions that the embeddings use",
    "monitor_feature_std": "spread of the features of whole heads",
    "monitor_rank_me": "effective rank of the features of whole heads (RankMe)",
}
_TITLES = {
    "feature_std": "Spread of features",
    "embedding_std": "Spread of embeddings",
    "target_std": "Spread of targets",
    "embedding_rank": "Directions of embeddings",
    "monitor_feature_std": "Spread of features, whole heads",
    "monitor_rank_me": "RankMe, whole heads",
}
_SAYS = {
    "fell": "suspicious: far nearer to a single point than at first",
    "held": "no sign of collapse",
    "not judged": "not judged",
}
_KNOWN = {
    "step",
    "epoch",
    "loss",
    "lr",
    "scans_per_second",
    "data_wait",
    "seconds",
    "gradient_norm",
    "monitor_seconds",
    "probe_rank_me",
}
_PROBES = {"linear": "linear readout", "attentive": "attentive readout", "knn": "nearest neighbours"}
_CHOSEN_BY = {
    "validation_auroc": "mean AUROC",
    "validation_score": "share of pairs ranked right",
}
_VALIDATION = (*_CHOSEN_BY, "validation_loss")


@dataclass(frozen=True)
class RunLines:
    """The numeric fields of a metrics.jsonl."""

    lines: tuple[dict[str, float], ...]
    cut_short: bool = False  # the last line was not whole, as after a crash

    def line(self, name: str, label: str = "") -> Line:
        """One quantity over the steps."""
        found = [(line["step"], line[name]) for line in self.lines if name in line and "step" in line]
        return Line(label or name.replace("_", " "), [x for x, _ in found], [y for _, y in found])

    def has(self, name: str) -> bool:
        """Whether any line has the quantity."""
        return any(name in line for line in self.lines)

    @property
    def last(self) -> Mapping[str, float]:
        """The last line with a loss; empty without one."""
        return next((line for line in reversed(self.lines) if "loss" in line), {})


def metric_lines(path: Path) -> RunLines:
    """The numeric fields of every line of a metrics.jsonl; a last line that a crash cut short is left out.

    Args:
        path: the file; no file gives no lines.

    Raises:
        DataError: a line before the last is not a JSON object; file and line are named.
    """
    logged = read_lines(path)
    return RunLines(tuple(_numbers(line) for line in logged.lines), logged.cut_short)


def _numbers(line: Mapping[str, object]) -> dict[str, float]:
    return {k: float(v) for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def pretrain_charts(run: RunLines) -> tuple[Chart, ...]:
    """Loss, rate, speed, monitors and every further quantity of a pretraining run.

    Args:
        run: what it logged.
    """
    charts = []
    if run.has("loss"):
        charts.append(_over_steps(run, "loss", "Loss", "Of the objective; lower is not better features."))
    probes = _probe_chart(run)
    charts += [] if probes is None else [probes]
    charts += [
        _over_steps(run, name, _titled(name), f"{name}: {text}.") for name, text in _SIGNS.items() if run.has(name)
    ]
    for name, title, text in (
        ("lr", "Learning rate", "As used, warm-up included."),
        ("gradient_norm", "Gradient norm", "Before clipping."),
        ("scans_per_second", "Scans per second", "Over all processes."),
        ("data_wait", "Share of time waiting for data", "The target is under 2 %."),
    ):
        if run.has(name):
            charts.append(_over_steps(run, name, title, text, smooth=name != "lr"))
    drawn = _KNOWN | set(_SIGNS) | set(_VALIDATION)
    logged = {name for line in run.lines for name in line if not name.startswith("probe_") and "." not in name}
    charts += [_over_steps(run, name, _titled(name), "") for name in sorted(logged - drawn)[:MOST_OTHERS]]
    return tuple(charts)


def _probe_chart(run: RunLines) -> Chart | None:
    """What frozen features told of labels while the run trained, with the interval of the linear readout."""
    lines = []
    for name, label in _PROBES.items():
        line = run.line(f"probe_{name}_auroc", label)
        low, high = (run.line(f"probe_{name}_auroc_{end}").y for end in ("low", "high"))
        if line.x:
            banded = name == "linear" and len(low) == len(line.y) == len(high)
            lines.append(Line(label, line.x, line.y, low if banded else None, high if banded else None))
    if not lines:
        return None
    text = (
        "Mean AUROC over labels of frozen features, learnt on some cases and scored on others, none of the test set. "
        "Step 0 is the encoder before training; the band is the 95 % interval of the linear readout."
    )
    return line_chart(lines, "step", "mean AUROC", title="Probes", caption=text, chance=0.5, markers=True)


def finetune_charts(run: RunLines, best_step: float | None = None) -> tuple[Chart, ...]:
    """Loss of training and validation, the validation metric, and the rate of a fine-tuning run.

    Args:
        run: what it logged.
        best_step: the step that was kept, marked on the curve of validation.
    """
    losses = [run.line("loss", "training"), run.line("validation_loss", "validation")]
    losses = [line for line in losses if line.x]
    charts = []
    if losses:
        text = "Weighted as it is learnt. The training loss is of augmented crops in training mode."
        charts.append(line_chart(losses, "step", "loss", title="Loss", caption=text, smooth=len(losses) == 1))
    for name, quantity in _CHOSEN_BY.items():
        if run.has(name):
            line = run.line(name, quantity)
            at = [(x, y, "kept") for x, y in zip(line.x, line.y, strict=True) if x == best_step]
            text = "The epoch with the highest is kept, which makes this number optimistic."
            charts.append(
                line_chart(
                    [line], "step", quantity, title="Validation", caption=text, chance=0.5, points=at, markers=True
                )
            )
    if run.has("lr"):
        charts.append(_over_steps(run, "lr", "Learning rate", "Of the group with the highest, as used.", smooth=False))
    drawn = _KNOWN | set(_VALIDATION) | {"lr"}
    others = sorted({name for line in run.lines for name in line if name.startswith("validation")} - drawn)
    charts += [_over_steps(run, name, _titled(name), "") for name in others[:MOST_OTHERS]]
    return tuple(charts)


def _titled(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def _over_steps(run: RunLines, name: str, title: str, text: str, *, smooth: bool = True) -> Chart:
    return line_chart([run.line(name)], "step", "", title=title, caption=text, smooth=smooth)


def collapse_note(run: RunLines) -> tuple[str, ...]:
    """What the guard of the run saw of features that become the same for all scans; none where all is well.

    Args:
        run: what it logged.
    """
    found = CollapseGuard().take_up(run.lines)
    if not found:
        return ()
    return (
        f"Scans may no longer be told apart: {'; '.join(finding.text for finding in found)}. The encoder may have "
        "collapsed. train.log names the likeliest cause. More steps, a larger batch or another method (mae does not "
        "collapse this way) are what to try.",
    )


def collapse_table(run: RunLines) -> Table | None:
    """First and last values of every sign of collapse, and what the guard of the run says of them.

    Args:
        run: what it logged.
    """
    guard = CollapseGuard()
    guard.take_up(run.lines)
    rows = []
    for name, text in _SIGNS.items():
        values = run.line(name).y
        if values:
            ends = (f"{median(values[:3]):.3g}", f"{median(values[-10:]):.3g}")
            rows.append((name, text, *ends, _SAYS[guard.state(name)]))
    columns = ("sign", "what it is", "first (median of 3)", "last (median of 10)", "says")
    return as_table(columns, rows, "Signs of collapse") if rows else None
