"""Fingerprint: what a dataset is like, from the headers of all cases and the voxels of a few."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headctssl.console import name_files, progress, say
from headctssl.dataset.image_io import ImageHeader, read, read_header
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.errors import DataError, HeadCTSSLError
from headctssl.paths import atomic_path, preprocessed_dataset
from headctssl.planning.machine import available_cores
from headctssl.planning.usable import require_hounsfield
from headctssl.seeding import derive_seed
from headctssl.settings import Settings, read_json, write_json
from headctssl.types import Triple
from headctssl.volume.head import find_head

__all__ = [
    "SAMPLE_CASES",
    "DatasetFingerprint",
    "LabelCount",
    "Spread",
    "extract_fingerprint",
    "left_out_cases",
    "load_fingerprint",
    "summarise",
]

SAMPLE_CASES = 25
"""Volumes that are read; headers are read of all cases. 25 pin the 95th percentile of head sizes to a few mm."""

THICK_SLICE_MM = 2.5
"""Slices of this spacing or more count as thick: brain CT is mostly reconstructed at 2.5-5 mm, volumes at 0.5-1.25."""

FINGERPRINT_NAME = "dataset_fingerprint.json"
CASES_NAME = "cases_fingerprint.csv"

_HU_POINTS = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
_VOXELS_PER_CASE = 50_000

T = TypeVar("T")


class Spread(Settings):
    """How a number is spread over cases."""

    low: float = Field(description="Smallest.")
    p10: float = Field(description="10th percentile.")
    median: float
    p95: float = Field(description="95th percentile.")
    high: float = Field(description="Largest.")

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number, rounded to 0.001."""
        points = np.percentile(np.asarray(values, dtype=np.float64), (0, 10, 50, 95, 100))
        low, p10, median, p95, high = (round(float(p), 3) for p in points)
        return cls(low=low, p10=p10, median=median, p95=p95, high=high)


class LabelCount(Settings):
    """How often the values of one label occur."""

    name: str
    type: str
    known: int = Field(ge=0, description="Cases where the label is known.")
    counts: tuple[int, ...] = Field(description="Cases per value: 0 and 1, or per class; empty for continuous.")


