"""Report: ingest_report.json, what became of every scan that was offered to a dataset. Nothing in it names anybody."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from headctssl.errors import DataError
from headctssl.paths import atomic_path
from headctssl.settings import Settings, read_json
from headctssl.types import Volume

__all__ = [
    "REPORT_FILE",
    "IngestReport",
    "RecordStatus",
    "ScanRecord",
    "Stage",
    "hu_peaks",
    "read_report",
    "write_report",
]

REPORT_FILE = "ingest_report.json"

RecordStatus = Literal["accept", "review", "reject", "left_out"]
Stage = Literal["file", "headers", "scan_filter", "where", "selection", "image"]

_PEAKS_HU = ((-1100, -850), (-200, 200), (250, 2000))
"""Where air, soft tissue and bone are looked for."""

_SAMPLES = 300_000  # voxels a peak is found from; more does not move it


class ScanRecord(Settings):
    """What became of one scan, and what the report page shows of it."""

    case_id: str = Field(description="Case id in the dataset, a keyed hash; also of scans that are not in it.")
    status: RecordStatus = Field(description="accept and review are in the dataset, reject and left_out are not.")
    stage: Stage = Field("image", description="Where it was decided: of the file, its headers, a rule, or the image.")
    reasons: tuple[str, ...] = Field((), description="Why the status is not accept.")
    notes: tuple[str, ...] = Field((), description="What was noticed or done, and which rule let it pass.")
    subject_id: str = Field("", description="Keyed hash of the patient; empty when not known.")
    session_id: str = Field("", description="Keyed hash of the study; empty when not known.")
    shape: tuple[int, ...] = Field((), description="Voxels (z, y, x) as written.")
    spacing_mm: tuple[float, ...] = Field((), description="Voxel spacing (z, y, x) in mm as written.")
    original_spacing_mm: tuple[float, ...] = Field((), description="(slice, row, column) in mm as stored.")
    slice_thickness_mm: str = Field("", description="As the header states it, mm.")
    kvp: str = Field("", description="Tube voltage in kV.")
    convolution_kernel: str = Field("", description="As the header states it.")
    manufacturer: str = Field("", description="Of the scanner.")
    model: str = Field("", description="Of the scanner.")
    contrast: str = Field("", description="yes, no or empty when not known.")
    age: str = Field("", description="Years, at most 90.")
    sex: str = Field("", description="M, F or O.")
    tilt_deg: float | None = Field(None, description="Angle between the slice normal and the stack, degrees.")
    displacement_mm: float | None = Field(None, description="Largest in-plane move of a slice by straightening, mm.")
    straightened: bool | None = Field(None, description="Whether voxels were resampled to a straight grid.")
    hu_peaks: tuple[int | None, ...] = Field((), description="Most frequent HU of air, soft tissue and bone.")
    thumbnail: str = Field("", description="Small picture in the dataset's folder, of scans that were not accepted.")
    source_state: str = Field("", description="Number of files and bytes of the source.")
    read_with: str = Field("", description="Version and flags of the reading; empty: to be read again.")


class IngestReport(Settings):
    """ingest_report.json: the last decision on every scan that was offered to the dataset."""

    format: Literal[1] = 1
    key_check: str = Field("", description="Hash by which another key is noticed.")
    scans: tuple[ScanRecord, ...] = Field((), description="One per scan.")


def read_report(folder: Path) -> IngestReport:
    """The report of a dataset; an empty one where there is none.

    Raises:
        DataError: the file is damaged, or of a version that held names of sources.
    """
    path = folder / REPORT_FILE
    if not path.exists():
        return IngestReport()
    try:
        return read_json(path, IngestReport)
    except DataError as error:
        do = "Move it away: conversion writes a new one, and reads scans again that were rejected."
        raise DataError(error.what, got=error.got, expected=error.expected, do=do) from None


def write_report(folder: Path, key_check: str, records: Iterable[ScanRecord]) -> Path:
    """Write ingest_report.json atomically, one line per scan, fields that say nothing left out.

    Args:
        folder: the dataset.
        key_check: see `IngestReport`.
        records: of every scan.
    """
    path = folder / REPORT_FILE
    empty = IngestReport(key_check=key_check).model_dump_json(exclude={"scans"})
    lines = ",\n".join(record.model_dump_json(exclude_defaults=True) for record in records)
    with atomic_path(path) as temporary:
        temporary.write_text(f'{empty[:-1]},"scans":[\n{lines}\n]}}\n', encoding="utf-8")
    return path


def hu_peaks(volume: Volume) -> tuple[int | None, int | None, int | None]:
    """The most frequent values of air, soft tissue and bone in HU; None where a range has no peak.

    A range that holds less than 0.1 % of the voxels has none. Values are counted in steps of 4 HU between
    -1100 and -850, -200 and 200, 250 and 2000.
    """
    flat = volume.hu.ravel()
    # The air that reading put around a straightened scan, and padding of the scanner, are no peak of the patient.
    sample = flat[:: max(1, flat.size // _SAMPLES)]
    sample = sample[sample > -1024]
    found: list[int | None] = []
    for low, high in _PEAKS_HU:
        counts, edges = np.histogram(sample, bins=np.arange(low, high + 4, 4))
        at = int(counts.argmax())
        # At the border of a range it is the slope of something outside.
        peak = 0 < at < counts.size - 1 and counts.sum() >= max(1, 0.001 * sample.size)
        found.append(int(edges[at]) + 2 if peak else None)
    air, tissue, bone = found
    return air, tissue, bone
