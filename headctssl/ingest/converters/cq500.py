"""CQ500: the head CTs of Qure.ai with the readings of three radiologists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from headctssl.contract import LabelSpec
from headctssl.errors import DataError
from headctssl.ingest.converters.cells import binary_cell
from headctssl.ingest.converters.source_files import find_named, layout_error, lines_of
from headctssl.ingest.dicom import find_scans as find_dicom
from headctssl.ingest.scan import Found, Scan

__all__ = ["LABELS", "find_scans"]

READERS = ("R1", "R2", "R3")
_MIRRORED = {"BleedLocation-Left": "BleedLocation-Right", "BleedLocation-Right": "BleedLocation-Left"}
_NAMES = (
    "ICH",
    "IPH",
    "IVH",
    "SDH",
    "EDH",
    "SAH",
    "BleedLocation-Left",
    "BleedLocation-Right",
    "ChronicBleed",
    "Fracture",
    "CalvarialFracture",
    "OtherFracture",
    "MassEffect",
    "MidlineShift",
)
LABELS = tuple(LabelSpec(name=name, mirror=_MIRRORED.get(name, "self")) for name in _NAMES)
"""The 14 findings of reads.csv. A flip swaps the two sides of a bleed and changes none of the others."""

_NUMBER = re.compile(r"CQ500[-_ ]?CT[-_ ]?(\d+)", re.IGNORECASE)


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every CT series of CQ500, with the labels of its study.

    A label is what at least two of the three readers say (`R1:ICH`, `R2:ICH`, `R3:ICH`, ...); it belongs
    to every series of the study. The study is known by its folder (`CQ500CT12 CQ500CT12`) or PatientID.

    Args:
        source: the folder of the unpacked archives, `CQ500CT<n> CQ500CT<n>/Unknown Study/<series>/*.dcm` at
            any depth, with `reads.csv` in it or at most two folders below. Without the table the scans
            have no labels.
        num_workers: processes that read headers; None = one per core where there are files enough.
        quiet: print no progress.

    Raises:
        DataError: `source` is a file, or the table has another layout, an unknown value, or a study twice.
    """
    if not source.is_dir():
        raise layout_error(source, "cq500", "the folder of the unpacked archives")
    found = find_dicom(source, num_workers, quiet=quiet)
    table = find_named(source, "reads.csv")
    studies = _studies(table) if table else {}
    numbers = [_number(scan, source) for scan in found.scans]
    scans = tuple(_labelled(scan, n, studies) for scan, n in zip(found.scans, numbers, strict=True))
    return replace(
        found,
        scans=scans,
        labels=LABELS if table else (),
        licence="CC BY-NC-SA 4.0",
        reference="Chilamkurthy et al., Lancet 2018; 392: 2388-2396, doi:10.1016/S0140-6736(18)31645-3",
        remarks=(*found.remarks, *_remarks(table, studies, numbers)),
    )


def _studies(table: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """The cells of each study by its number."""
    needed = ["name", *(f"{reader}:{name}" for name in _NAMES for reader in READERS)]
    studies: dict[str, tuple[tuple[str, str], ...]] = {}
    for row in lines_of(table, needed):
        match = _NUMBER.search(row["name"])
        number = str(int(match.group(1))) if match else ""
        if not number or number in studies:
            raise DataError(
                f"{table.name}: '{row['name']}' {'is there twice' if number else 'is no study'}.",
                got=row["name"],
                expected="one line per study, such as CQ500-CT-12",
                do="Use the table as it is published.",
            )
        votes = {
            name: [binary_cell(row[f"{r}:{name}"], f"{r}:{name} of {row['name']}") for r in READERS] for name in _NAMES
        }
        cells = [(name, _majority(votes[name])) for name in _NAMES]
        studies[number] = (*cells, ("cq500_batch", row.get("Category", "")))
    return studies


def _majority(votes: list[str]) -> str:
    """What more than half of the readers say, '' when there is no such value."""
    return next((value for value in ("0", "1") if 2 * votes.count(value) > len(READERS)), "")


def _number(scan: Scan, source: Path) -> str:
    """The number of a scan's study, '' when neither its folders nor its PatientID say."""
    parts = scan.path.relative_to(source).parts if scan.path.is_relative_to(source) else scan.path.parts
    for text in (*reversed(parts), scan.subject, source.resolve().name):
        match = _NUMBER.search(text)
        if match:
            return str(int(match.group(1)))
    return ""


def _labelled(scan: Scan, number: str, studies: Mapping[str, tuple[tuple[str, str], ...]]) -> Scan:
    if not number:
        return scan
    return replace(scan, subject=f"CQ500-CT-{number}", columns=(*scan.columns, *studies.get(number, ())))


def _remarks(table: Path | None, studies: Mapping[str, object], numbers: list[str]) -> list[str]:
    if table is None:
        return ["There is no reads.csv: the scans have no labels."]
    unread = sum(number not in studies for number in numbers)
    absent = sum(number not in numbers for number in studies)
    remarks = ["Labels are what at least two of the three readers say."]
    if unread or absent:
        remarks.append(f"{table.name}: {unread} series of no study in it, {absent} of its studies without a series.")
    return remarks
