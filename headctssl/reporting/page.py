"""Page: sections of text, tables, charts and pictures rendered into one HTML file that asks nothing of a network."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from headctssl import __version__
from headctssl.errors import DataError, HeadCTSSLError
from headctssl.paths import atomic_path
from headctssl.reporting.svg import ID, Chart

__all__ = [
    "LARGEST_BYTES",
    "CaseCard",
    "Page",
    "Picture",
    "Section",
    "Table",
    "as_table",
    "attempted",
    "data_uri",
    "picture_from_file",
    "without_paths",
    "write_page",
]

LARGEST_BYTES = 5_000_000
"""A page must open on a phone and go through a mail gateway."""

_IN_TAG = rf'( id="|url\(#|href="#){ID}'
_PATH = re.compile(r"(?<![\w.<*/\\])(?:file://|[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"<>|()]+){2,}[/\\]?")


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    caption: str
    data_uri: str
    alt: str = ""  # what it shows, in words; the caption when empty
    share: int = 100  # width in % of its place, so that pictures of a case have one scale


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class CaseCard:
    """One case with its slices."""

    title: str
    facts: tuple[tuple[str, str], ...]  # (name, value)
    pictures: tuple[Picture, ...] = ()
    note: str = ""
    tag: str = ""  # one or two words beside the title
    wrong: bool = False  # marked as an error of the model


@dataclass(frozen=True)
class Section:
    """A heading with warnings, paragraphs, points, tables, charts, pictures, cases and parts, in this order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folded: bool = False  # shown closed, opened by a click
    gallery: bool = False  # pictures side by side at their own size
    charts: tuple[Chart, ...] = ()
    points: tuple[str, ...] = ()  # a list of sentences
    warnings: tuple[str, ...] = ()  # shown as boxes before everything else
    cases: tuple[CaseCard, ...] = ()
    parts: tuple[Section, ...] = ()  # under headings of the next level


@dataclass(frozen=True)
class Page:
    """One report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, str], ...] = ()  # (name, value) shown as cards at the top
    banner: str = ""  # who may see the page and what it is for; above everything
    status: tuple[str, ...] = ()  # what is missing of an unfinished or damaged run


def picture_from_file(path: Path, caption: str) -> Picture:
    """Take a PNG file into the page."""
    return Picture(caption, data_uri(path.read_bytes()))


def data_uri(png: bytes) -> str:
    """The bytes of a PNG as the address of an image that is part of the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def as_table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Table:
    """A table from rows of anything."""
    return Table(tuple(columns), tuple(tuple(str(cell) for cell in row) for row in rows), caption)


def without_paths(text: str) -> str:
    """The text with the folders of absolute paths left out: pages name files, not where somebody keeps them."""
    return _PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found.group().rstrip("/\\"))[-1], text)


def attempted(title: str, make: Callable[[], Section]) -> Section:
    """A section, or one of the same title that says why it cannot be made.

    A damaged or missing file takes away the section that needs it and nothing else.

    Args:
        title: heading of the section where it cannot be made.
        make: makes it.
    """
    try:
        return make()
    except HeadCTSSLError as error:
        parts = [error.what]
        parts += [f"Found: {error.got}."] if error.got else []
        parts += [error.do] if error.do else []
        return Section(title, warnings=(" ".join(parts),))
    except OSError as error:
        return Section(title, warnings=(f"A file cannot be read: {error.strerror or type(error).__name__}.",))


def write_page(path: Path, page: Page) -> Path:
    """Render the page and write it atomically.

    Args:
        path: the HTML file.
        page: its content.

    Raises:
        DataError: the page would be larger than 5 MB.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = files("headctssl.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: without_paths(value) if type(value) is str else value,
    )
    numbers = itertools.count(1)
    environment.filters["svg"] = lambda chart: Markup(re.sub(_IN_TAG, rf"\g<1>chart-{next(numbers)}-", chart.svg))
    environment.filters["uri"] = lambda picture: Markup(picture.data_uri)
    text = environment.from_string(source).render(page=page, version=__version__)
    size = len(text.encode("utf-8", errors="replace"))
    if size > LARGEST_BYTES:
        raise DataError(
            f"The page {path.name} is too large.",
            got=f"{size / 1e6:.1f} MB",
            expected=f"at most {LARGEST_BYTES / 1e6:g} MB",
            do="Report this: every list of a page should be bounded.",
        )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path
