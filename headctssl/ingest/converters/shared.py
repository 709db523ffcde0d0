"""Shared: what several converters do: tables line by line, cells of cases.csv, identities of image files."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import is_image, source_digest
from headctssl.dataset.table import STANDARD_COLUMNS, label_value
from headctssl.errors import DataError, ImageReadError
from headctssl.ingest.scan import Ignored, Scan
from headctssl.ingest.verdict import ScanVerdict
from headctssl.settings import JsonValue

__all__ = [
    "Identified",
    "age_cell",
    "any_of",
    "binary_cell",
    "binary_columns",
    "find_named",
    "identified",
    "info_columns",
    "is_ct",
    "layout_error",
    "left_out",
    "lines_of",
    "read_object",
    "sex_cell",
    "split_cell",
]

OLDEST = 90
"""Ages above are rare enough to identify; they are stored as 90."""

_UNKNOWN = ("", "n/a", "na", "nan", "none", "null", "unknown")
_CT = re.compile(r"(?<![A-Za-z])(NC|CE)?CT(A|V)?(?![A-Za-z])", re.IGNORECASE)
_OTHER = re.compile(r"(?<![A-Za-z])(PET|PT|MRI?|SPECT)(?![A-Za-z])", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*\+?\s*([A-Za-z]*)\.?")
_YEARS_PER = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
_SEX = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F", "o": "O", "other": "O"}
_IDENTIFYING = re.compile(
    r"(^|_)(name|initials|birth|birthdate|dob|date|time|id|uid|mrn|accession|address|phone|email|path|file|patient)(_|$)"
)
_RENAMED = {"gender": "sex", "model_name": "model", "slice_thickness": "slice_thickness_mm"}
_COPIED = ("age", "sex", "study_description", "kvp", "convolution_kernel", "slice_thickness_mm", "manufacturer")
_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
_MISSING_SHOWN = 3


@dataclass(frozen=True)
class Identified:
    """Scans of image files, each known by its content."""

    scans: tuple[Scan, ...]
    rejected: tuple[ScanVerdict, ...]
    remarks: tuple[str, ...]


def identified(scans: Iterable[Scan]) -> Identified:
    """Give every scan of an image file its identity, which is its content.

    Args:
        scans: scans without an identity. What cannot be read is rejected by its `source`; a mask that
            does not exist is left out, which a remark tells.
    """
    known: list[Scan] = []
    rejected: list[ScanVerdict] = []
    missing: list[str] = []
    for scan in scans:
        reason = _unreadable(scan.path)
        if not reason:
            try:
                digest = source_digest(scan.path)[0]
            except (ImageReadError, OSError) as error:
                reason = _told(error).replace(str(scan.path), scan.source)
        if reason:
            rejected.append(ScanVerdict(source=scan.source, status="reject", reasons=(reason,)))
            continue
        there = tuple((name, path) for name, path in scan.masks if path.is_file())
        missing += [f"{name} of {scan.source}" for name, path in scan.masks if not path.is_file()]
        known.append(replace(scan, identity=f"content:{digest}", masks=there))
    shown = ", ".join(missing[:_MISSING_SHOWN]) + (", ..." if len(missing) > _MISSING_SHOWN else "")
    remarks = (f"{len(missing)} masks do not exist and are left out: {shown}.",) if missing else ()
    return Identified(tuple(known), tuple(rejected), remarks)


def _unreadable(path: Path) -> str:
    if not path.exists():
        return "The file does not exist."
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


def is_ct(modality: str) -> bool:
    """Whether a modality or channel is CT by its name: `CT`, `NCCT`, `CTA`, `CT_noncontrast`; not `CBCT`, `PET/CT`."""
    return bool(_CT.search(modality)) and not _OTHER.search(modality)


def left_out(counts: Counter[str], what: str) -> tuple[Ignored, ...]:
    """One entry per kind of thing that is no CT image, such as "12 images of modality T1w"."""
    return tuple(Ignored("", f"{count} {what} {name or 'unknown'}") for name, count in sorted(counts.items()))


def age_cell(value: object) -> str:
    """An age in years, at most 90; '' when it does not parse. Years, months, weeks, days: `45`, `045Y`, `3 months`."""
    match = _AGE.fullmatch(str(value).strip())
    if match is None:
        return ""
    factor = _YEARS_PER.get(match.group(2)[:1].lower())
    return "" if factor is None else f"{min(OLDEST, float(match.group(1)) * factor):.3g}"


def sex_cell(value: object) -> str:
    """M, F, O, or '' for anything else: the meaning of numbers differs between tables."""
    return _SEX.get(str(value).strip().lower(), "")


def split_cell(value: object) -> str:
    """The split that a source fixes (train, val, test), '' for anything else."""
    return _SPLITS.get(str(value).strip().lower(), "")


def binary_cell(text: str, where: str) -> str:
    """A cell of a published label table as 0, 1 or '' for unknown.

    Args:
        text: the cell.
        where: what it is, for the error.

    Raises:
        DataError: it is another value.
    """
    if text in ("0", "1"):  # nearly all cells; tables have millions
        return text
    if text.lower() in _UNKNOWN:
        return ""
    value = label_value(LabelSpec(name=where), text)
    if value is None:
        raise DataError(
            f"{where} is not a value of a label.", got=repr(text), expected="0, 1 or empty", do="Correct the cell."
        )
    return f"{value:g}"


def any_of(values: Iterable[str]) -> str:
    """The label of a whole from those of its parts: 1 when a part has it, 0 when all are known not to, else ''."""
    seen = set(values)
    if "1" in seen:
        return "1"
    return "0" if seen == {"0"} else ""


def binary_columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Columns that can only be binary labels: 0, 1 (or 0.0, 1.0) and empty cells, at least one not empty.

    Standard columns of cases.csv are none.
    """
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = {row.get(name, "") for row in rows} - {""}
        spec = LabelSpec(name=name)
        if name not in STANDARD_COLUMNS and values and all(label_value(spec, text) is not None for text in values):
            found.append(name)
    return found


def info_columns(info: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Metadata of a source as cells of cases.csv.

    Age and sex are put in this project's form. Texts, numbers and truth values are copied; lists and
    objects are not, nor what is unknown, nor what by its name may identify a person or a day.

    Args:
        info: values by name, as the source has them.
    """
    cells: dict[str, str] = {}
    for key, value in info.items():
        name = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(key))).strip("_").lower()
        name = _RENAMED.get(name, name)
        if not isinstance(value, str | int | float) or not name:
            continue
        text = " ".join(str(int(value) if isinstance(value, bool) else value).split())
        if name == "age":
            text = age_cell(text)
        elif name == "sex":
            text = sex_cell(text)
        elif (name in STANDARD_COLUMNS and name not in _COPIED) or _IDENTIFYING.search(name):
            continue
        if text.lower() not in _UNKNOWN:
            cells[name] = text
    return tuple(cells.items())
