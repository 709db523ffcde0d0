"""Pictures: learning curves, metrics with intervals, and windowed slices, as matplotlib figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import DataError
from headctssl.types import Triple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["interval_figure", "metric_lines", "run_figure", "slices_figure"]

BRAIN, BONE = (40.0, 80.0), (600.0, 2800.0)
"""(level, width) in HU of the windows that slices are shown with."""


def metric_lines(path: Path) -> list[dict[str, float]]:
    """The numeric fields of every line of a metrics.jsonl.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing or a line is not JSON; the line is named.
    """
    if not path.is_file():
        raise DataError(
            "The run has no metrics.", got=path, expected="metrics.jsonl in the run folder", do="Name a run folder."
        )
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            raise DataError(
                f"Line {number} of metrics.jsonl is damaged.",
                got=text[:80],
                expected="one JSON object",
                do="Remove it.",
            ) from None
        lines.append({k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)})
    return lines


def run_figure(lines: Sequence[Mapping[str, float]]) -> Figure:
    """Loss over steps, with its running median, and the learning rate.

    Args:
        lines: what `metric_lines` gives, at least `step` and `loss` in the lines that are drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = [line for line in lines if "loss" in line and np.isfinite(line["loss"])]
    steps = np.array([line["step"] for line in drawn])
    loss = np.array([line["loss"] for line in drawn])
    left.plot(steps, loss, color="#9bb7d8", linewidth=0.8, label="each step")
    width = max(1, len(loss) // 20)
    if len(loss) >= 2 * width > 2:
        smooth = np.array([np.median(loss[max(0, i - width) : i + width + 1]) for i in range(len(loss))])
        left.plot(steps, smooth, color="#1f5fa8", linewidth=1.8, label=f"median of {2 * width + 1} steps")
        left.legend(frameon=False, fontsize=8)
    _label(left, "step", "loss")
    rates = [(line["step"], line["lr"]) for line in drawn if "lr" in line]
    if rates:
        right.plot(*zip(*rates, strict=True), color="#1f5fa8")
    _label(right, "step", "learning rate")
    return figure


def interval_figure(
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]], quantity: str, chance: float | None = None
) -> Figure:
    """Values with intervals, one row per label and one colour per group.

    Args:
        groups: group name -> label -> (value, low, high).
        quantity: what the values are, e.g. ``"AUROC"``.
        chance: where a dashed line marks chance.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for values in groups.values() for label in values))
    figure = Figure(figsize=(8, 0.9 + 0.34 * len(labels) * max(1, len(groups))), layout="constrained")
    axes = figure.subplots()
    colours = ("#1f5fa8", "#c8741a", "#3b8f5a", "#8a4fa3", "#777777")
    for g, (group, values) in enumerate(groups.items()):
        offset = (g - (len(groups) - 1) / 2) * (0.7 / max(1, len(groups)))
        for row, label in enumerate(labels):
            if label not in values:
                continue
            value, low, high = values[label]
            colour = colours[g % len(colours)]
            axes.plot([low, high], [row + offset] * 2, color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(value, row + offset, "o", color=colour, label=group if row == 0 else None)
    if chance is not None:
        axes.axvline(chance, color="#888888", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    _label(axes, quantity, "")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    return figure


def slices_figure(volumes: Mapping[str, tuple[NDArray[np.int16], Triple]]) -> Figure:
    """Axial, coronal and sagittal slices in the brain window, and axial in the bone window.

    Args:
        volumes: title -> (Hounsfield units (z, y, x) with axes towards superior, posterior, left; spacing in mm).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.5 * len(volumes)), layout="constrained")
    rows = figure.subplots(len(volumes), 4, squeeze=False)
    for row, (title, (hu, (sz, sy, sx))) in zip(rows, volumes.items(), strict=True):
        z, y, x = (n // 2 for n in hu.shape)
        z = int(hu.shape[0] * 0.58)
        planes = (
            ("axial, brain window", hu[z], sy / sx, BRAIN),
            ("coronal, brain window", hu[::-1, y], sz / sx, BRAIN),
            ("sagittal, brain window", hu[::-1, :, x], sz / sy, BRAIN),
            ("axial, bone window", hu[z], sy / sx, BONE),
        )
        for axes, (name, image, aspect, (level, width)) in zip(row, planes, strict=True):
            axes.imshow(image, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, aspect=aspect)
            axes.set_axis_off()
            axes.set_title(f"{title}\n{name}" if axes is row[0] else f"\n{name}", fontsize=8, loc="left")
    return figure


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
