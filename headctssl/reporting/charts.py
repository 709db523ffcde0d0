"""Charts: lines, intervals, reliability, radar, scatter and bars as inline SVG that takes the page's colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headctssl.reporting.svg import (
    COLOUR,
    Chart,
    as_chart,
    make_axes,
    make_figure,
    plain_numbers,
    put_legend,
    shortened,
    some,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Chart",
    "Line",
    "bar_chart",
    "histogram_chart",
    "interval_chart",
    "line_chart",
    "radar_chart",
    "reliability_chart",
    "scatter_chart",
]

Floats = NDArray[np.float64]

MOST_POINTS = 240
"""Points of a line; longer ones are drawn as medians of neighbours."""

MOST_SERIES = 8
"""Lines or colours of a chart; more cannot be told apart."""

_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # band around y
    high: Sequence[float] | None = None


def line_chart(
    lines: Sequence[Line],
    x: str,
    y: str,
    *,
    title: str,
    caption: str = "",
    smooth: bool = False,
    log_x: bool = False,
    unit_square: bool = False,
    chance: float | None = None,
    points: Sequence[tuple[float, float, str]] = (),
    markers: bool = False,
    ticks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Lines over a common axis.

    Args:
        lines: at most `MOST_SERIES` are drawn, and the caption says so; points that are not finite are left out.
        x: what the horizontal axis is, with its unit.
        y: what the vertical axis is.
        title: of the chart.
        caption: the sentence under it.
        smooth: draw each value faintly and a running median over it.
        log_x: logarithmic horizontal axis, every x above 0; lines stand a little aside of each other, with a bar for
            each interval.
        unit_square: both axes from 0 to 1, with the diagonal.
        chance: where a dashed horizontal line marks chance.
        points: (x, y, name) of single points to mark.
        markers: mark each point.
        ticks: (x, name) of the marks on the horizontal axis; chosen when empty.
    """
    drawn = [kept for line in lines[:MOST_SERIES] if (kept := _finite(line)).x]
    figure, axes = make_axes(x, y)
    for number, line in enumerate(drawn):
        aside = 1.05 ** (number - (len(drawn) - 1) / 2) if log_x else None
        _draw_line(axes, line, number, smooth=smooth, markers=markers or len(line.x) <= 12, aside=aside)
    if unit_square:
        axes.plot([0, 1], [0, 1], color=COLOUR["dim"], linestyle=":", linewidth=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    if chance is not None:
        axes.axhline(chance, color=COLOUR["dim"], linestyle=":", linewidth=1)
    for px, py, name in points:
        label = shortened(name, 34) or None
        axes.plot(px, py, "o", markersize=7, color=COLOUR["fg"], markerfacecolor="none", label=label)
    if log_x:
        axes.set_xscale("log")
    plain_numbers(axes)
    if ticks:
        axes.set_xticks([at for at, _ in ticks], [shortened(name, 12) for _, name in ticks])
        axes.minorticks_off()
    if len(drawn) > 1 or points:
        put_legend(axes)
    figure.set_figheight(figure.get_figheight() + 0.24 * max(0, len(drawn) - 2))  # room for the legend
    left = len(lines) - MOST_SERIES
    more = f" {left} further lines are left out." if left > 0 else ""
    return as_chart(figure, title, caption + more, _told(drawn, x, y or title))


def interval_chart(
    groups: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]],
    quantity: str,
    *,
    title: str,
    caption: str = "",
    chance: float | None = None,
    limits: tuple[float, float] | None = None,
    wide: bool = False,
) -> Chart:
    """Values with intervals, one row per name and one colour per group.

    Args:
        groups: group -> name -> (value, low, high); low and high are None where there is no interval.
        quantity: what the values are, e.g. ``"AUROC"``.
        title: of the chart.
        caption: the sentence under it.
        chance: where a dashed line marks chance.
        limits: of the axis; from the values when None.
        wide: the chart takes the width of the page where there is room.
    """
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    height = 62 + 20 * len(names) * max(1, min(2, len(groups)))
    figure, axes = make_axes(quantity, "", height=max(110.0, float(height)))
    told = []
    for g, (group, values) in enumerate(groups.items()):
        offset = (g - (len(groups) - 1) / 2) * (0.62 / max(1, len(groups)))
        colour = COLOUR[f"c{g % 8 + 1}"]
        for name, (value, low, high) in values.items():
            row = names.index(name) + offset
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(value, row, "osD^v"[g % 5], color=colour, markersize=5.5)
            interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
            told.append(f"{group + ' ' if len(groups) > 1 else ''}{name} {value:.3f}{interval}")
    if chance is not None:
        axes.axvline(chance, color=COLOUR["dim"], linestyle=":", linewidth=1.2)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    if limits is not None:
        axes.set_xlim(*limits)
    if len(groups) > 1:
        for g, group in enumerate(groups):
            axes.plot([], [], "osD^v"[g % 5], color=COLOUR[f"c{g % 8 + 1}"], label=shortened(group, 34))
        put_legend(axes)
    return replace(as_chart(figure, title, caption, f"{quantity}: " + some(told)), wide=wide)


