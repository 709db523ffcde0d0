"""Progress picture: progress.png from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headctssl.paths import atomic_path

__all__ = ["draw_progress"]

_FIRST = ("loss", "lr", "data_wait", "scans_per_second")
_NOT_DRAWN = frozenset({"step", "epoch", "seconds"})
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

    logged = sorted({name for line in lines for name in line} - _NOT_DRAWN - set(_FIRST))
    names = [*_FIRST, *logged][:_MOST_PANELS]
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
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
