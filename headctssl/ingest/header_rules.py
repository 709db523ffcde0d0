"""Header rules: what the headers of a series alone say against it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headctssl.ingest.scan import SeriesFacts

__all__ = ["MIN_EXTENT_MM", "MIN_SLICES", "body_part_of", "few_slices", "header_faults"]

MIN_SLICES = 10
"""A head CT of 10 mm slices, the thickest in use, has more."""

MIN_EXTENT_MM = 60.0
"""Less than this along any axis cannot show a head."""

_CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT image",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT image",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT image",
}
_OTHER_CLASSES = (
    # Start of the UID, what it is. DICOM PS3.4 annex B.5.
    ("1.2.840.10008.5.1.4.1.1.7", "a secondary capture: a picture of a screen or a scanned page"),
    ("1.2.840.10008.5.1.4.1.1.88", "a structured report, such as a dose report"),
    ("1.2.840.10008.5.1.4.1.1.104", "an encapsulated document"),
    ("1.2.840.10008.5.1.4.1.1.11", "a presentation state"),
    ("1.2.840.10008.5.1.4.1.1.66", "a segmentation or registration"),
    ("1.2.840.10008.5.1.4.1.1.481", "a radiotherapy object"),
    ("1.2.840.10008.5.1.4.1.1.4", "an MR image"),
    ("1.2.840.10008.5.1.4.1.1.128", "a PET image"),
)
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "JPEG, 8 bits",
    "1.2.840.10008.1.2.4.51": "JPEG, 12 bits",
    "1.2.840.10008.1.2.4.53": "JPEG",
    "1.2.840.10008.1.2.4.55": "JPEG",
    "1.2.840.10008.1.2.4.81": "JPEG-LS, near-lossless",
}
# JPEG 2000 (1.2.840.10008.1.2.4.91) may be lossless or not: its name does not tell, so nothing is said.

_SCOUT = r"SCOUT|LOCALI[SZ]ER|TOPOGRAM|SURVIEW|SCANOGRAM|SCANOGRAPH|SCOUTVIEW|PILOT"
# Not "dose" alone: low-dose scans are scans.
_DOSE = (
    r"DOSE ?(REPORT|INFO\w*|SUMMARY|RECORD|SHEET|PAGE)|PATIENT PROTOCOL|EXAM PROTOCOL|PROTOCOL REPORT|SUMMARY PAGE"
    r"|SCREEN ?(SAVE|SHOT|CAPTURE)"
)
# Not "3D" alone: thin slices for later 3D work are called so.
_RENDERED = r"VRT|VR|VOLUME RENDER\w*|RENDERED|SSD|SURFACE|MIP|MINIP|MAX IP|PROJECTION IMAGE"
_MAPS = r"CBF|CBV|MTT|TTP|TMAX|TTD|PERFUSION MAPS?|PERF MAPS?|IODINE|OVERLAY|SUBTRACT\w*|BONE ?REMOV\w*|BONELESS"
_DYNAMIC = r"PERFUSION|PERF|CTP|4D|DYNAMIC|BOLUS|TRACKING|(PRE)?MONITORING|TIMING|SMART ?PREP|SURE ?START|CARE ?BOLUS"
_REFORMATTED = r"MPR|REFORMAT\w*|MPVR|CSAMANIPULATED|REFORMATION\w*"
_BODY_WORDS = (
    r"CHEST|THORAX|LUNGS?|ABDOMEN|ABDOMINAL|ABD|PELVIS|CARDIAC|HEART|CORONARY|LIVER|KIDNEYS?|RENAL|AORTA|LEGS?|KNEE"
    r"|HIP|FOOT|ANKLE|SHOULDER|HAND|WRIST|TSPINE|LSPINE|LUMBAR|THORACIC|COLON|EXTREMITY|UROGRAM|ABDOMENPELVIS"
)
_HEAD_WORDS = (
    r"HEAD|BRAIN|SKULL|CRANI\w+|CEREBR\w+|NEURO|STROKE|CAPUT|SCHAEDEL|SCHADEL|KOPF|CRANE|TETE|ENCEPH\w+|CTB|NCCT|TBI"
)


def _has(words: str, *texts: str) -> bool:
    """Whether any text has one of the words, as a word by itself."""
    pattern = re.compile(rf"(?<![A-Z0-9])(?:{words})(?![A-Z0-9])")
    return any(pattern.search(text.upper().replace("_", " ")) for text in texts)


def body_part_of(facts: SeriesFacts) -> str:
    """What the headers call the scanned part: "head", "body" or "".

    The descriptions are asked first: BodyPartExamined is often left at what the scanner was last set to.

    Args:
        facts: of the series.
    """
    for texts in (
        (facts.series_description,),
        (facts.study_description, facts.protocol_name),
        (facts.body_part,),
    ):
        head, body = _has(_HEAD_WORDS, *texts), _has(_BODY_WORDS, *texts)
        if head != body:
            return "head" if head else "body"
    return ""


def few_slices(count: int) -> str:
    """The reason against a scan of too few slices.

    Args:
        count: slices it has.
    """
    return f"It has {count} slice{'' if count == 1 else 's'}; a head scan has at least {MIN_SLICES}."


def header_faults(facts: SeriesFacts) -> tuple[list[str], list[str]]:
    """What speaks for rejecting a series, and what for looking at it.

    Args:
        facts: what its headers say.

    Returns:
        Sentences for `reject` and for `review`. A word of a free text alone never rejects a stack of images.
    """
    reject: list[str] = []
    review: list[str] = []
    _judge_object(facts, reject)
    _judge_kind(facts, reject, review)
    _judge_repeats(facts, reject, review)
    _judge_pixels(facts, reject, review)
    _judge_extent(facts, reject, review)
    return reject, review


def _judge_object(facts: SeriesFacts, reject: list[str]) -> None:
    """Modality and storage class: whether this is a CT image at all."""
    if facts.modality and facts.modality.upper() != "CT":
        reject.append(f"The modality is {facts.modality}, not CT.")
    if facts.sop_class and facts.sop_class not in _CT_CLASSES:
        known = [(uid, what) for uid, what in _OTHER_CLASSES if f"{facts.sop_class}.".startswith(f"{uid}.")]
        what = known[0][1] if known else f"an object of class {facts.sop_class}, not a CT image"
        reject.append(f"It is {what}.")


def _judge_kind(facts: SeriesFacts, reject: list[str], review: list[str]) -> None:
    """Scouts, screen pictures, renderings, maps and reformats."""
    kind = tuple(part.upper() for part in facts.image_type)
    described = facts.series_description
    few = 0 < facts.num_positions < MIN_SLICES
    told_by_type = (
        (_SCOUT, "It is a scout (localiser, topogram), not a scan."),
        (_DOSE, "It is a dose report or a picture of a screen."),
        (_RENDERED, "It is a projection or a 3D picture (MIP, volume rendering) made from a scan."),
        (_MAPS, "It is a map or a subtraction computed from scans; its values are not Hounsfield units."),
    )
    for words, text in told_by_type:
        if _has(words, *kind) or (few and _has(words, described)):
            reject.append(text)
        elif _has(words, described):
            review.append(f"The series is called '{described}': is it a scan? ({text})")
    if "SECONDARY" in kind and _has(_REFORMATTED, *kind, described):
        review.append("It was reformatted (MPR) from another series; the original is better where there is one.")
    elif "DERIVED" in kind and not reject:
        review.append(f"It is marked as derived from other images ({chr(92).join(facts.image_type)}).")
    if facts.orientation in ("coronal", "sagittal"):
        review.append(f"Its slices are {facts.orientation}; head scans are acquired in axial slices.")
    if facts.burned_in:
        reject.append("The header says that annotation is burnt into the pixels; it may show the patient's name.")


def _judge_repeats(facts: SeriesFacts, reject: list[str], review: list[str]) -> None:
    """Perfusion, 4D, bolus tracking: one place imaged again and again."""
    repeated = facts.images_per_position > 2
    dynamic = _has(_DYNAMIC, facts.series_description)
    if facts.temporal or (dynamic and facts.images_per_position > 1):
        reject.append("It is a series over time (perfusion, 4D, bolus tracking), not one volume.")
    elif repeated:
        text = f"There are {facts.images_per_position} images at one position"
        if 0 < facts.num_positions < MIN_SLICES:
            reject.append(f"{text}: bolus tracking or perfusion, not a volume.")
        else:
            review.append(f"{text}: repeated scans or phases are not one volume.")
    elif dynamic:
        review.append(f"The series is called '{facts.series_description}': is it a plain scan?")


def _judge_pixels(facts: SeriesFacts, reject: list[str], review: list[str]) -> None:
    """Colour, 8 bits, lossy encodings."""
    if facts.photometric and not facts.photometric.upper().startswith("MONOCHROME"):
        reject.append(f"Its pixels are colours ({facts.photometric}), not Hounsfield units.")
    elif 0 < facts.bits <= 8:
        reject.append(f"Its pixels have {facts.bits} bits: a windowed picture, too coarse for Hounsfield units.")
    lossy = sorted({_LOSSY[uid] for uid in facts.transfer_syntaxes if uid in _LOSSY})
    if lossy:
        review.append(f"It was compressed with loss ({', '.join(lossy)}): values are off by some Hounsfield units.")


def _judge_extent(facts: SeriesFacts, reject: list[str], review: list[str]) -> None:
    """Number of slices and size."""
    if 0 < facts.num_positions < MIN_SLICES:
        reject.append(few_slices(facts.num_positions))
    if facts.pixel_spacing_mm is not None and facts.rows and facts.columns:
        height, width = facts.rows * facts.pixel_spacing_mm[0], facts.columns * facts.pixel_spacing_mm[1]
        if min(facts.pixel_spacing_mm) <= 0:
            spacing = " x ".join(f"{s:g}" for s in facts.pixel_spacing_mm)
            reject.append(f"Its header states a pixel spacing of {spacing} mm.")
        elif min(height, width) < MIN_EXTENT_MM:
            reject.append(
                f"Its slices measure {height:.0f} x {width:.0f} mm; a head needs at least {MIN_EXTENT_MM:.0f} mm."
            )
    if facts.median_gap_mm and facts.num_positions >= MIN_SLICES:
        length = facts.median_gap_mm * facts.num_positions
        if length < MIN_EXTENT_MM and facts.largest_gap_mm == facts.median_gap_mm:
            review.append(f"Its slices cover only {length:.0f} mm.")