def reliability_chart(bins: Sequence[tuple[float, float, int]], *, title: str, caption: str = "") -> Chart:
    """Share of positives against mean probability per bin, beside the diagonal of perfect calibration.

    Args:
        bins: per bin mean probability, share of positives, number of cases.
        title: of the chart.
        caption: the sentence under it.
    """
    figure, axes = make_axes("predicted probability", "observed share")
    axes.plot([0, 1], [0, 1], color=COLOUR["dim"], linestyle=":", linewidth=1)
    most = max((count for *_, count in bins), default=1)
    if sum(count for *_, count in bins) >= 10 * len(bins):  # a line through single cases leads the eye astray
        axes.plot([b[0] for b in bins], [b[1] for b in bins], color=COLOUR["c1"], linewidth=1.2)
    sizes = [18 + 60 * count / most for *_, count in bins]
    axes.scatter([b[0] for b in bins], [b[1] for b in bins], s=sizes, color=COLOUR["c1"], linewidths=0)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    plain_numbers(axes)
    told = [f"predicted {p:.2f}, observed {o:.2f} in {n} cases" for p, o, n in bins]
    return as_chart(figure, title, caption, some(told))


def radar_chart(
    groups: Mapping[str, Mapping[str, float]], *, title: str, caption: str = "", low: float = 0.0, high: float = 1.0
) -> Chart:
    """Values on spokes, one outline per group; a value that is missing leaves a gap.

    Args:
        groups: group -> spoke -> value.
        title: of the chart.
        caption: the sentence under it.
        low: value at the centre.
        high: value at the rim.
    """
    from matplotlib.projections.polar import PolarAxes

    spokes = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure = make_figure(300.0 + 16 * min(len(groups), MOST_SERIES))
    axes = figure.add_subplot(projection="polar")
    assert isinstance(axes, PolarAxes), "asked for by its projection"
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
    for g, (group, values) in enumerate(list(groups.items())[:MOST_SERIES]):
        radii = np.array([values.get(name, np.nan) for name in spokes])
        axes.plot(
            np.append(angles, angles[:1]), np.append(radii, radii[:1]), color=COLOUR[f"c{g + 1}"], linewidth=1.8,
            linestyle=_STYLES[g % 4], marker="o", markersize=3.5, label=shortened(group, 34),
        )  # fmt: skip
    axes.set_xticks(angles, [shortened(name, 18) for name in spokes])
    axes.set_ylim(low, high)
    marks = np.linspace(low, high, 3)
    axes.set_yticks(marks[1:], [f"{v:.2g}" for v in marks[1:]])
    axes.set_rlabel_position(180 / max(1, len(spokes)))  # between two spokes
    axes.tick_params(colors=COLOUR["dim"], labelsize=10)
    axes.tick_params(axis="x", labelcolor=COLOUR["fg"], pad=6)
    axes.grid(color=COLOUR["grid"], linewidth=0.8)
    axes.spines["polar"].set_color(COLOUR["grid"])
    put_legend(axes, below=0.16)
    told = [f"{g}: " + ", ".join(f"{n} {v:.3f}" for n, v in values.items()) for g, values in groups.items()]
    return as_chart(figure, title, caption, some(told))


