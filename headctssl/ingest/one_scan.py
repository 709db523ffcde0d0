"""One scan: read, judged, written with its masks; what a worker process does."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from headctssl import __version__
from headctssl.contract import SegmentationClass
from headctssl.dataset.image_io import read, read_series, write_nifti
from headctssl.dataset.masks import read_mask
from headctssl.dataset.where import parse_where
from headctssl.errors import DataError, HeadCTSSLError, ImageReadError
from headctssl.ingest.candidate import DEVICE_COLUMNS, Candidate, device_text, identifying_words
from headctssl.ingest.privacy import scrub, without_paths
from headctssl.ingest.report import RecordStatus, ScanRecord, Stage, hu_peaks
from headctssl.ingest.room import needs_room
from headctssl.ingest.scan import Scan
from headctssl.ingest.thumbnail import THUMBNAILS, write_thumbnail
from headctssl.ingest.verdict import Status, appraise
from headctssl.types import Volume

__all__ = ["Job", "Outcome", "Reading", "convert_scan", "failed", "record_of", "source_state", "told_error"]


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    keep_detail: bool = False
    fill_gaps: bool = False
    repair_intensity: bool = False

    def text(self) -> str:
        """Version and flags, by which an earlier rejection is known to hold still."""
        flags = [name for name in ("keep_detail", "fill_gaps", "repair_intensity") if getattr(self, name)]
        return " ".join([__version__, *flags])


@dataclass(frozen=True)
class Job:
    """One scan to read, judge and write; crosses to a worker process."""

    candidate: Candidate
    reading: Reading
    folder: Path | None  # the dataset; None in a dry run
    where: str = ""  # a condition that needs the image, '' = none
    note: str = ""  # the rule that let it pass
    classes: tuple[SegmentationClass, ...] = ()  # of the dataset, for its segmentations


@dataclass(frozen=True)
class Outcome:
    """What became of a scan."""

    status: RecordStatus
    reasons: tuple[str, ...]  # in full, for the user's screen
    notes: tuple[str, ...]
    record: ScanRecord  # for the report
    cells: dict[str, str]  # of cases.csv; {} unless it is in the dataset


def source_state(candidate: Candidate) -> str:
    """Number of files and bytes of a scan and its masks, by which a changed source is noticed."""
    scan = candidate.scan
    listed = scan.files or (
        (scan.path,) if scan.path.is_file() else tuple(p for p in scan.path.glob("*") if p.is_file())
    )
    files = [*listed, *(path for _, path in scan.masks)]
    return f"{len(files)} files, {sum(os.stat(file).st_size for file in files if file.exists())} bytes"


def record_of(
    candidate: Candidate,
    status: RecordStatus,
    stage: Stage,
    reasons: Iterable[str] = (),
    notes: Iterable[str] = (),
    *,
    read_with: str = "",
) -> ScanRecord:
    """What the report says of a scan, without names, paths and dates.

    Args:
        candidate: the scan.
        status: what became of it.
        stage: where that was decided.
        reasons: why it is not accepted.
        notes: what was noticed.
        read_with: see `Reading.text`; '' where the outcome says nothing of the scan, such as a full disk.
    """
    scan, cells = candidate.scan, candidate.cells
    words = identifying_words(scan)

    descriptions = _descriptions(scan)

    def clean(text: str) -> str:
        for description in descriptions:  # by itself, for its numbers are no measures
            text = text.replace(description, scrub(description, words))
        return scrub(without_paths(text, _paths(scan), (scan.source,)), words, long_numbers=False)

    return ScanRecord(
        case_id=candidate.case_id,
        status=status,
        stage=stage,
        reasons=tuple(clean(text) for text in reasons),
        notes=tuple(clean(text) for text in notes),
        subject_id=cells["subject_id"],
        session_id=cells["session_id"],
        model=device_text("model", scan.facts.model, scan) if scan.facts else cells.get("model", ""),
        source_state=source_state(candidate) if read_with else "",
        read_with=read_with,
        **_shown(cells),
    )


def _paths(scan: Scan) -> list[Path]:
    """Every file and folder that a sentence on a scan may name."""
    inside = () if scan.files or not scan.path.is_dir() else scan.path.iterdir()
    return [scan.path, *scan.files, *inside, *(path for _, path in scan.masks)]


def _descriptions(scan: Scan) -> list[str]:
    """Free texts of the headers that a reason may quote, the longest first."""
    facts = scan.facts
    texts = [text for name, text in scan.columns if name == "study_description"]
    texts += [facts.study_description, facts.series_description, facts.protocol_name] if facts is not None else []
    return sorted({" ".join(text.split()) for text in texts} - {""}, key=len, reverse=True)


_SHOWN = ("slice_thickness_mm", "kvp", "convolution_kernel", "manufacturer", "contrast", "age", "sex")


def _shown(cells: dict[str, str]) -> dict[str, str]:
    """The cells that the report page draws distributions of."""
    return {name: cells[name] for name in _SHOWN if name in cells}


def convert_scan(job: Job) -> Outcome:
    """Read, judge and write one scan (in a worker process). The image is written last, after its masks.

    Raises:
        ImageReadError: the image or a mask cannot be read, or a mask is on another grid.
        NoRoomError: the disk is full.
    """
    candidate = job.candidate
    scan, how = candidate.scan, job.reading
    options = {"keep_detail": how.keep_detail, "fill_gaps": how.fill_gaps, "repair_intensity": how.repair_intensity}
    volume = read_series(scan.files, **options) if scan.files else read(scan.path, **options)
    verdict = appraise(volume, scan.facts)
    status, reasons = verdict.status, verdict.reasons
    read_notes = (note for note in volume.info.notes if note not in reasons)
    notes = (*((job.note,) if job.note else ()), *read_notes, *verdict.notes)
    cells = _cells(candidate, volume, status)
    decided: RecordStatus = status
    stage: Stage = "image"
    if status != "reject" and job.where and not (where := parse_where(job.where)).matches(cells):
        decided, stage, reasons = "left_out", "where", (where.told(cells),)
    if decided in ("accept", "review"):
        masks = _masks(job, volume)
        cells.update({column: f"masks/{column}/{candidate.case_id}.nii.gz" for column in masks})
        if job.folder is not None:
            with needs_room(job.folder):
                for column, mask in masks.items():
                    write_nifti(job.folder / cells[column], mask)
                write_nifti(job.folder / candidate.image, volume)
    seen = Candidate(scan, candidate.case_id, cells)
    record = record_of(seen, decided, stage, reasons, notes, read_with=how.text()).model_copy(
        update={
            "shape": tuple(volume.hu.shape),
            "spacing_mm": tuple(round(s, 4) for s in volume.spacing_mm),
            "original_spacing_mm": tuple(round(s, 4) for s in volume.info.original_spacing_mm),
            "tilt_deg": round(volume.info.tilt_deg, 2),
            "displacement_mm": round(volume.info.displacement_mm, 2),
            "straightened": volume.info.straightened,
            "hu_peaks": hu_peaks(volume),
            "thumbnail": _thumbnail(job, volume, decided),
        }
    )
    kept = decided in ("accept", "review")
    return Outcome(decided, reasons, notes, record, cells if kept else {})


def _cells(candidate: Candidate, volume: Volume, status: Status) -> dict[str, str]:
    """The row of cases.csv: what reading found, then what headers and converter said before."""
    read = {"quality": "review" if status == "review" else "", **dict(volume.info.metadata)}
    read.update({name: device_text(name, read[name], candidate.scan) for name in DEVICE_COLUMNS if name in read})
    found = {**read, **{name: text for name, text in candidate.cells.items() if text or not read.get(name)}}
    if "gantry_tilt_deg" not in dict(candidate.scan.columns):  # measured on the slices beats what a header says
        found["gantry_tilt_deg"] = f"{volume.info.tilt_deg:g}"
    return found


def _masks(job: Job, volume: Volume) -> dict[str, Volume]:
    """The masks of a scan on the grid of its image, by column.

    Raises:
        ImageReadError: a mask cannot be read, lies on another grid, or has values that it cannot have.
    """
    scan, how = job.candidate.scan, job.reading
    rules = dict(scan.mask_rules)
    found: dict[str, Volume] = {}
    for column, path in scan.masks:
        rule = rules.get(column)
        options = {"keep_detail": how.keep_detail, "fill_gaps": how.fill_gaps}
        try:
            mask = read_mask(column, path, volume, () if rule else job.classes, rule=rule, **options)
        except DataError as error:  # as of an image: the verdict on the scan holds until its files change
            raise ImageReadError(error.what, got=error.got, expected=error.expected, do=error.do) from None
        found[column] = Volume(mask.values, volume.affine, volume.info)
    return found


def _thumbnail(job: Job, volume: Volume, status: RecordStatus) -> str:
    """Write the picture of a scan that was not accepted; '' for others."""
    if job.folder is None or status not in ("review", "reject"):
        return ""
    name = f"{THUMBNAILS}/{job.candidate.case_id}.png"
    with needs_room(job.folder):
        write_thumbnail(job.folder / name, volume)
    return name


def failed(job: Job, error: HeadCTSSLError) -> Outcome:
    """The outcome of a scan that could not be read."""
    told = told_error(error)
    reasons = (told.replace(str(job.candidate.scan.path), job.candidate.scan.source),)
    # Of a file that is no image the verdict holds; a full disk or a dead worker says nothing of the scan.
    read_with = job.reading.text() if isinstance(error, ImageReadError) else ""
    record = record_of(job.candidate, "reject", "image", (told,), read_with=read_with)
    return Outcome("reject", reasons, (), record, {})


def told_error(error: HeadCTSSLError) -> str:
    """An error in one line."""
    parts = [error.what, f"Got: {error.got}." if error.got else "", f"Expected: {error.expected}."]
    return " ".join(part for part in [*parts, error.do or ""] if part)
