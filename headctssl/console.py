"""Console: what commands print. Results and progress go to stdout, errors and warnings to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["name_files", "progress", "say", "table", "warn"]

T = TypeVar("T")


def say(text: str, *, quiet: bool = False) -> None:
    """Print one line or block of plain text unless quiet."""
    if not quiet:
        print(text, flush=True)


def warn(text: str) -> None:
    """Print one line about what goes on without something; to stderr, quiet or not."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, quiet: bool = False) -> None:
    """Print a table.

    Names in the first column stay on one line while they leave two thirds of the width to the other columns.

    Args:
        title: the line above it.
        columns: headings.
        rows: one sequence of cells per row, turned into text.
        quiet: print nothing.
    """
    if quiet:
        return
    from rich.console import Console
    from rich.table import Table

    cells = [[str(cell) for cell in row] for row in rows]
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, markup=False, highlight=False)
    longest = max((len(row[0]) for row in cells), default=0)
    view = Table(title=title, title_justify="left", show_edge=False)
    for position, column in enumerate(columns):
        view.add_column(column, overflow="fold", no_wrap=position == 0 and longest <= console.width // 3)
    for row in cells:
        view.add_row(*row)
    console.print(view)


def progress(items: Iterable[T], description: str, total: int, *, quiet: bool = False) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, and with about ten plain lines elsewhere.

    Args:
        items: what to iterate over.
        description: what is being done.
        total: number of items.
        quiet: no output.
    """
    if quiet:
        yield from items
        return
    if sys.stdout.isatty():
        from rich.progress import track

        yield from track(items, description=description, total=total)
        return
    every = max(1, -(-total // 10))
    for count, item in enumerate(items, start=1):
        yield item
        if count % every == 0 or count == total:
            say(f"{description}: {count}/{total}")


def name_files(paths: Iterable[Path], *, quiet: bool = False) -> None:
    """End a command by naming the files it wrote."""
    if quiet:
        return
    print("wrote")
    for path in paths:
        print(f"  {path}")
    sys.stdout.flush()
