"""Source files: tables, JSON and folders as sources publish them, and the identity of image files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headctssl.console import progress
from headctssl.dataset.image_io import is_image, source_digest
from headctssl.dataset.parallel import map_items
from headctssl.errors import DataError, HeadCTSSLError, ImageReadError
from headctssl.ingest.scan import Ignored, Scan
from headctssl.ingest.verdict import ScanVerdict
from headctssl.settings import JsonValue

__all__ = [
    "Identified",
    "find_named",
    "identified",
    "layout_error",
    "left_out",
    "lines_of",
    "read_object",
]

_MISSING_SHOWN = 3
_MANY = 64  # scans; fewer are read before a process has started


@dataclass(frozen=True)
class Identified:
    """Scans of image files, each known by its content."""

    scans: tuple[Scan, ...]
    rejected: tuple[ScanVerdict, ...]
    remarks: tuple[str, ...]


def identified(scans: Iterable[Scan], num_workers: int | None = 1, *, quiet: bool = True) -> Identified:
    """Give every scan of an image file its identity, which is its content.

    Args:
        scans: scans without an identity. What cannot be read is rejected by its `source`; a mask that
            does not exist is left out, which a remark tells.
        num_workers: processes that read the files; None = one per core. Few files are read in this process.
        quiet: print no progress.

    Raises:
        HeadCTSSLError: a worker process died.
    """
    listed = list(scans)
    few = len(listed) < _MANY
    contents = map_items(_content, [scan.path for scan in listed], 1 if few else num_workers)
    digests = [("", "")] * len(listed)
    for position, content in progress(contents, "files identified", len(listed), quiet=quiet or few):
        if isinstance(content, HeadCTSSLError):
            raise content
        digests[position] = content
    known: list[Scan] = []
    rejected: list[ScanVerdict] = []
    missing: list[str] = []
    for scan, (digest, reason) in zip(listed, digests, strict=True):
        if reason:
            told = reason.replace(str(scan.path), scan.source)
            rejected.append(ScanVerdict(source=scan.source, status="reject", reasons=(told,)))
            continue
        there = tuple((name, path) for name, path in scan.masks if path.is_file())
        missing += [f"{name} of {scan.source}" for name, path in scan.masks if not path.is_file()]
        known.append(replace(scan, identity=f"content:{digest}", masks=there))
    shown = ", ".join(missing[:_MISSING_SHOWN]) + (", ..." if len(missing) > _MISSING_SHOWN else "")
    remarks = (f"{len(missing)} masks do not exist and are left out: {shown}.",) if missing else ()
    return Identified(tuple(known), tuple(rejected), remarks)


def _content(path: Path) -> tuple[str, str]:
    """The digest of a file, and why it has none (in a worker process)."""
    reason = _unreadable(path)
    if not reason:
        try:
            return source_digest(path)[0], ""
        except (ImageReadError, OSError) as error:
            reason = _told(error)
    return "", reason


def _unreadable(path: Path) -> str:
    if not path.exists():
        return "The file does not exist."
    if path.is_file() and path.stat().st_size == 0:
        return "The file is empty."
    return "" if is_image(path) else f"Files ending in '{path.suffix}' are not read."


def _told(error: ImageReadError | OSError) -> str:
    if isinstance(error, ImageReadError):
        return f"{error.what} Got: {error.got}."
    return error.strerror or "OSError"


def lines_of(path: Path, needed: Sequence[str] = (), *, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The lines of a table one after the other, as text without spaces around it.

    Args:
        path: a UTF-8 table with a header line; it may be larger than memory.
        needed: columns that must be there.
        delimiter: between the cells.

    Yields:
        Cells by column, "" for cells that a line lacks.

    Raises:
        DataError: the file is not UTF-8, lacks a column, or a line has more cells than the header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            lacking = [name for name in needed if name not in header]
            if lacking:
                raise DataError(
                    f"{path} lacks columns.",
                    got=", ".join(header[:20]) or "an empty file",
                    expected=", ".join(lacking),
                    do="Use the table as it is published.",
                )
            for row in reader:
                if len(row) > len(header):
                    raise DataError(
                        f"{path} line {reader.line_num} has more cells than the header.",
                        got=f"{len(row)} cells",
                        expected=str(len(header)),
                        do="Use the table as it is published.",
                    )
                if row:
                    cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
                    yield dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text.", got=error.reason, expected="UTF-8", do="Save it again.") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be parsed.", got=error, expected="a table", do="Save it again.") from None


def read_object(path: Path) -> dict[str, JsonValue]:
    """A JSON file that holds an object.

    Raises:
        DataError: it is not JSON, or something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(
            f"{path} cannot be read.", got=error, expected="JSON", do="Use the file as it is published."
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} does not fit.", got=type(content).__name__, expected="a JSON object", do="Check the file."
        )
    return content


def find_named(source: Path, name: str, *, depth: int = 2) -> Path | None:
    """A file by its name in any case, in a folder or at most `depth` folders below it; None without one.

    Raises:
        DataError: the topmost folder level that has it has several.
    """
    level = [source]
    for _ in range(depth + 1):
        entries = [entry for folder in level for entry in sorted(folder.iterdir())]
        matches = [entry for entry in entries if entry.is_file() and entry.name.lower() == name.lower()]
        if len(matches) > 1:
            raise DataError(
                f"{source} holds several files {name}.",
                got=", ".join(match.relative_to(source).as_posix() for match in matches),
                expected="one",
                do="Name the folder of one dataset.",
            )
        if matches:
            return matches[0]
        level = [entry for entry in entries if entry.is_dir()]
    return None


def layout_error(source: Path, source_format: str, expected: str) -> DataError:
    """The error for a source that is not laid out as its format is published."""
    there = sorted(entry.name for entry in source.iterdir())[:8] if source.is_dir() else ["a file"]
    return DataError(
        f"{source} is not laid out as --from {source_format} reads it.",
        got=", ".join(there) or "an empty folder",
        expected=expected,
        do=f"Name the folder that holds them; documentation/sources/{source_format}.md shows the layout.",
    )


def left_out(counts: Counter[str], what: str) -> tuple[Ignored, ...]:
    """One entry per kind of thing that is no CT image, such as "12 images of modality T1w"."""
    return tuple(Ignored("", f"{count} {what} {name or 'unknown'}") for name, count in sorted(counts.items()))
