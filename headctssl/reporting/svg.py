"""SVG: matplotlib figures as inline SVG that belongs into a page.

matplotlib draws; what it writes is then made fit for a page: colours become the style variables of the page, so that
a chart follows light and dark, texts stay texts, and metadata, ids without use and needless digits go.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOUR",
    "ID",
    "Chart",
    "as_chart",
    "make_axes",
    "make_figure",
    "plain_numbers",
    "put_legend",
    "shortened",
    "some",
]

ID = "chart-0-"
"""Begins the ids within a chart; the page puts the number of the chart there."""

WIDTH, HEIGHT = 360.0, 236.0  # points; on a phone one point is about one pixel

_NAMES = ("fg", "dim", "grid", "bg", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
COLOUR = {name: f"#0000{number:02x}" for number, name in enumerate(_NAMES, start=1)}
"""Style variable of the page -> the colour that stands for it while matplotlib draws."""


@dataclass(frozen=True)
class Chart:
    """An SVG inside the page."""

    svg: str
    title: str
    caption: str = ""
    wide: bool = False  # takes the whole width of the page


def shortened(text: str, longest: int = 26) -> str:
    """The text, cut with an ellipsis where it is longer than `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def make_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many points without a background."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained", facecolor="none")


def make_axes(x: str, y: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with plain axes in the colours of the page; `x` and `y` name them."""
    figure = make_figure(height)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.set_xlabel(shortened(x, 44), fontsize=11, color=COLOUR["dim"])
    axes.set_ylabel(shortened(y, 28), fontsize=11, color=COLOUR["dim"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOUR["grid"])
    axes.tick_params(labelsize=10.5, colors=COLOUR["dim"], labelcolor=COLOUR["fg"], width=0.8)
    axes.grid(color=COLOUR["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def put_legend(axes: Axes, below: float = 0.0) -> None:
    """A legend under the axes, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if max(map(len, names)) <= 18 else 1
        axes.figure.legend(
            handles, names, loc="outside lower left", ncols=columns, fontsize=10, frameon=False,
            labelcolor=COLOUR["fg"], handlelength=2.2, borderaxespad=below,
        )  # fmt: skip


def plain_numbers(axes: Axes) -> None:
    """Numbers in short form; matplotlib's own use mathematics that a page without its fonts cannot show."""
    from matplotlib.ticker import FuncFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))


def some(parts: Sequence[str], most: int = 12) -> str:
    """The parts of a sentence, at most `most` of them."""
    more = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def as_chart(figure: Figure, title: str, caption: str, told: str) -> Chart:
    """Draw a figure as SVG that belongs into a page."""
    import matplotlib
    from matplotlib.text import Text

    for words in figure.findobj(Text):
        words.set_parse_math(False)  # a label named $a$ is no formula
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "headctssl", "text.parse_math": False}),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text, not matplotlib's
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    figure.clear()
    return Chart(_fit_for_page(buffer.getvalue(), f"{title}. {told}."), title, caption)


def _fit_for_page(text: str, alt: str) -> str:
    """Make what matplotlib writes part of a page; see the head of this file."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{ID}{m.group(1)}"' if m.group(1) in used else "", text)
    text = re.sub(r'(url\(#|xlink:href="#)', lambda m: m.group(1).replace("xlink:", "") + ID, text)
    for name, colour in COLOUR.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", tag.group()), text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"\n\s*", "\n", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib writes a viewBox"
    body = text[text.index(">") + 1 :]
    return f'<svg {box.group()} role="img" aria-label="{escape(alt)}">{body.strip()}'
