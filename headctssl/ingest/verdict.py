"""Verdict: whether a scan goes into a dataset, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from headctssl.dataset.dicom_passes import AGAIN_MARK
from headctssl.dataset.intensity import noted_fault
from headctssl.dataset.slice_levels import LEVEL_MARK
from headctssl.dataset.straightening import HOLE_MARK
from headctssl.ingest.content import Content, examine
from headctssl.ingest.header_rules import MIN_EXTENT_MM, MIN_SLICES, body_part_of, few_slices, header_faults
from headctssl.settings import Settings
from headctssl.types import Volume

if TYPE_CHECKING:
    from headctssl.ingest.scan import SeriesFacts

__all__ = ["Appraisal", "ScanVerdict", "Status", "appraise", "judge", "judge_facts"]

Status = Literal["accept", "review", "reject"]

LITTLE_BRAIN_ML, ENOUGH_BRAIN_ML = 60.0, 200.0
"""Below the first no brain is seen (a trunk measures under 10); a newborn has 350."""

CUT_ABOVE = 0.15
"""Of the largest cross-section of the skull, at the top: about 6 mm of the inside of an adult's vertex are missing."""

CUT_BELOW = 0.5
"""At the bottom: 0.26 was measured in a scan that ends at the foramen magnum."""

CUT_SIDES_CM2 = 5.0
BRAIN_SHARE = 0.6
TRUNK_CM2 = 450.0
"""A head in its largest axial section has up to about 360 cm2, holder and ears included 400."""

TRUNK_LUNG_ML = 300.0
"""Blocks half of air and half of tissue measure up to 90 around a head."""

HEAD_AND_NECK_MM = 400.0
_CONTRAST_NOTE = "The image looks like one with contrast agent, which the header does not say."
_REVIEW_MARKS = (HOLE_MARK, "states no orientation", AGAIN_MARK, LEVEL_MARK)


class ScanVerdict(Settings):
    """What became of one scan of a source."""

    source: str = Field(description="Path relative to the source. Not for sharing: it may name a patient.")
    case_id: str = Field("", description="Case id in the dataset; empty for what could not be identified.")
    status: Status = Field(description="accept and review are in the dataset, reject is not.")
    reasons: tuple[str, ...] = Field((), description="Why the status is not accept.")
    notes: tuple[str, ...] = Field((), description="What was noticed or done while reading.")


@dataclass(frozen=True)
class Appraisal:
    """A verdict with its reasons and notes."""

    status: Status
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was seen and changes no verdict


def judge_facts(facts: SeriesFacts) -> tuple[Status, tuple[str, ...]]:
    """Judge a series by its headers alone, before its pixels are read.

    Args:
        facts: what the headers say.

    Returns:
        `reject` for what cannot be a head CT volume: other modalities, scouts, secondary captures, dose reports,
        renderings and maps, series over time, burnt-in annotation, 8-bit and colour pictures, fewer than 10
        slices; `review` where words of a description or a derivation leave it open, or another part of the body is
        named, which `judge` decides by the picture; else `accept`.
    """
    reject, review = header_faults(facts)
    if body_part_of(facts) == "body":
        review.append("The header names another part of the body.")
    return _status(reject, review)


def judge(volume: Volume, facts: SeriesFacts | None = None) -> tuple[Status, tuple[str, ...]]:
    """Judge a volume that could be read.

    Args:
        volume: as `image_io.read` returned it.
        facts: what the headers of its series say, where there are any.

    Returns:
        `reject` when the headers do, its values are not Hounsfield units, it has fewer than 10 slices or an extent
        under 60 mm, or it shows no head; `review` when it may not be in Hounsfield units, slices may be missing, its
        orientation is not stated, the head is cut off, or it is not certain that there is one; else `accept`.
        And the reasons.
    """
    found = appraise(volume, facts)
    return found.status, found.reasons


