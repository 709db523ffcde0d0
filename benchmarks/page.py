"""Page: the tables of documentation/benchmarks.md, made of the JSON files of this folder.

`rows.finish` renews them whenever a benchmark writes its file; ``python -m benchmarks.page`` does so by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row

__all__ = ["PARTS", "main", "tables", "write_page"]

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "documentation" / "benchmarks.md"
PARTS = ("input", "store", "views", "loader", "scale", "workers", "train", "monitor", "phantom")
"""Benchmarks in the order of the page; each has a JSON file once it was run."""
BEGIN, END = "<!-- tables: made of benchmarks/*.json -->", "<!-- end of tables -->"


def main() -> int:
    """Renew the page."""
    write_page()
    return 0


def write_page(page: Path = PAGE, folder: Path = FOLDER) -> None:
    """Put the tables between their marks.

    Args:
        page: the Markdown file, with the marks.
        folder: of the JSON files.
    """
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(folder)}\n{END}{after}", encoding="utf-8")


def tables(folder: Path = FOLDER) -> str:
    """The tables as Markdown: all targets, what missed them and why, what else was measured, and on what.

    Args:
        folder: of the JSON files.
    """
    told = {part: json.loads(_file(folder, part).read_text()) for part in PARTS if _file(folder, part).is_file()}
    rows = [(part, _row(row)) for part, content in told.items() for row in content["rows"]]
    lines = ["### Targets", "", "| part | what | ours | beside | ratio | target | |", "|---|---|---|---|---|---|---|"]
    lines += [_line(part, row, row.asked, row.verdict) for part, row in rows if row.verdict]
    missed = [f"- {part}, {row.what}, {row.other}: {row.cause}." for part, row in rows if row.verdict == "MISSED"]
    lines += ["", "### Missed targets and their causes", "", *(missed or ["None."])]
    lines += ["", "### Other measurements", "", "| part | what | ours | beside | ratio |", "|---|---|---|---|---|"]
    lines += [_line(part, row) for part, row in rows if not row.verdict]
    lines += ["", "### Machine and versions", "", *_machines(told)]
    return "\n".join(lines) + "\n"


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def _row(told: dict[str, object]) -> Row:
    return Row(**{name: value for name, value in told.items() if name != "verdict"})  # type: ignore[arg-type]  # JSON


def _line(part: str, row: Row, *more: str) -> str:
    beside = "" if row.peer_or_floor is None else f"{_number(row.peer_or_floor)} {row.unit} ({row.other})"
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    cells = (part, row.what, f"{_number(row.ours)} {row.unit}", beside, ratio, *more)
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _number(value: float) -> str:
    """Three digits; more where they stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _machines(told: dict[str, dict[str, object]]) -> Iterator[str]:
    """One line per machine and set of versions, with the parts measured there."""
    groups: dict[str, list[str]] = {}
    for part, content in told.items():
        machine, versions = content["machine"], content["versions"]
        assert isinstance(machine, dict), "rows.content"
        assert isinstance(versions, dict), "rows.content"
        numbers = ", ".join(f"{name} {number}" for name, number in versions.items())
        text = (
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']};"
            f" Python {content['python']}, {numbers}; threads per side: {content['threads']}"
        )
        groups.setdefault(text, []).append(f"{part} ({content['seconds']:.0f} s)")
    return (f"- {', '.join(parts)}: {text}." for text, parts in groups.items())


if __name__ == "__main__":
    sys.exit(main())
