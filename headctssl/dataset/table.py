"""Table: cases.csv read as text, and every fault it can have, by case."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.errors import DataError

__all__ = [
    "PATH_COLUMNS",
    "STANDARD_COLUMNS",
    "Fault",
    "is_safe_case_id",
    "label_value",
    "read_table",
    "table_faults",
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
NUMBER_COLUMNS: tuple[str, ...] = ("study_day", "age", "kvp", "slice_thickness_mm", "gantry_tilt_deg")
SPLITS: tuple[str, ...] = ("train", "val", "test")

_SAFE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
_EXAMPLE = "For example:\n      case_id,image,subject_id,bleed\n      case_001,images/case_001.nii.gz,subject_001,1"


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
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.", got="nothing", expected="a CSV file", do="Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text.",
            got=f"byte {error.start} cannot be decoded",
            expected="CSV saved as UTF-8",
            do="Save it again as 'CSV UTF-8'.",
        ) from None
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} cannot be parsed.", got=error, expected="comma-separated text", do=_EXAMPLE) from None
    header = rows[0] if rows else []
    _check_header(path, header)
    body: list[list[str]] = []
    for number, row in enumerate(rows[1:], start=2):
        if not row or (len(row) == 1 and not row[0].strip() and len(header) > 1):
            continue  # an empty line
        if len(row) != len(header):
            raise DataError(
                f"{path} line {number} has another number of cells than the header.",
                got=f"{len(row)} cells",
                expected=f"{len(header)}: {', '.join(header)}",
                do="Quote cells that contain a comma, or add the missing cells.",
            )
        body.append([cell.strip() for cell in row])
    return pd.DataFrame(body, columns=header, dtype=str)


def _check_header(path: Path, header: Sequence[str]) -> None:
    """Raise when the header cannot be that of a comma-separated table."""
    if not header:
        raise DataError(f"{path} is empty.", got="no header line", expected="column names", do=_EXAMPLE)
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


def table_faults(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    """Every fault of a case table that can be found without opening an image.

    Args:
        cases: the frame as read from cases.csv.
        labels: the labels that dataset.json declares.
    """
    yield from _column_faults(cases, labels)
    if "case_id" not in cases.columns:
        return
    ids = [str(value) for value in cases["case_id"]]
    yield from _id_faults(ids)
    yield from _path_faults(cases, ids)
    yield from _value_faults(cases, ids, labels)
    yield from _split_faults(cases)


def _column_faults(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    for name in ("case_id", "image"):
        if name not in cases.columns:
            yield Fault(
                "",
                f"cases.csv has no column '{name}'.",
                got=", ".join(cases.columns),
                expected="case_id,image and any further columns",
                do=_EXAMPLE,
            )
    for spec in labels:
        if spec.name not in cases.columns:
            yield Fault(
                "",
                f"The label '{spec.name}' of dataset.json has no column in cases.csv.",
                got=", ".join(cases.columns),
                expected=f"a column '{spec.name}'",
                do="Add the column (empty cells = unknown), or remove the label from dataset.json.",
            )


def _id_faults(ids: Sequence[str]) -> Iterator[Fault]:
    for case_id, count in Counter(ids).items():
        if count > 1:
            yield Fault(
                case_id, f"the case id is in {count} lines.", expected="one line per case", do="Rename or remove one."
            )
        if not is_safe_case_id(case_id):
            yield Fault(
                case_id,
                "the case id cannot be a file name.",
                got=repr(case_id),
                expected="letters, digits, '_', '.', '-', beginning with a letter or digit, at most 128",
                do="Rename the case.",
            )


def _path_faults(cases: pd.DataFrame, ids: Sequence[str]) -> Iterator[Fault]:
    for column in PATH_COLUMNS:
        if column not in cases.columns:
            continue
        for case_id, text in zip(ids, cases[column], strict=True):
            if text == "" and column != "image":
                continue
            path = PurePosixPath(str(text).replace("\\", "/"))
            if text == "" or path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
                yield Fault(
                    case_id,
                    f"'{column}' is not a path inside the dataset.",
                    got=repr(text),
                    expected="a relative path such as images/case_001.nii.gz",
                    do="Put the file under the dataset's folder and write its path relative to it.",
                )
        if column == "image":
            yield from _shared_images(cases, ids)


def _shared_images(cases: pd.DataFrame, ids: Sequence[str]) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for case_id, text in zip(ids, cases["image"], strict=True):
        if text and first.setdefault(str(text), case_id) != case_id:
            yield Fault(
                case_id,
                "the image belongs to another case too.",
                got=f"{text}, also of case '{first[str(text)]}'",
                expected="one case per image",
                do="Remove one of the lines.",
            )


def _value_faults(cases: pd.DataFrame, ids: Sequence[str], labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    expected = {"binary": "0, 1 or empty", "continuous": "a number or empty"}
    for spec in labels:
        if spec.name not in cases.columns:
            continue
        for case_id, text in zip(ids, cases[spec.name], strict=True):
            if label_value(spec, str(text)) is None:
                yield Fault(
                    case_id,
                    f"the value of label '{spec.name}' is not one of its values.",
                    got=repr(text),
                    expected=expected.get(spec.type, "one of " + ", ".join(spec.classes) + ", or empty"),
                    do="Correct the cell; leave it empty when it is not known.",
                )
    if "modality" in cases.columns:
        for case_id, text in zip(ids, cases["modality"], strict=True):
            if text not in ("", "CT"):
                yield Fault(case_id, "the modality is not supported.", repr(text), "CT or empty", "Remove the case.")
    for column in NUMBER_COLUMNS:
        if column not in cases.columns:
            continue
        number = LabelSpec(name=column, type="continuous")
        for case_id, text in zip(ids, cases[column], strict=True):
            if label_value(number, str(text)) is None:
                yield Fault(
                    case_id,
                    f"'{column}' is not a number.",
                    got=repr(text),
                    expected="a number or empty",
                    do="Correct the cell; leave it empty when it is not known.",
                )


def _split_faults(cases: pd.DataFrame) -> Iterator[Fault]:
    if "split" not in cases.columns:
        return
    of_subject: dict[str, str] = {}
    has_subject = "subject_id" in cases.columns
    for row in cases.itertuples(index=False):
        case_id, split = str(row.case_id), str(row.split)
        if split and split not in SPLITS:
            yield Fault(
                case_id, "'split' is not a known split.", repr(split), "train, val, test or empty", "Correct the cell."
            )
        subject = (str(row.subject_id) if has_subject else "") or case_id
        other = of_subject.setdefault(subject, split)
        if other != split:
            yield Fault(
                case_id,
                "its subject is in two splits.",
                got=f"'{split or 'empty'}' here, '{other or 'empty'}' in another case of the subject",
                expected="all cases of a subject in one split",
                do="Give all cases of the subject the same value of 'split'.",
            )