class DatasetFingerprint(Settings):
    """dataset_fingerprint.json: aggregates only, no case id, no path."""

    format: Literal[1] = 1
    dataset_id: int = Field(ge=1)
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    profile: Literal["real", "clinical", "laptop", "template"] = "real"
    num_cases: int = Field(ge=0, description="Cases whose header could be read.")
    num_subjects: int = Field(ge=0)
    num_unreadable: int = Field(ge=0, description="Cases left out; named in cases_fingerprint.csv.")
    source_formats: tuple[str, ...] = Field(description="Formats of the images.")
    spacing_mm: tuple[Spread, Spread, Spread] = Field(description="Spacing (z, y, x) as `read` returns it.")
    shape: tuple[Spread, Spread, Spread] = Field(description="Voxels (z, y, x).")
    field_of_view_mm: tuple[Spread, Spread, Spread] = Field(description="Sides (z, y, x) of the scans.")
    thick_slice_share: float = Field(ge=0, le=1, description="Share of scans with slices of 2.5 mm or more.")
    tilted_share: float = Field(ge=0, le=1, description="Share of scans with a gantry tilt of 0.5 degrees or more.")
    uneven_share: float = Field(ge=0, le=1, description="Share of scans with slice gaps that differ by 0.1 mm or more.")
    sampled_cases: int = Field(ge=0, description="Cases whose voxels were read.")
    head_extent_mm: tuple[Spread, Spread, Spread] | None = Field(description="Head box (z, y, x), sampled cases.")
    head_hu_points: tuple[float, ...] = Field(_HU_POINTS, description="Percentiles taken in the head.")
    head_hu: tuple[float, ...] = Field(description="HU at those percentiles, over the sampled cases.")
    doubtful_hu: int = Field(ge=0, description="Sampled cases whose values may not be Hounsfield units.")
    masks: tuple[str, ...] = Field((), description="Mask columns of cases.csv that at least one case fills.")
    labels: tuple[LabelCount, ...] = ()

    def digest(self) -> str:
        """SHA-256 over all fields, first 16 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


@dataclass
class CaseFacts:
    """What is known of one case."""

    case_id: str
    subject_id: str
    header: ImageHeader | None = None
    head_extent_mm: Triple | None = None
    head_hu: NDArray[np.int16] | None = None  # values in the head, a bounded sample
    note: str = ""  # values that may not be Hounsfield units
    fault: HeadCTSSLError | None = field(default=None)


def extract_fingerprint(dataset_id: int, *, num_workers: int | None = None, quiet: bool = False) -> DatasetFingerprint:
    """Fingerprint a raw dataset: headers of all cases, voxels of 25.

    Writes dataset_fingerprint.json and cases_fingerprint.csv. A case that cannot be read is left
    out and named; preprocessing names it again with its reason.

    Args:
        dataset_id: the number of the raw dataset.
        num_workers: reading threads; one per core when None.
        quiet: print nothing.

    Raises:
        UsageError: there is no such dataset.
        DataError: the dataset's files do not fit their schema, or no case can be read.
    """
    raw = load_raw_dataset(dataset_id)
    workers = max(1, available_cores() if num_workers is None else num_workers)
    facts = [CaseFacts(str(c), str(s)) for c, s in zip(raw.cases["case_id"], raw.cases["subject_id"], strict=True)]
    _read_headers(raw, facts, workers, quiet)
    _read_sample(raw, facts, workers, quiet)
    fingerprint = summarise(raw, facts)
    folder = preprocessed_dataset(dataset_id)
    write_json(folder / FINGERPRINT_NAME, fingerprint)
    _write_cases(folder / CASES_NAME, facts)
    for case in facts:
        if case.fault is not None:
            say(f"left out: case '{case.case_id}': {case.fault.message}", quiet=quiet)
        elif case.note:
            say(f"noticed: case '{case.case_id}': {case.note}", quiet=quiet)
    if not fingerprint.num_cases:
        raise DataError(
            f"No case of {raw.folder.name} can be read.",
            got=f"{len(facts)} unreadable cases",
            expected="at least one readable case",
            do=f"See {folder / CASES_NAME}, or run headct_verify_dataset -d {dataset_id}.",
        )
    name_files([folder / FINGERPRINT_NAME, folder / CASES_NAME], quiet=quiet)
    return fingerprint


def load_fingerprint(dataset_id: int) -> DatasetFingerprint:
    """Read dataset_fingerprint.json.

    Raises:
        DataError: it is missing or does not fit its schema.
    """
    return read_json(
        preprocessed_dataset(dataset_id) / FINGERPRINT_NAME,
        DatasetFingerprint,
        do=f"Run headct_extract_fingerprint -d {dataset_id}.",
    )


def left_out_cases(folder: Path) -> set[str]:
    """Ids of the cases that the fingerprint left out; empty when there is no cases_fingerprint.csv.

    Args:
        folder: the dataset's folder under headctssl_preprocessed.
    """
    path = folder / CASES_NAME
    if not path.is_file():
        return set()
    with open(path, newline="", encoding="utf-8") as handle:
        return {row["case_id"] for row in csv.DictReader(handle) if row["left_out_because"]}


def _threads(
    job: Callable[[CaseFacts], T], facts: Sequence[CaseFacts], workers: int, what: str, quiet: bool
) -> Iterator[tuple[CaseFacts, T]]:
    """Run a job per case in threads: reading waits for the disk and for gzip, both outside the interpreter lock."""
    with ThreadPoolExecutor(max_workers=min(workers, max(1, len(facts)))) as pool:
        results = progress(pool.map(job, facts), what, len(facts), quiet=quiet)
        yield from zip(facts, results, strict=True)


def _read_headers(raw: RawDataset, facts: list[CaseFacts], workers: int, quiet: bool) -> None:
    paths = {str(c): raw.folder / str(i) for c, i in zip(raw.cases["case_id"], raw.cases["image"], strict=True)}

    def job(case: CaseFacts) -> ImageHeader | HeadCTSSLError:
        try:
            return read_header(paths[case.case_id])
        except Exception as error:  # whatever one file does to a reader must not cost the other cases
            return _fault(error)

    for case, outcome in _threads(job, facts, workers, "headers", quiet):
        if isinstance(outcome, HeadCTSSLError):
            case.fault = outcome
        else:
            case.header = outcome


def _read_sample(raw: RawDataset, facts: list[CaseFacts], workers: int, quiet: bool) -> None:
    """Read the voxels of a sample that depends on the case ids alone; a case that fails gives way to the next."""
    readable = [case for case in facts if case.header is not None]
    order = sorted(readable, key=lambda case: derive_seed("fingerprint", case.case_id))

    def job(case: CaseFacts) -> HeadCTSSLError | None:
        try:
            volume = read(raw.image_path(case.case_id))
            doubt = require_hounsfield(volume)
            case.note = doubt or ""
            head = find_head(volume.hu, volume.spacing_mm)
        except Exception as error:  # whatever one file does to a reader must not cost the other cases
            return _fault(error)
        sides = [(high - low) * s for (low, high), s in zip(head.box, volume.spacing_mm, strict=True)]
        case.head_extent_mm = (sides[0], sides[1], sides[2])
        case.head_hu = _some(volume.hu[tuple(slice(None, None, n) for n in head.stride)][head.coarse_mask])
        return None

    sampled, position = 0, 0
    while sampled < SAMPLE_CASES and position < len(order):
        part = order[position : position + SAMPLE_CASES - sampled]
        position += len(part)
        for case, error in _threads(job, part, workers, "volumes", quiet):
            case.fault = error
            sampled += error is None
    for case in facts:
        case.header = None if case.fault is not None else case.header


def _fault(error: Exception) -> HeadCTSSLError:
    """The error of one case as one that users read: a file that is away, too little memory or a fault of ours."""
    if isinstance(error, HeadCTSSLError):
        return error
    return DataError(
        f"The image cannot be read: {type(error).__name__}.",
        got=str(error) or type(error).__name__,
        expected="a readable image",
        do="Check the file and run again; when it is sound, report this without patient data.",
    )


def _some(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """At most 50,000 evenly chosen values."""
    return values[:: max(1, -(-values.size // _VOXELS_PER_CASE))].copy()


def summarise(raw: RawDataset, facts: Sequence[CaseFacts]) -> DatasetFingerprint:
    """Aggregate the facts of the cases.

    Args:
        raw: the dataset, for its name and labels.
        facts: one entry per case; those with a fault are only counted.
    """
    good = [(case, case.header) for case in facts if case.header is not None]
    headers = [header for _, header in good]
    extents = [case.head_extent_mm for case, _ in good if case.head_extent_mm is not None]
    values = [case.head_hu for case, _ in good if case.head_hu is not None and case.head_hu.size]
    hu = np.percentile(np.concatenate(values), _HU_POINTS) if values else np.empty(0)
    nothing = Spread(low=0, p10=0, median=0, p95=0, high=0)

    def spread(of: Callable[[ImageHeader, int], float]) -> tuple[Spread, Spread, Spread]:
        if not headers:
            return (nothing, nothing, nothing)
        z, y, x = (Spread.of([of(h, axis) for h in headers]) for axis in range(3))
        return (z, y, x)

    def share(is_so: Callable[[ImageHeader], bool]) -> float:
        return round(sum(map(is_so, headers)) / len(headers), 4) if headers else 0.0

    extent = None
    if extents:
        z, y, x = (Spread.of([e[axis] for e in extents]) for axis in range(3))
        extent = (z, y, x)
    return DatasetFingerprint(
        dataset_id=raw.dataset_id,
        dataset_name=raw.folder.name,
        profile=raw.info.profile,
        num_cases=len(good),
        num_subjects=len({case.subject_id for case, _ in good}),
        num_unreadable=len(facts) - len(good),
        source_formats=tuple(sorted({h.source_format for h in headers})),
        spacing_mm=spread(lambda h, axis: h.spacing_mm[axis]),
        shape=spread(lambda h, axis: h.shape[axis]),
        field_of_view_mm=spread(lambda h, axis: h.shape[axis] * h.spacing_mm[axis]),
        thick_slice_share=share(lambda h: h.spacing_mm[0] >= THICK_SLICE_MM),
        tilted_share=share(lambda h: h.tilt_deg >= 0.5),
        uneven_share=share(lambda h: len(h.slice_gaps_mm) > 1 and h.slice_gaps_mm[-1] - h.slice_gaps_mm[0] >= 0.1),
        sampled_cases=len(extents),
        head_extent_mm=extent,
        head_hu=tuple(round(float(v), 1) for v in hu),
        doubtful_hu=sum(bool(case.note) for case, _ in good),
        masks=tuple(c for c in MASK_COLUMNS if c in raw.cases.columns and (raw.cases[c] != "").any()),
        labels=_label_counts(raw, {case.case_id for case, _ in good}),
    )


def _label_counts(raw: RawDataset, kept: set[str]) -> tuple[LabelCount, ...]:
    if not raw.info.labels:
        return ()
    table = raw.labels()
    table = table[[case_id in kept for case_id in table.index]]
    counts = []
    for label in raw.info.labels:
        known = table[label.name].dropna()
        values = range(2) if label.type == "binary" else range(len(label.classes))
        per_value = () if label.type == "continuous" else tuple(int((known == v).sum()) for v in values)
        counts.append(LabelCount(name=label.name, type=label.type, known=len(known), counts=per_value))
    return tuple(counts)


def _write_cases(path: Path, facts: Sequence[CaseFacts]) -> None:
    """cases_fingerprint.csv: one line per case, what its header says or why it was left out."""
    axes = ("z", "y", "x")
    columns = ["case_id", *(f"shape_{a}" for a in axes), *(f"spacing_{a}_mm" for a in axes)]
    columns += ["tilt_deg", *(f"head_{a}_mm" for a in axes), "noticed", "left_out_because"]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        for case in facts:
            header, extent = case.header, case.head_extent_mm
            known = (
                [] if header is None else [str(v) for v in (*header.shape, *(round(s, 4) for s in header.spacing_mm))]
            )
            tilt = "" if header is None else round(header.tilt_deg, 2)
            sides = [""] * 3 if extent is None else [f"{e:.1f}" for e in extent]
            because = "" if case.fault is None else " ".join(case.fault.message.split())
            writer.writerow([case.case_id, *(known or [""] * 6), tilt, *sides, case.note, because])
