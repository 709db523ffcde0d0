"""Progress picture: progress.png from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headctssl.paths import atomic_path

__all__ = ["draw_progress"]

_FIRST = (
    "loss",
    "lr",
    "data_wait",
    "scans_per_second",
    "probe_linear_auroc",
    "probe_attentive_auroc",
    "probe_knn_auroc",
    "monitor_rank_me",
)
_NOT_DRAWN = frozenset({"step", "epoch", "seconds", "monitor_seconds"})
_BOUNDS = ("_low", "_high")  # of an interval, drawn with what it is of
_MOST_PANELS = 16


def draw_progress(lines: Sequence[Mapping[str, float | int | None]], path: Path) -> None:
    """Draw one panel per logged quantity over the steps.

    Args:
        lines: lines of metrics.jsonl; a quantity may be absent or None in some of them.
        path: the PNG to write; nothing is written when there are no lines.
    """
    if not lines:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = {name for line in lines for name, value in line.items() if value is not None} - _NOT_DRAWN
    # One panel each for what is known per label or layer would leave no room for anything else.
    logged = sorted(name for name in known - set(_FIRST) if "." not in name and not name.endswith(_BOUNDS))
    names = [*(name for name in _FIRST if name in known), *logged][:_MOST_PANELS]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows))
    FigureCanvasAgg(figure)
    # Fixed margins: an automatic layout draws everything twice, which doubles the time a checkpoint takes.
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.2 / rows, top=1 - 0.12 / rows, wspace=0.28, hspace=0.55)
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, position)
        points = [(float(line["step"] or 0), float(v)) for line in lines if (v := line.get(name)) is not None]
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="." if len(points) < 30 else "", linewidth=1)
        bounds = [
            (float(line["step"] or 0), float(low), float(high))
            for line in lines
            if (low := line.get(f"{name}_low")) is not None and (high := line.get(f"{name}_high")) is not None
        ]
        if bounds:
            steps, low_ends, high_ends = zip(*bounds, strict=True)
            axes.fill_between(steps, low_ends, high_ends, alpha=0.2, linewidth=0)
        if name.startswith("probe_") and points and points[0][0] == 0:
            axes.axhline(points[0][1], color="#888888", linestyle="--", linewidth=0.8)  # before the first step
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
