"""Candidate: a scan under its keyed id, with the cells of cases.csv that are known before its voxels are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from headctssl.dataset.dicom_slices import kernel_text
from headctssl.dataset.table import STANDARD_COLUMNS
from headctssl.ingest.kernels import is_kernel_name, is_kernel_word, kernel_names
from headctssl.ingest.privacy import capped_age, is_date_column, is_identifying_column, keyed_hash, scrub, study_day
from headctssl.ingest.scan import Scan

__all__ = [
    "DEVICE_COLUMNS",
    "Candidate",
    "column_remarks",
    "device_text",
    "filter_cells",
    "identifying_words",
    "late_columns",
    "make_candidate",
    "renamed_dates",
]

_FROM_HEADERS = ("gantry_tilt_deg", "kvp", "convolution_kernel", "slice_thickness_mm", "manufacturer")
"""Columns that reading an image fills where a converter had no headers."""

DEVICE_COLUMNS = ("convolution_kernel", "manufacturer", "model")
"""Columns of texts that people type into a scanner."""

_BIRTH = re.compile(r"birth|(^|_)dob($|_)", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """A scan that may become a case."""

    scan: Scan
    case_id: str
    cells: dict[str, str]  # of cases.csv, ids included; unknown ones are absent but for ids and what the source lists

    @property
    def image(self) -> str:
        """Path of the image in the dataset."""
        return f"images/{self.case_id}.nii.gz"


def make_candidate(scan: Scan, key: bytes, labels: Collection[str]) -> Candidate:
    """Give a scan its id, and its cells without names, ids and dates.

    Args:
        scan: as a converter found it.
        key: the secret key.
        labels: columns that are labels; they are copied as they are.
    """
    case_id = f"case_{keyed_hash(key, scan.identity)}"
    cells = {
        "case_id": case_id,
        "image": f"images/{case_id}.nii.gz",
        "subject_id": f"subject_{keyed_hash(key, 'subject:' + scan.subject)}" if scan.subject else "",
        "session_id": f"session_{keyed_hash(key, 'session:' + scan.session)}" if scan.session else "",
    }
    listed = _column_cells(scan, key, labels)
    known = {**_header_cells(scan), **listed}
    if scan.facts is not None and (day := study_day(key, scan.subject, scan.facts.study_date)):
        known.setdefault("study_day", day)
    # An empty cell that the source lists takes away what the dataset has from it; one of the headers says nothing.
    return Candidate(scan, case_id, {**cells, **{n: text for n, text in known.items() if text or n in listed}})


def identifying_words(scan: Scan) -> tuple[str, ...]:
    """Words that must not be in a text that is kept: parts of names, and ids as the source has them."""
    subject = () if scan.subject.startswith("study:") else (scan.subject,)
    return (*scan.identifying, *subject)


def device_text(column: str, text: str, scan: Scan) -> str:
    """A kernel, manufacturer or model as it is kept: without names, ids and dates. Names of kernels stay.

    Args:
        column: one of `DEVICE_COLUMNS`.
        text: as a header or a table has it.
        scan: whose it is.
    """
    words = identifying_words(scan)
    if column != "convolution_kernel":
        return scrub(text, words, long_numbers=False)
    others = [word for word in words if not is_kernel_word(word)]
    values = kernel_names(text)
    kept = tuple(value if is_kernel_name(value) else scrub(value, others, long_numbers=False) for value in values)
    return text if kept == values else kernel_text(kept)


def _header_cells(scan: Scan) -> dict[str, str]:
    """Cells of the headers, in the spelling that reading gives them."""
    facts = scan.facts
    if facts is None:
        return {}
    thickness = facts.slice_thickness_mm
    return {
        "age": capped_age(facts.age),
        "sex": facts.sex,
        "study_description": scrub(" ".join(facts.study_description.split()), identifying_words(scan)),
        "contrast": {True: "yes", False: "no", None: ""}[facts.contrast],
        "kvp": facts.kvp if _is_number(facts.kvp) else "",  # two voltages are no number of the table
        "convolution_kernel": device_text("convolution_kernel", facts.convolution_kernel, scan),
        "slice_thickness_mm": "" if thickness is None else f"{thickness:g}",
        "manufacturer": device_text("manufacturer", facts.manufacturer, scan),
        "gantry_tilt_deg": f"{facts.tilt_deg:.3g}",
    }


def _column_cells(scan: Scan, key: bytes, labels: Collection[str]) -> dict[str, str]:
    """Cells that the converter brought: ages capped, dates as days, free texts without names and dates."""
    words = identifying_words(scan)
    cells: dict[str, str] = {}
    for name, text in scan.columns:
        if name in labels:
            cells[name] = text
        elif name == "age":
            cells[name] = capped_age(text)
        elif renamed := renamed_dates([name]).get(name):
            cells[renamed] = study_day(key, scan.subject, text)
        elif is_date_column(name) or is_identifying_column(name):
            continue  # also a day of birth: with a study day it would tell the age to the day
        elif name == "study_description":
            cells[name] = scrub(" ".join(text.split()), words)
        elif name in DEVICE_COLUMNS:
            cells[name] = device_text(name, text, scan)
        elif name in STANDARD_COLUMNS:
            cells[name] = text
        else:
            cells[name] = scrub(text, words, long_numbers=False)
    return cells


def renamed_dates(names: Collection[str]) -> dict[str, str]:
    """Date columns by name -> the column of days that each becomes; days of birth are in none."""
    kept = [name for name in names if is_date_column(name) and not _BIRTH.search(name)]
    return {name: re.sub("date", "day", name, count=1, flags=re.IGNORECASE) for name in kept}


def column_remarks(candidates: Collection[Candidate]) -> list[str]:
    """Sentences on what became of the dates, and of the columns that identify somebody, that a source brought.

    Args:
        candidates: distinct scans.
    """
    filled: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    names: set[str] = set()
    for candidate in candidates:
        for name, text in candidate.scan.columns:
            if text and is_date_column(name):
                day = renamed_dates([name]).get(name)
                (filled if candidate.cells.get(day or "") else lost)[name] += 1
            elif name not in candidate.cells and is_identifying_column(name):
                names.add(name)
    remarks = [f"'{name}' was left out: by its name it tells who a patient is." for name in sorted(names)]
    for name in sorted({*filled, *lost}):
        day = renamed_dates([name]).get(name)
        if day is None:
            remarks.append(f"'{name}' was left out: a day of birth.")
            continue
        told = f"Dates of '{name}' became days in '{day}', counted from a secret origin of each subject."
        if lost[name]:
            told += (
                f" {lost[name]} were left out: not written as 2020-02-29 or 20200229, or of a scan without a subject."
            )
        remarks.append(told)
    return remarks


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def late_columns(candidate: Candidate) -> set[str]:
    """Columns whose cells are known only when the image has been read."""
    brought = {name for name, _ in candidate.scan.columns}
    late = {"quality"} if candidate.scan.facts is not None else {"quality", *_FROM_HEADERS}
    return late - brought


def filter_cells(candidate: Candidate) -> dict[str, str]:
    """What a scan filter compares: as the headers have it, nothing taken out; never written."""
    facts = candidate.scan.facts
    cells = {**candidate.cells, **dict(candidate.scan.columns)}
    if facts is not None:
        raw = {
            "study_description": facts.study_description,
            "kvp": facts.kvp,
            "convolution_kernel": facts.convolution_kernel,
        }
        cells.update({name: text for name, text in raw.items() if text})
    return cells
