"""Table faults: every fault that cases.csv can have, by case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.dataset.table import EXAMPLE, PATH_COLUMNS, Fault, is_safe_case_id, label_value

__all__ = ["label_faults", "table_faults"]

NUMBER_COLUMNS: tuple[str, ...] = ("study_day", "age", "kvp", "slice_thickness_mm", "gantry_tilt_deg")
SPLITS: tuple[str, ...] = ("train", "val", "test")
_SAFE_LINES = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\n)*+")


def table_faults(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    """Every fault of a case table that can be found without opening an image.

    Args:
        cases: the frame as read from cases.csv.
        labels: the labels that dataset.json declares.
    """
    yield from _column_faults(cases, labels)
    if "case_id" not in cases.columns:
        return
    ids = _cells(cases, "case_id")
    yield from _id_faults(ids)
    yield from _path_faults(cases, ids)
    yield from _label_value_faults(cases, ids, labels)
    yield from _value_faults(cases, ids)
    yield from _split_faults(cases)


def label_faults(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    """Of the faults of `table_faults` those of labels: a column that is missing, a cell that is not one of its values.

    Args:
        cases: the frame as read from cases.csv, with `case_id`.
        labels: the labels that dataset.json declares.
    """
    yield from _label_column_faults(cases, labels)
    yield from _label_value_faults(cases, _cells(cases, "case_id"), labels)


def _cells(cases: pd.DataFrame, column: str) -> list[str]:
    return [str(value) for value in cases[column].tolist()]


def _wrong(cells: Sequence[str], is_right: Callable[[str], bool]) -> list[int]:
    """The rows whose cell is wrong; each distinct cell is judged once."""
    wrong = {cell for cell in set(cells) if not is_right(cell)}
    return [row for row, cell in enumerate(cells) if cell in wrong] if wrong else []


def _column_faults(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    for name in ("case_id", "image"):
        if name not in cases.columns:
            yield Fault(
                "",
                f"cases.csv has no column '{name}'.",
                got=", ".join(cases.columns),
                expected="case_id,image and any further columns",
                do=EXAMPLE,
            )
    yield from _label_column_faults(cases, labels)


def _label_column_faults(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> Iterator[Fault]:
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
    if len(set(ids)) == len(ids) and _all_safe(ids):
        return
    distinct = dict.fromkeys(ids)
    counts = Counter(ids)
    for case_id in distinct:
        if counts[case_id] > 1:
            yield Fault(
                case_id,
                f"the case id is in {counts[case_id]} lines.",
                expected="one line per case",
                do="Rename or remove one.",
            )
        if not is_safe_case_id(case_id):
            yield Fault(
                case_id,
                "the case id cannot be a file name.",
                got=repr(case_id),
                expected="letters, digits, '_', '.', '-', beginning with a letter or digit, at most 128",
                do="Rename the case.",
            )


def _all_safe(ids: Sequence[str]) -> bool:
    """Whether no id can be wrong, judged at once; False says only that they must be looked at one by one."""
    text = "".join(f"{case_id}\n" for case_id in ids)
    return text.count("\n") == len(ids) and ".\n" not in text and _SAFE_LINES.fullmatch(text) is not None


def _path_faults(cases: pd.DataFrame, ids: Sequence[str]) -> Iterator[Fault]:
    for column in PATH_COLUMNS:
        if column not in cases.columns:
            continue
        cells = _cells(cases, column)
        is_right = _is_inside if column == "image" else _is_inside_or_empty
        for row in [] if _all_inside(cells) else _wrong(cells, is_right):
            yield Fault(
                ids[row],
                f"'{column}' is not a path inside the dataset.",
                got=repr(cells[row]),
                expected="a relative path such as images/case_001.nii.gz",
                do="Put the file under the dataset's folder and write its path relative to it.",
            )
        if column == "image":
            yield from _shared_images(cases, ids)


def _all_inside(cells: Sequence[str]) -> bool:
    """Whether no path can be wrong, judged at once; False says only that they must be looked at one by one."""
    text = "\n" + "\n".join(cells) + "\n"
    return not any(sign in text for sign in ("\n\n", "\n/", "\\", "..", ":"))


def _is_inside_or_empty(text: str) -> bool:
    return text == "" or _is_inside(text)


def _is_inside(text: str) -> bool:
    """Whether a text is a relative path that does not lead out of its folder."""
    path = PurePosixPath(text.replace("\\", "/"))
    return not (text == "" or path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]))


def _shared_images(cases: pd.DataFrame, ids: Sequence[str]) -> Iterator[Fault]:
    images = [_plain_path(text) for text in _cells(cases, "image")]
    if len(set(images)) == len(images):
        return
    first: dict[str, str] = {}
    for case_id, text in zip(ids, images, strict=True):
        if text and first.setdefault(text, case_id) != case_id:
            yield Fault(
                case_id,
                "the image belongs to another case too.",
                got=f"{text}, also of case '{first[text]}'",
                expected="one case per image",
                do="Remove one of the lines.",
            )


def _plain_path(text: str) -> str:
    """A path without what changes nothing, so that one file has one spelling: './images//a.nii' is 'images/a.nii'."""
    return str(PurePosixPath(text)) if "//" in text or "./" in text or text.endswith(("/", "/.")) else text


def _label_value_faults(cases: pd.DataFrame, ids: Sequence[str], labels: Sequence[LabelSpec]) -> Iterator[Fault]:
    expected = {"binary": "0, 1 or empty", "continuous": "a number or empty"}
    for spec in labels:
        if spec.name not in cases.columns:
            continue
        cells = _cells(cases, spec.name)
        for row in _wrong(cells, _is_value_of(spec)):
            yield Fault(
                ids[row],
                f"the value of label '{spec.name}' is not one of its values.",
                got=repr(cells[row]),
                expected=expected.get(spec.type, "one of " + ", ".join(spec.classes) + ", or empty"),
                do="Correct the cell; leave it empty when it is not known.",
            )


def _is_value_of(spec: LabelSpec) -> Callable[[str], bool]:
    return lambda text: label_value(spec, text) is not None


def _value_faults(cases: pd.DataFrame, ids: Sequence[str]) -> Iterator[Fault]:
    if "modality" in cases.columns:
        cells = _cells(cases, "modality")
        for row in _wrong(cells, lambda text: text in ("", "CT")):
            yield Fault(ids[row], "the modality is not supported.", repr(cells[row]), "CT or empty", "Remove the case.")
    for column in NUMBER_COLUMNS:
        if column not in cases.columns:
            continue
        cells = _cells(cases, column)
        for row in _wrong(cells, _is_value_of(LabelSpec(name=column, type="continuous"))):
            yield Fault(
                ids[row],
                f"'{column}' is not a number.",
                got=repr(cells[row]),
                expected="a number or empty",
                do="Correct the cell; leave it empty when it is not known.",
            )


def _split_faults(cases: pd.DataFrame) -> Iterator[Fault]:
    if "split" not in cases.columns:
        return
    of_subject: dict[str, str] = {}
    ids = _cells(cases, "case_id")
    subjects = _cells(cases, "subject_id") if "subject_id" in cases.columns else [""] * len(ids)
    for case_id, named, split in zip(ids, subjects, _cells(cases, "split"), strict=True):
        if split and split not in SPLITS:
            yield Fault(
                case_id, "'split' is not a known split.", repr(split), "train, val, test or empty", "Correct the cell."
            )
        other = of_subject.setdefault(named or case_id, split)
        if other != split:
            yield Fault(
                case_id,
                "its subject is in two splits.",
                got=f"'{split or 'empty'}' here, '{other or 'empty'}' in another case of the subject",
                expected="all cases of a subject in one split",
                do="Give all cases of the subject the same value of 'split'.",
            )
