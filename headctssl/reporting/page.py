"""Page: sections of text, tables and pictures rendered into one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from headctssl.paths import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "Picture", "Section", "Table", "as_table", "picture", "picture_from_file", "write_page"]


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    caption: str
    data_uri: str


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and pictures, in this order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folded: bool = False  # shown closed, opened by a click
    gallery: bool = False  # pictures side by side at their own size


@dataclass(frozen=True)
class Page:
    """One report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, str], ...] = field(default=())  # (name, value) shown as cards at the top


def picture(figure: Figure, caption: str, dpi: int = 110) -> Picture:
    """Turn a matplotlib figure into a picture of the page.

    Args:
        figure: the figure; it is closed.
        caption: the sentence under it.
        dpi: dots per inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    figure.clear()
    return Picture(caption, _data_uri(buffer.getvalue()))


def picture_from_file(path: Path, caption: str) -> Picture:
    """Take a PNG file into the page."""
    return Picture(caption, _data_uri(path.read_bytes()))


def write_page(path: Path, page: Page) -> Path:
    """Render the page and write it atomically.

    Args:
        path: the HTML file.
        page: its content.
    """
    from jinja2 import Environment, StrictUndefined

    source = files("headctssl.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(page=page)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def as_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table from rows of anything."""
    return Table(tuple(columns), tuple(tuple(str(cell) for cell in row) for row in rows))


def _data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
