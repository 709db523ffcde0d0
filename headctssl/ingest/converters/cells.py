"""Cells: values of published tables and metadata as cells of cases.csv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from headctssl.contract import LabelSpec
from headctssl.dataset.table import STANDARD_COLUMNS, label_value
from headctssl.errors import DataError
from headctssl.ingest.privacy import OLDEST, is_date_column, is_identifying_column
from headctssl.ingest.scan import Scan

__all__ = [
    "age_cell",
    "any_of",
    "binary_cell",
    "binary_columns",
    "copied_remark",
    "info_columns",
    "is_ct",
    "sex_cell",
    "split_cell",
]

_UNKNOWN = ("", "n/a", "na", "nan", "none", "null", "unknown")
_CT = re.compile(r"(?<![A-Za-z])(NC|CE)?CT(A|V)?(?![A-Za-z])", re.IGNORECASE)
_OTHER = re.compile(r"(?<![A-Za-z])(PET|PT|MRI?|SPECT)(?![A-Za-z])", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*\+?\s*([A-Za-z]*)\.?")
_YEARS_PER = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
_SEX = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F", "o": "O", "other": "O"}
_IDENTIFYING = re.compile(
    r"birth|(^|_)(name|initials|dob|time|id|uid|mrn|accession|address|phone|email|path|file|patient)(_|$)"
)
_RENAMED = {"gender": "sex", "model_name": "model", "slice_thickness": "slice_thickness_mm"}
_COPIED = ("age", "sex", "study_description", "kvp", "convolution_kernel", "slice_thickness_mm", "manufacturer")
_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}


def is_ct(modality: str) -> bool:
    """Whether a modality or channel is CT by its name: `CT`, `NCCT`, `CTA`, `CT_noncontrast`; not `CBCT`, `PET/CT`."""
    return bool(_CT.search(modality)) and not _OTHER.search(modality)


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
    objects are not, nor what is unknown, nor what by its name may identify a person. Dates stay: they
    become intervals when a case is made.

    Args:
        info: values by name, as the source has them. Names of standard columns are found in any
            case (`Age`, `SliceThickness`); the others stay as they are.
    """
    cells: dict[str, str] = {}
    for key, value in info.items():
        plain = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(key))).strip("_").lower()
        plain = _RENAMED.get(plain, plain)
        if not isinstance(value, str | int | float) or not plain:
            continue
        text = " ".join(str(int(value) if isinstance(value, bool) else value).split())
        if plain == "age":
            text = age_cell(text)
        elif plain == "sex":
            text = sex_cell(text)
        elif (plain in STANDARD_COLUMNS and plain not in _COPIED) or _IDENTIFYING.search(plain):
            continue
        if text.lower() not in _UNKNOWN:
            cells[plain if plain in (*_COPIED, *_RENAMED.values()) else str(key).strip()] = text
    return tuple(cells.items())


def copied_remark(scans: Iterable[Scan], known: Iterable[str] = STANDARD_COLUMNS) -> tuple[str, ...]:
    """A remark that names the columns that are copied as they are; () when there are none.

    Args:
        scans: the scans that bring the columns.
        known: columns that it does not name: labels, and those that were put in this project's form.
    """
    columns = dict.fromkeys(name for scan in scans for name, _ in scan.columns)
    others = set(known)
    gone = {name for name in columns if is_date_column(name) or is_identifying_column(name)}
    copied = [name for name in columns if name not in others | gone]
    if not copied:
        return ()
    return (f"Columns copied as they are: {', '.join(copied)}. Remove names, numbers and dates of patients.",)
