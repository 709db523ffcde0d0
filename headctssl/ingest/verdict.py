"""Verdict: whether a scan goes into a dataset, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from headctssl.dataset.intensity import noted_fault
from headctssl.errors import DataError
from headctssl.ingest.header_rules import MIN_EXTENT_MM, MIN_SLICES, header_faults
from headctssl.settings import Settings
from headctssl.types import Volume
from headctssl.volume.head import find_head

if TYPE_CHECKING:
    from headctssl.ingest.scan import SeriesFacts

__all__ = ["IngestReport", "ScanVerdict", "Status", "judge", "judge_facts"]

Status = Literal["accept", "review", "reject"]

_REVIEW_MARKS = ("may be missing", "states no orientation")


class ScanVerdict(Settings):
    """What became of one scan of a source."""

    source: str = Field(description="Path relative to the source. Not for sharing: it may name a patient.")
    case_id: str = Field("", description="Case id in the dataset; empty for what could not be identified.")
    status: Status = Field(description="accept and review are in the dataset, reject is not.")
    reasons: tuple[str, ...] = Field((), description="Why the status is not accept.")
    notes: tuple[str, ...] = Field((), description="What was noticed or done while reading.")


class IngestReport(Settings):
    """ingest_report.json: the last verdict on every scan that was offered to the dataset."""

    format: Literal[1] = 1
    scans: tuple[ScanVerdict, ...] = ()


def judge_facts(facts: SeriesFacts) -> tuple[Status, tuple[str, ...]]:
    """Judge a series by its headers alone, before its pixels are read.

    Args:
        facts: what the headers say.

    Returns:
        `reject` for what cannot be a head CT volume: other modalities, scouts, secondary captures, dose reports,
        renderings and maps, series over time, burnt-in annotation, 8-bit and colour pictures, fewer than 10
        slices; `review` where words of a description or a derivation leave it open; else `accept`.
    """
    return _status(*header_faults(facts))


def judge(volume: Volume, facts: SeriesFacts | None = None) -> tuple[Status, tuple[str, ...]]:
    """Judge a volume that could be read.

    Args:
        volume: as `image_io.read` returned it.
        facts: what the headers of its series say, where there are any.

    Returns:
        `reject` when its values are not Hounsfield units, it has fewer than 10 slices, or an extent
        under 60 mm; `review` when it may not be in Hounsfield units, slices may be missing, its
        orientation is not stated, or it shows no head-sized object; else `accept`. And the reasons.
    """
    reject, review = header_faults(facts) if facts is not None else ([], [])
    fault = noted_fault(volume.info.notes)
    if fault is not None:
        (reject if fault.kind == "not_hu" else review).append(fault.text)
    slices = volume.info.original_shape[0] if volume.info.source_format == "dicom" else volume.hu.shape[0]
    if slices < MIN_SLICES:
        reject.append(f"It has {slices} slices; a head scan has at least {MIN_SLICES}.")
    extent = [n * s for n, s in zip(volume.hu.shape, volume.spacing_mm, strict=True)]
    if min(extent) < MIN_EXTENT_MM:
        size = " x ".join(f"{e:.0f}" for e in extent)
        reject.append(f"It measures {size} mm (z, y, x); a head needs at least {MIN_EXTENT_MM:.0f} mm along each axis.")
    review += [note for note in volume.info.notes if any(mark in note for mark in _REVIEW_MARKS)]
    if not reject:
        try:
            find_head(volume.hu, volume.spacing_mm)
        except DataError as error:
            review.append(f"{error.what} Got: {error.got}.")
    return _status(reject, review)


def _status(reject: list[str], review: list[str]) -> tuple[Status, tuple[str, ...]]:
    """The verdict of two lists of reasons, each reason once."""
    status: Status = "reject" if reject else "review" if review else "accept"
    return status, tuple(dict.fromkeys((*reject, *review)))
