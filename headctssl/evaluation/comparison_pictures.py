"""Comparison pictures: mean AUROC over label budgets, and a radar of the labels, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headctssl.evaluation.comparison import Arm, Comparison, Ranked
from headctssl.paths import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curve_figure", "draw_comparison", "radar_figure", "without_encoder"]

_GREY = {"scratch": "#222222", "random": "#777777", "histogram": "#b0862b"}
_DASHES = {"full": "-", "lora": "-.", "attentive": (0, (5, 1, 1, 1, 1, 1))}


def draw_comparison(folder: Path, comparison: Comparison) -> list[Path]:
    """Write learning_curves.png and radar.png.

    Args:
        folder: where to.
        comparison: with at least one ranked arm.
    """
    written = []
    for name, figure in (("learning_curves.png", curve_figure(comparison)), ("radar.png", radar_figure(comparison))):
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight", metadata={"Software": None})
        written.append(folder / name)
    return written


def without_encoder(arm: Arm) -> bool:
    """Whether an arm belongs in the picture of every encoder, since it has none of ours."""
    return arm.encoder == ""


def curve_figure(comparison: Comparison) -> Figure:
    """Mean AUROC with 95 % intervals over the label budget, one panel per dataset and encoder.

    Args:
        comparison: what to draw.
    """
    figure, panels = _panels(comparison, [None], polar=False)
    budgets = sorted(comparison.grid.label_budgets, key=lambda k: math.inf if k is None else k)
    colours = _colours(comparison)
    for (dataset, encoder, _), axes in panels.items():
        arms = [arm for arm in comparison.arms if arm.encoder == encoder or without_encoder(arm)]
        for number, arm in enumerate(arms):
            offset = (number - (len(arms) - 1) / 2) * 0.5 / max(1, len(arms))
            points = [(k + offset, entry) for k, budget in enumerate(budgets)
                      for entry in comparison.ranked(dataset, budget) if entry.arm == arm.name]  # fmt: skip
            if points:
                _curve(axes, points, arm, colours[arm.method])
        axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(budgets)), ["all" if k is None else str(k) for k in budgets])
        axes.set_xlabel("patients per class and label")
        axes.set_ylabel("mean AUROC (95 % interval)")
        axes.set_title(_title(dataset, encoder), fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _curve(axes: Any, points: Sequence[tuple[float, Ranked]], arm: Arm, colour: str) -> None:
    x = [place for place, _ in points]
    y = [entry.mean_auroc for _, entry in points]
    ends = [entry.mean_auroc_ci or (entry.mean_auroc, entry.mean_auroc) for _, entry in points]
    # A BCa interval may lie beside its estimate; a bar cannot have a negative length.
    errors = [[max(0.0, v - low) for v, (low, _) in zip(y, ends, strict=True)],
              [max(0.0, high - v) for v, (_, high) in zip(y, ends, strict=True)]]  # fmt: skip
    style = _DASHES.get(arm.adapt, "--")
    axes.errorbar(
        x, y, yerr=errors, color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.3, elinewidth=0.8,
        capsize=2, label=_label(arm),
    )  # fmt: skip


def radar_figure(comparison: Comparison) -> Figure:
    """AUROC per label, one panel per dataset, label budget and encoder.

    Args:
        comparison: what to draw.
    """
    figure, panels = _panels(comparison, list(comparison.grid.label_budgets), polar=True)
    colours = _colours(comparison)
    for (dataset, encoder, budget), axes in panels.items():
        entries = {entry.arm: entry for entry in comparison.ranked(dataset, budget)}
        names = [score.label for score in next(iter(entries.values())).labels] if entries else []
        angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
        for arm in (a for a in comparison.arms if a.encoder == encoder or without_encoder(a)):
            if arm.name in entries:
                values = [score.auroc for score in entries[arm.name].labels]
                closed = [*values, *values[:1]]
                axes.plot([*angles, *angles[:1]], closed, color=colours[arm.method], linewidth=1.3,
                          linestyle=_DASHES.get(arm.adapt, "--"), label=_label(arm))  # fmt: skip
        axes.set_xticks(angles, [name.replace("_", " ") for name in names], fontsize=7)
        axes.set_ylim(0.3, 1.0)
        axes.set_yticks([0.5, 0.75, 1.0], ["0.5", "0.75", "1"], fontsize=6)
        count = "all labels" if budget is None else f"{budget} per class"
        axes.set_title(f"{_title(dataset, encoder)}, {count}", fontsize=10, pad=20)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.12, 0.5), frameon=False)
    return figure


def _panels(
    comparison: Comparison, budgets: Sequence[int | None], *, polar: bool
) -> tuple[Figure, dict[tuple[str, str, int | None], Any]]:
    """A figure with one panel per dataset, encoder and budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    encoders = list(dict.fromkeys(arm.encoder for arm in comparison.arms if arm.encoder))
    rows = [(test.dataset_name, budget) for test in comparison.tests for budget in budgets]
    figure = Figure(figsize=(7.2 * max(1, len(encoders)), 4.2 * max(1, len(rows))))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(wspace=0.75, hspace=0.4)
    panels: dict[tuple[str, str, int | None], Any] = {}
    kind = {"projection": "polar"} if polar else {}
    for row, (dataset, budget) in enumerate(rows):
        for column, encoder in enumerate(encoders):
            place = row * len(encoders) + column + 1
            panels[dataset, encoder, budget] = figure.add_subplot(len(rows), len(encoders), place, **kind)
    return figure, panels


def _colours(comparison: Comparison) -> dict[str, str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    others = dict.fromkeys(arm.method for arm in comparison.arms if arm.method not in _GREY)
    return {**_GREY, **{name: to_hex(colormaps["tab10"](k % 10)) for k, name in enumerate(others)}}


def _label(arm: Arm) -> str:
    return arm.method if arm.kind == "histogram" else f"{arm.method}, {arm.adapt}"


def _title(dataset: str, encoder: str) -> str:
    return f"{dataset}, {encoder}"