def appraise(volume: Volume, facts: SeriesFacts | None = None) -> Appraisal:
    """As `judge`, with notes that change no verdict (contrast agent, a header that names another part).

    Args:
        volume: as `image_io.read` returned it.
        facts: what the headers of its series say, where there are any.
    """
    reject, review = header_faults(facts) if facts is not None else ([], [])
    fault = noted_fault(volume.info.notes)
    if fault is not None:
        (reject if fault.kind == "not_hu" else review).append(fault.text)
    _judge_size(volume, reject)
    review += [note for note in volume.info.notes if any(mark in note for mark in _REVIEW_MARKS)]
    notes: list[str] = []
    if fault is None or fault.kind != "not_hu":
        part = body_part_of(facts) if facts is not None else ""
        content = examine(volume)
        _judge_content(content, part, reject, review)
        if facts is None or not facts.contrast:
            notes += [_CONTRAST_NOTE] if content.contrast_likely else []
        if content.brain_ml >= ENOUGH_BRAIN_ML and part == "body":
            notes.append("The header names another part of the body, but the scan shows a head.")
    status, reasons = _status(reject, review)
    return Appraisal(status, reasons, tuple(notes))


def _judge_size(volume: Volume, reject: list[str]) -> None:
    """Number of slices and extent."""
    slices = volume.info.original_shape[0] if volume.info.source_format == "dicom" else volume.hu.shape[0]
    if slices < MIN_SLICES:
        reject.append(few_slices(slices))
    extent = [n * s for n, s in zip(volume.hu.shape, volume.spacing_mm, strict=True)]
    if min(extent) < MIN_EXTENT_MM:
        size = " x ".join(f"{e:.0f}" for e in extent)
        reject.append(f"It measures {size} mm (z, y, x); a head needs at least {MIN_EXTENT_MM:.0f} mm along each axis.")


def _judge_content(content: Content, part: str, reject: list[str], review: list[str]) -> None:
    """What the picture shows. Only what is certainly no head is rejected."""
    trunk = content.lung_ml > TRUNK_LUNG_ML or content.trunk_cm2 > TRUNK_CM2
    if not content.head_found:
        reject.append("It shows no solid object of the size of a head.")
        return
    if content.brain_ml < LITTLE_BRAIN_ML:
        seen = "No skull around brain is seen"
        if trunk:
            size = f"a cross-section of {content.trunk_cm2:.0f} cm2, {content.lung_ml:.0f} ml of lung"
            reject.append(f"It shows a trunk, not a head: {seen.lower()}, but {size}.")
        elif part == "body":
            reject.append(f"{seen}, and the header names another part of the body.")
        else:
            review.append(f"{seen}: is it a head?")
        return
    if content.brain_ml < ENOUGH_BRAIN_ML:
        review.append(f"Only {content.brain_ml:.0f} ml of brain are seen.")
    if content.upside_down:
        review.append("The head seems to stand upside down: there is a neck above the brain.")
    for share, limit, name in (
        (content.cut_above, CUT_ABOVE, "vertex"),
        (content.cut_below, CUT_BELOW, "base of the skull"),
    ):
        if share > limit:
            review.append(
                f"The {name} is cut off: at the end of the scan the inside of the skull still has"
                f" {100 * share:.0f} % of its largest cross-section."
            )
    if content.cut_sides_cm2 > CUT_SIDES_CM2:
        review.append(
            f"The skull is cut off at the side: {content.cut_sides_cm2:.0f} cm2 of it lie on the border of the picture."
        )
    if content.brain_share < BRAIN_SHARE:
        review.append(f"Only {100 * content.brain_share:.0f} % of the inside of the skull have the values of brain.")
    if trunk and content.length_mm > HEAD_AND_NECK_MM:
        review.append(f"It shows more than head and neck: it is {content.length_mm:.0f} mm long.")


def _status(reject: list[str], review: list[str]) -> tuple[Status, tuple[str, ...]]:
    """The verdict of two lists of reasons, each reason once."""
    status: Status = "reject" if reject else "review" if review else "accept"
    return status, tuple(dict.fromkeys((*reject, *review)))