def scatter_chart(x: Floats, y: Floats, labels: tuple[str, str], *, title: str, caption: str = "") -> Chart:
    """Points over two axes, with the diagonal.

    Args:
        x: (n,) values along the horizontal axis.
        y: (n,) values along the vertical axis.
        labels: what the two axes are.
        title: of the chart.
        caption: the sentence under it.
    """
    figure, axes = make_axes(*labels)
    step = -(-len(x) // 1500)
    axes.plot(x[::step], y[::step], "o", markersize=4, color=COLOUR["c1"], alpha=0.55, markeredgewidth=0)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    axes.plot(ends, ends, color=COLOUR["dim"], linestyle=":", linewidth=1)
    plain_numbers(axes)
    told = f"{len(x)} cases; {labels[0]} {x.min():.3g} to {x.max():.3g}, {labels[1]} {y.min():.3g} to {y.max():.3g}"
    return as_chart(figure, title, caption, told)


def histogram_chart(values: Sequence[float], x: str, *, title: str, caption: str = "", bins: int = 24) -> Chart:
    """How often values occur.

    Args:
        values: at least one number.
        x: what they are, with their unit.
        title: of the chart.
        caption: the sentence under it.
        bins: number of bars.
    """
    figure, axes = make_axes(x, "scans", height=170.0)
    axes.hist(values, bins=bins, color=COLOUR["c1"])
    axes.locator_params(axis="y", integer=True, nbins=4)
    plain_numbers(axes)
    ordered = sorted(values)
    told = f"{len(ordered)} values from {ordered[0]:.4g} to {ordered[-1]:.4g}, middle {ordered[len(ordered) // 2]:.4g}"
    return as_chart(figure, title, caption, told)


def bar_chart(values: Mapping[str, float], x: str, *, title: str, caption: str = "", whole: bool = False) -> Chart:
    """One bar per name.

    Args:
        values: name -> value.
        x: what the values are, with their unit.
        title: of the chart.
        caption: the sentence under it.
        whole: values are counts.
    """
    figure, axes = make_axes(x, "", height=60.0 + 22 * len(values))
    axes.barh(range(len(values)), list(values.values()), height=0.66, color=COLOUR["c1"])
    axes.set_yticks(range(len(values)), [shortened(name) for name in values])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    if whole:
        axes.locator_params(axis="x", integer=True, nbins=5)
    return as_chart(figure, title, caption, some([f"{name} {value:.4g}" for name, value in values.items()]))


def _finite(line: Line) -> Line:
    """A line without points that are not finite, at most `MOST_POINTS`, each the median of its neighbours."""
    keep = [i for i in range(len(line.x)) if np.isfinite(line.x[i]) and np.isfinite(line.y[i])]

    def of(values: Sequence[float] | None, merge: Callable[[Floats], float]) -> list[float] | None:
        if values is None:
            return None
        kept = np.array([values[i] for i in keep], np.float64)
        if len(kept) <= MOST_POINTS:
            return [float(v) for v in kept]
        return [float(merge(part)) for part in np.array_split(kept, MOST_POINTS)]

    x, y = of(line.x, np.median), of(line.y, np.median)
    return Line(line.name, x or [], y or [], of(line.low, np.min), of(line.high, np.max))


def _draw_line(axes: Axes, line: Line, number: int, *, smooth: bool, markers: bool, aside: float | None) -> None:
    """Draw a line; `aside`: factor by which it stands aside of the others."""
    colour, x, y = COLOUR[f"c{number % 8 + 1}"], np.array(line.x) * (aside or 1.0), np.array(line.y)
    style = _STYLES[number // 4 % 4]
    if line.low is not None and line.high is not None:
        if aside is None:
            axes.fill_between(x, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
        else:
            axes.vlines(x, line.low, line.high, color=colour, linewidth=1.2, alpha=0.75)
    width = max(1, len(y) // 16)
    if smooth and len(y) >= 24:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
        y = np.array([np.median(y[max(0, i - width) : i + width + 1]) for i in range(len(y))])
    marker = "o" if markers else ""
    axes.plot(
        x, y, color=colour, linewidth=1.9, linestyle=style, marker=marker, markersize=4, label=shortened(line.name, 34)
    )


def _told(lines: Sequence[Line], x: str, y: str) -> str:
    """What lines show, in words."""
    if not lines:
        return f"{y} over {x}: no values"
    parts = [
        f"{line.name} from {line.y[0]:.4g} at {line.x[0]:.6g} to {line.y[-1]:.4g} at {line.x[-1]:.6g}" for line in lines
    ]
    return f"{y} over {x}: " + some(parts)
