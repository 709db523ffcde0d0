"""Table: cases.csv read as text and written, and what its cells mean."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.errors import DataError

__all__ = [
    "EXAMPLE",
    "PATH_COLUMNS",
    "STANDARD_COLUMNS",
    "Fault",
    "is_safe_case_id",
    "label_value",
    "read_table",
    "write_table",
]

STANDARD_COLUMNS: tuple[str, ...] = (
    "case_id",
    "image",
    "subject_id",
    "session_id",
    "study_day",
    "modality",
    "anatomy_mask",
    "anonymization_mask",
    "segmentation",
    "split",
    "age",
    "sex",
    "quality",
    "study_description",
    "kvp",
    "convolution_kernel",
    "slice_thickness_mm",
    "manufacturer",
    "gantry_tilt_deg",
    "contrast",
)
"""Columns of cases.csv with a meaning; the others are labels or free metadata."""

PATH_COLUMNS: tuple[str, ...] = ("image", "anatomy_mask", "anonymization_mask", "segmentation")

_SAFE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
_LINES_AT_ONCE = 4096
_MANY_VALUES = 50_000
EXAMPLE = "For example:\n      case_id,image,subject_id,bleed\n      case_001,images/case_001.nii.gz,subject_001,1"


@dataclass(frozen=True)
class Fault:
    """One fault of a dataset. `case_id` is empty when the fault is the dataset's, not a case's."""

    case_id: str
    what: str
    got: str = ""
    expected: str = ""
    do: str = ""

    def to_error(self, more: int = 0) -> DataError:
        """The same as an error; `more` is how many further faults there are."""
        what = f"Case '{self.case_id}': {self.what}" if self.case_id else self.what
        if more:
            what += f" ({more} more faults: headct_verify_dataset lists them all.)"
        return DataError(what, got=self.got or None, expected=self.expected or None, do=self.do or None)


def is_safe_case_id(case_id: str) -> bool:
    """Whether a case id can be a file name everywhere: letters, digits, `_ . -`, at most 128."""
    return bool(_SAFE.match(case_id)) and not case_id.endswith(".")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file as text, without spaces around cells; only the empty cell is unknown ('NA' is a value).

    Args:
        path: a UTF-8 CSV file, comma-separated, with a header line; a byte-order mark is read over.

    Returns:
        A frame of str with the columns of the file.

    Raises:
        DataError: not UTF-8, another delimiter, an empty or repeated column name, or a line with
            another number of cells; the line is named.
    """
    try:
        content = path.read_bytes()
        content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.", got="nothing", expected="a CSV file", do="Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text.",
            got=f"byte {error.start} cannot be decoded",
            expected="CSV saved as UTF-8",
            do="Save it again as 'CSV UTF-8'.",
        ) from None
    # Decoded again as it is read: text as a whole takes four bytes a character in memory.
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_header(path, header)
        columns = _columns(path, header, reader)
    except csv.Error as error:
        raise DataError(f"{path} cannot be parsed.", got=error, expected="comma-separated text", do=EXAMPLE) from None
    return pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=str)


def _columns(path: Path, header: Sequence[str], reader: Iterator[list[str]]) -> list[list[str]]:
    """The cells by column, without spaces around them.

    Cells of a column that say the same are one object, for most columns of 361,663 cases have few different values;
    lines are taken by thousands, so that they never exist as objects all at once.
    """
    columns: list[list[str]] = [[] for _ in header]
    known: list[dict[str, str]] = [{} for _ in header]
    number = 2
    while lines := list(islice(reader, _LINES_AT_ONCE)):
        full = lines if set(map(len, lines)) == {len(header)} else _full_lines(path, header, lines, number)
        for column, seen, cells in zip(columns, known, zip(*full, strict=True), strict=False):
            stripped = list(map(str.strip, cells))
            # Where nearly every cell says something else, there is nothing to share.
            column += stripped if len(seen) > _MANY_VALUES else map(seen.setdefault, stripped, stripped)
        number += len(lines)
    return columns


def _full_lines(path: Path, header: Sequence[str], lines: Sequence[list[str]], first: int) -> list[list[str]]:
    """The lines that are not empty, each as long as the header."""
    full = []
    for number, line in enumerate(lines, start=first):
        if not line or (len(line) == 1 and not line[0].strip() and len(header) > 1):
            continue
        if len(line) != len(header):
            raise DataError(
                f"{path} line {number} has another number of cells than the header.",
                got=f"{len(line)} cells",
                expected=f"{len(header)}: {', '.join(header)}",
                do="Quote cells that contain a comma, or add the missing cells.",
            )
        full.append(line)
    return full


def _check_header(path: Path, header: Sequence[str]) -> None:
    """Raise when the header cannot be that of a comma-separated table."""
    if not header:
        raise DataError(f"{path} is empty.", got="no header line", expected="column names", do=EXAMPLE)
    for sign, name in (("\t", "tabs"), (";", "semicolons"), ("|", "bars")):
        if len(header) == 1 and sign in header[0]:
            raise DataError(
                f"{path} is separated by {name}.",
                got=repr(header[0][:80]),
                expected="commas",
                do="Save it again as a comma-separated file.",
            )
    unusable = [name for name in header if name != name.strip() or not name]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if unusable or repeated:
        raise DataError(
            f"{path} has {'repeated' if repeated else 'unusable'} column names.",
            got=", ".join(repr(name) for name in (repeated or unusable)),
            expected="every column once, with a name, without spaces around it",
            do="Correct the header line.",
        )


def write_table(path: Path, cases: pd.DataFrame) -> None:
    """Write a frame of str as CSV; standard columns first, in their order.

    Args:
        path: the file to write (use `atomic_path` around it).
        cases: the frame.
    """
    first = [name for name in STANDARD_COLUMNS if name in cases.columns]
    rest = [name for name in cases.columns if name not in STANDARD_COLUMNS]
    cases[[*first, *rest]].to_csv(path, index=False, lineterminator="\n")


def label_value(spec: LabelSpec, text: str) -> float | None:
    """A cell of a label column as a number, None when it is not a value of the label.

    Args:
        spec: the label.
        text: the cell; empty = unknown.

    Returns:
        NaN for unknown; 0 or 1 for binary; the position of the class for multiclass and ordinal;
        the number itself for continuous.
    """
    if text == "":
        return float("nan")
    if spec.type in ("multiclass", "ordinal"):
        return float(spec.classes.index(text)) if text in spec.classes else None
    try:
        value = float(text)
    except ValueError:
        return None
    if spec.type == "binary" and value not in (0.0, 1.0):
        return None
    return value if abs(value) < float("inf") else None
