"""Run lines: reading metrics.jsonl, whose last line a crash may have cut short."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from headctssl.errors import DataError

__all__ = ["LoggedLines", "read_lines", "read_metrics"]


@dataclass(frozen=True)
class LoggedLines:
    """What a metrics.jsonl holds."""

    lines: list[dict[str, float | int | None]]  # in order
    cut_short: bool = False  # the last line was not whole, as after a crash, and is left out


def read_lines(path: Path) -> LoggedLines:
    """Read a metrics.jsonl.

    Args:
        path: the file; no file gives no lines.

    Raises:
        DataError: a line before the last is not a JSON object; file and line are named.
    """
    if not path.is_file():
        return LoggedLines([])
    lines: list[dict[str, float | int | None]] = []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError
        except ValueError:
            if number == len(texts):
                return LoggedLines(lines, cut_short=True)
            raise DataError(
                f"Line {number} of {path} is damaged.",
                got=text[:80],
                expected="one JSON object",
                do="Remove the line; the other lines stay readable.",
            ) from None
        lines.append(values)
    return LoggedLines(lines)


def read_metrics(path: Path) -> list[dict[str, float | int | None]]:
    """The lines of a metrics.jsonl, in order; a last line cut short by a crash is left out.

    Args:
        path: the file; no file gives no lines.

    Raises:
        DataError: a line before the last is not a JSON object; file and line are named.
    """
    return read_lines(path).lines
