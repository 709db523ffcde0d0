"""Fingerprint: what a dataset is like, from the headers of all cases and the voxels of a few."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from headctssl.console import name_files, say
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.errors import DataError
from headctssl.paths import preprocessed_dataset
from headctssl.planning.case_facts import CASES_NAME, CaseFacts
from headctssl.planning.machine import available_cores
from headctssl.planning.read_facts import SAMPLE_CASES, look_at_sources, read_headers, read_sample
from headctssl.settings import Settings, read_json, write_json

__all__ = [
    "SAMPLE_CASES",
    "DatasetFingerprint",
    "LabelCount",
    "Spread",
    "extract_fingerprint",
    "load_fingerprint",
    "summarise",
]

THICK_SLICE_MM = 2.5
"""Slices of this spacing or more count as thick: brain CT is mostly reconstructed at 2.5-5 mm, volumes at 0.5-1.25."""

FINGERPRINT_NAME = "dataset_fingerprint.json"

_HU_POINTS = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)


class Spread(Settings):
    """How a number is spread over cases."""

    low: float = Field(description="Smallest.")
    p10: float = Field(description="10th percentile.")
    median: float
    p95: float = Field(description="95th percentile.")
    high: float = Field(description="Largest.")

    @classmethod
    def of(cls, values: ArrayLike) -> Spread:
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


def extract_fingerprint(dataset_id: int, *, num_workers: int | None = None, quiet: bool = False) -> DatasetFingerprint:
    """Fingerprint a raw dataset: headers of all cases, voxels of 25.

    Writes dataset_fingerprint.json and cases_fingerprint.csv. A case that cannot be read is left
    out and named; preprocessing names it again with its reason. The header of a case whose image has
    kept its path, size and modification time is taken from cases_fingerprint.csv.

    Args:
        dataset_id: the number of the raw dataset.
        num_workers: reading threads, or processes where there are thousands of headers to read; one per core when
            None.
        quiet: print nothing.

    Raises:
        UsageError: there is no such dataset.
        DataError: the dataset's files do not fit their schema, or no case can be read.
    """
    raw = load_raw_dataset(dataset_id)
    workers = max(1, available_cores() if num_workers is None else num_workers)
    folder = preprocessed_dataset(dataset_id)
    facts = CaseFacts.unread(raw.case_ids, [str(image) for image in raw.cases["image"].tolist()])
    look_at_sources(raw, facts, workers)
    read_headers(raw, facts, facts.take_over(folder), workers, quiet=quiet)
    head_hu = read_sample(raw, facts, workers, quiet=quiet)
    fingerprint = summarise(raw, facts, head_hu)
    write_json(folder / FINGERPRINT_NAME, fingerprint)
    facts.write(folder)
    for row, case_id in enumerate(facts.case_ids):
        if row in facts.faults:
            say(f"left out: case '{case_id}': {facts.faults[row].message}", quiet=quiet)
        elif row in facts.notes:
            say(f"noticed: case '{case_id}': {facts.notes[row]}", quiet=quiet)
    if not fingerprint.num_cases:
        raise DataError(
            f"No case of {raw.folder.name} can be read.",
            got=f"{len(facts.case_ids)} unreadable cases",
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


def summarise(raw: RawDataset, facts: CaseFacts, head_hu: Sequence[NDArray[np.int16]] = ()) -> DatasetFingerprint:
    """Aggregate the facts of the cases.

    Args:
        raw: the dataset, for its name, subjects and labels; its cases are those of `facts`, in their order.
        facts: those with a fault are only counted.
        head_hu: values in the head, one array per sampled case.
    """
    good = facts.good
    extents = np.array([facts.extents_mm[row] for row in sorted(facts.extents_mm)], np.float64)
    values = [some for some in head_hu if some.size]
    hu = np.percentile(np.concatenate(values), _HU_POINTS) if values else np.empty(0)
    shapes, spacings = facts.shapes[good], facts.spacings_mm[good]

    def share(is_so: NDArray[np.bool_]) -> float:
        return round(int(is_so.sum()) / len(good), 4) if len(good) else 0.0

    return DatasetFingerprint(
        dataset_id=raw.dataset_id,
        dataset_name=raw.folder.name,
        profile=raw.info.profile,
        num_cases=len(good),
        num_subjects=len(set(raw.cases["subject_id"].to_numpy(object)[good].tolist())),
        num_unreadable=len(facts.case_ids) - len(good),
        source_formats=tuple(sorted(set(facts.formats[good].tolist()))),
        spacing_mm=_spreads(spacings),
        shape=_spreads(shapes),
        field_of_view_mm=_spreads(shapes * spacings),
        thick_slice_share=share(spacings[:, 0] >= THICK_SLICE_MM),
        tilted_share=share(facts.tilts_deg[good] >= 0.5),
        uneven_share=share(facts.gap_ranges_mm[good] >= 0.1),
        sampled_cases=len(extents),
        head_extent_mm=_spreads(extents) if len(extents) else None,
        head_hu=tuple(round(float(v), 1) for v in hu),
        doubtful_hu=len(set(facts.notes) - set(facts.faults)),
        masks=tuple(c for c in MASK_COLUMNS if c in raw.cases.columns and (raw.cases[c] != "").any()),
        labels=_label_counts(raw, good),
    )


def _spreads(values: NDArray[np.float64] | NDArray[np.int64]) -> tuple[Spread, Spread, Spread]:
    """The spread along each axis of (n, 3) numbers; all 0 without any."""
    if not len(values):
        nothing = Spread(low=0, p10=0, median=0, p95=0, high=0)
        return (nothing, nothing, nothing)
    z, y, x = (Spread.of(values[:, axis]) for axis in range(3))
    return (z, y, x)


def _label_counts(raw: RawDataset, kept: NDArray[np.int64]) -> tuple[LabelCount, ...]:
    if not raw.info.labels:
        return ()
    table = raw.labels().iloc[kept]
    counts = []
    for label in raw.info.labels:
        known = table[label.name].dropna()
        values = range(2) if label.type == "binary" else range(len(label.classes))
        per_value = () if label.type == "continuous" else tuple(int((known == v).sum()) for v in values)
        counts.append(LabelCount(name=label.name, type=label.type, known=len(known), counts=per_value))
    return tuple(counts)
