"""Scan: what a converter finds in a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from headctssl.contract import LabelSpec
from headctssl.dataset.label_map import MaskRule
from headctssl.ingest.verdict import ScanVerdict

__all__ = [
    "Found",
    "Ignored",
    "Orientation",
    "Scan",
    "SeriesFacts",
]

Orientation = Literal["", "axial", "coronal", "sagittal", "oblique"]


@dataclass(frozen=True)
class SeriesFacts:
    """What the headers of one DICOM series say. Nothing here is a name, an id or a place.

    A text is the most frequent one of the files, '' where none states it; a number is None there.
    Distances are along the slice normal, from ImagePositionPatient.
    """

    modality: str = ""
    sop_class: str = ""  # UID of the storage class
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    series_description: str = ""
    study_description: str = ""
    protocol_name: str = ""
    body_part: str = ""
    kvp: str = ""
    convolution_kernel: str = ""  # `Hr40s`; several values as the text of a list, `['Hr40s', '3']`
    slice_thickness_mm: float | None = None
    manufacturer: str = ""
    model: str = ""
    contrast: bool | None = None  # whether an agent is named; None = the headers do not say
    burned_in: bool | None = None  # BurnedInAnnotation; None = the headers do not say
    num_images: int = 0  # files
    num_positions: int = 0  # distinct heights along the normal
    images_per_position: int = 0  # at the position that has most; 0 = no positions
    frames: int = 0  # images altogether: a multi-frame file counts with each frame
    temporal: bool = False  # the headers speak of phases, time points or repeated acquisitions (4D, perfusion)
    orientation: Orientation = ""  # of the slices; oblique = more than 35 degrees from every plane
    median_gap_mm: float | None = None  # between neighbouring slices
    smallest_gap_mm: float | None = None
    largest_gap_mm: float | None = None
    tilt_deg: float = 0.0  # between the slice normal and the stacking direction
    rows: int = 0
    columns: int = 0
    pixel_spacing_mm: tuple[float, float] | None = None  # between rows, between columns
    transfer_syntaxes: tuple[str, ...] = ()  # UIDs
    photometric: str = ""
    bits: int = 0  # stored per pixel
    age: str = field(default="", repr=False)  # years, at most 90
    sex: str = field(default="", repr=False)  # M, F, O
    study_date: str = field(default="", repr=False)  # YYYYMMDD; for intervals only, never written


@dataclass(frozen=True)
class Scan:
    """One scan of a source, not read yet."""

    source: str  # path relative to the source, for the report
    path: Path  # the file, or the folder of the first slice
    identity: str  # the same for the same scan wherever it lies; hashed into the case id
    files: tuple[Path, ...] = ()  # DICOM slices; () = `path` is read
    subject: str = ""  # whose scan it is, in the clear; hashed; '' = its own subject
    session: str = ""  # which visit, in the clear; hashed
    identifying: tuple[str, ...] = field(default=(), repr=False)  # parts of names, numbers: taken out of kept texts
    columns: tuple[tuple[str, str], ...] = ()  # further cells of cases.csv
    facts: SeriesFacts | None = None  # None = the source has no DICOM headers
    masks: tuple[tuple[str, Path], ...] = ()  # (mask column of cases.csv, file on the grid of the scan)
    mask_rules: tuple[tuple[str, MaskRule], ...] = ()  # by mask column, where the file is to be written as 0 and 1


@dataclass(frozen=True)
class Ignored:
    """Something in a source that is no scan by its nature, or is a scan that is there already."""

    source: str
    reason: str


@dataclass(frozen=True)
class Found:
    """Everything a converter found."""

    scans: tuple[Scan, ...]
    ignored: tuple[Ignored, ...] = ()
    rejected: tuple[ScanVerdict, ...] = ()  # what should be a scan and cannot be
    labels: tuple[LabelSpec, ...] = ()
    segmentation_classes: tuple[tuple[str, int], ...] = ()  # name -> value in the masks of the column `segmentation`
    licence: str = ""  # of the data, for dataset.json
    reference: str = ""  # what to cite, for dataset.json
    remarks: tuple[str, ...] = ()
    others: tuple[Scan, ...] = ()  # image series whose headers say that they are no CT stack; counted in `ignored`
