"""DICOM slices: what the header of a file says of its picture, or of each frame of a multi-frame file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.tag import BaseTag

from headctssl.dataset.dicom_header import Header, HeaderError, open_header, tags_of

__all__ = [
    "CT_IMAGE",
    "ENHANCED_CT",
    "Common",
    "Slice",
    "kernel_text",
    "number_text",
    "rescaling",
    "slices_of",
    "vector",
]

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
"""Storage class of CT slices."""

ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Storage classes of multi-frame CT: Enhanced CT Image, Legacy Converted Enhanced CT Image."""

_TAGS = tags_of(
    """SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate AcquisitionTime Modality Manufacturer
    StudyDescription SeriesDescription ManufacturerModelName PatientName PatientID PatientSex PatientAge
    ContrastBolusAgent BodyPartExamined SliceThickness KVP ProtocolName ConvolutionKernel StudyInstanceUID
    SeriesInstanceUID SeriesNumber AcquisitionNumber ImagePositionPatient ImageOrientationPatient
    TemporalPositionIdentifier NumberOfTemporalPositions SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows
    Columns PixelSpacing BitsStored PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit BurnedInAnnotation
    RescaleIntercept RescaleSlope EchoNumbers AccessionNumber PatientBirthDate ReferringPhysicianName
    PerformingPhysicianName OperatorsName InstitutionName"""
)
_OF_SLICE = ("SOPInstanceUID", "ImagePositionPatient", "AcquisitionTime", "AcquisitionNumber")
_OF_SERIES = tuple(tag for name, tag in _TAGS.items() if name not in (*_OF_SLICE, "TemporalPositionIdentifier"))
_STAFF = ("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName")
_NUMBERS = ("PatientID", "AccessionNumber", "PatientBirthDate", "InstitutionName")
_COMMON_STEMS = re.compile(
    r"hospi|h[oô]pita|ospedal|spital|krankenh|klini|clini|univers|medi[cz]|m[eé]dic|radiolog|r[oö]ntgen|diagnos|imag"
    r"|bildgeb|health|gesundheit|institut|depart|abteilung|neuro|trauma|surg|chirurg|cardio|kardio|onco|onko|p[aä]?ediat"
    r"|emergenc|tomogra|foundation|stiftung|associat|communit|academ|akadem"
)
_COMMON_WORDS = re.compile(
    r"abdomen|angio|army|axial|bone|brain|cancer|care|central|cent(er|re|ro)|charity|chest|children|city|college"
    r"|comput(ed|er)|contrast|county|detail|district|east|from|general|groups?|gruppe|head|heart|international|kinder"
    r"|lung|main|memorial|military|mobile|national|neck|north|outpatient|partners|practice|praxis|private|public"
    r"|regional|research|room|routine|royal|saint|santa|sant[eé]|scan(ner)?|school|sciences?|services?|site|skull|smooth"
    r"|soft|south|spine|standard|state|stroke|systems?|thin|trust|unit|urgent|veterans|ward|west|with(out)?|women|zentrum"
)
"""Words that many institutions have in their names, or that descriptions and kernels are made of: they tell nobody."""

_TAG_LIST = tuple(_TAGS.values())


class Common(NamedTuple):
    """What many slices of a series share; slices with the same values hold one object."""

    syntax: str  # UID of the transfer syntax
    sop_class: str
    modality: str
    study_uid: str
    series_uid: str
    patient: str  # PatientID
    identifying: tuple[str, ...]  # parts of names, numbers, the day of birth: what no text that is kept may hold
    age: str  # as written
    sex: str
    study_date: str
    image_type: tuple[str, ...]
    series_number: int | None
    study_description: str
    series_description: str
    protocol_name: str
    body_part: str
    kvp: str
    kernel: str
    echo: str
    thickness_mm: float | None
    manufacturer: str
    model: str
    contrast: str  # the agent
    burned_in: str
    temporal_positions: int  # NumberOfTemporalPositions
    rows: int
    columns: int
    samples: int
    photometric: str
    bits: int
    signed: bool
    padding: tuple[int, int] | None  # lowest and highest stored value of padding
    orientation: tuple[float, ...]  # ImageOrientationPatient, () where absent
    spacing_mm: tuple[float, ...]  # PixelSpacing: between rows, between columns; () where absent
    slope: float | None
    intercept: float | None
    frames: int  # NumberOfFrames
    fault: str  # of the values above that geometry needs; '' = none


class Slice(NamedTuple):
    """One picture: a file, or a frame of a multi-frame file."""

    file: str
    frame: int | None  # counted from 0; None = the file holds one picture
    instance: str  # SOP instance UID
    time: str  # what tells repeated acquisitions apart
    acquisition: int | None  # AcquisitionNumber, None where it is not stated
    position: tuple[float, ...]  # ImagePositionPatient (L, P, S) mm, () where absent
    fault: str
    common: Common

    @property
    def name(self) -> str:
        """The file, and the frame counted from 1."""
        name = Path(self.file).name
        return name if self.frame is None else f"frame {self.frame + 1} of {name}"


Cache = dict[tuple[object, ...], Common]
"""What series share by the bytes it was decoded from: a series is decoded once, not slice by slice."""


def slices_of(file: Path | str, cache: Cache | None = None) -> list[Slice]:
    """The pictures of a DICOM file, from its header; several for a multi-frame CT.

    Args:
        file: the file.
        cache: kept by the caller over many files; filled here.

    Raises:
        HeaderError: it is not DICOM, damaged, or a multi-frame file whose frames are not described.
    """
    header = open_header(file, _TAG_LIST)
    key = (header.syntax, *(header.raw(tag) for tag in _OF_SERIES))
    common = cache.get(key) if cache is not None else None
    if common is None:
        common = _common(header)
        if cache is not None:
            cache[key] = common
    one = _slice(str(file), header, common)
    if one.common.sop_class not in ENHANCED_CT:
        return [one]
    # Not at the top: most trees hold no such file.
    from headctssl.dataset.dicom_frames import frames_of

    return frames_of(one)


def kernel_text(values: tuple[str, ...]) -> str:
    """A convolution kernel as text: `Hr40s`, or of several values the text of a list, `['Hr40s', '3']`."""
    return values[0] if len(values) == 1 else repr(list(values)) if values else ""


def _slice(file: str, header: Header, common: Common) -> Slice:
    position, fault = vector(header, _TAGS, "ImagePositionPatient", 3)
    acquisition = (header.text(_TAGS[name]) for name in ("TemporalPositionIdentifier", "AcquisitionNumber"))
    return Slice(
        file=file,
        frame=None,
        instance=header.text(_TAGS["SOPInstanceUID"]),
        time="/".join((*acquisition, header.text(_TAGS["AcquisitionTime"]))),
        acquisition=_whole(header.number(_TAGS["AcquisitionNumber"])),
        position=position,
        fault=fault,
        common=common,
    )


def _common(header: Header) -> Common:
    orientation, fault = vector(header, _TAGS, "ImageOrientationPatient", 6)
    spacing, other = vector(header, _TAGS, "PixelSpacing", 2)
    (slope, intercept), odd = rescaling(header, _TAGS)
    signed = bool(header.integer(_TAGS["PixelRepresentation"]))
    text, number = header.text, header.number
    sop_class = text(_TAGS["SOPClassUID"])
    return Common(
        syntax=header.syntax,
        sop_class=sop_class,
        modality=text(_TAGS["Modality"]) or ("CT" if sop_class in (CT_IMAGE, *ENHANCED_CT) else ""),
        study_uid=text(_TAGS["StudyInstanceUID"]),
        series_uid=text(_TAGS["SeriesInstanceUID"]),
        patient=text(_TAGS["PatientID"]),
        identifying=_identifying(header),
        age=text(_TAGS["PatientAge"]),
        sex=text(_TAGS["PatientSex"]),
        study_date=text(_TAGS["StudyDate"]),
        image_type=tuple(part.upper() for part in header.texts(_TAGS["ImageType"])),
        series_number=_whole(number(_TAGS["SeriesNumber"])),
        study_description=text(_TAGS["StudyDescription"]),
        series_description=text(_TAGS["SeriesDescription"]),
        protocol_name=text(_TAGS["ProtocolName"]),
        body_part=text(_TAGS["BodyPartExamined"]),
        kvp=number_text(number(_TAGS["KVP"])),
        kernel=kernel_text(header.texts(_TAGS["ConvolutionKernel"])),
        echo=text(_TAGS["EchoNumbers"]),
        thickness_mm=number(_TAGS["SliceThickness"]),
        manufacturer=text(_TAGS["Manufacturer"]),
        model=text(_TAGS["ManufacturerModelName"]),
        contrast=text(_TAGS["ContrastBolusAgent"]),
        burned_in=text(_TAGS["BurnedInAnnotation"]).upper(),
        temporal_positions=_whole(number(_TAGS["NumberOfTemporalPositions"])) or 0,
        rows=header.integer(_TAGS["Rows"]) or 0,
        columns=header.integer(_TAGS["Columns"]) or 0,
        samples=header.integer(_TAGS["SamplesPerPixel"]) or 1,
        photometric=text(_TAGS["PhotometricInterpretation"]).upper(),
        bits=header.integer(_TAGS["BitsStored"]) or 0,
        signed=signed,
        padding=_padding(header, signed=signed),
        orientation=orientation,
        spacing_mm=spacing,
        slope=slope,
        intercept=intercept,
        frames=_whole(number(_TAGS["NumberOfFrames"])) or 1,
        fault=fault or other or odd,
    )


def vector(header: Header, tags: Mapping[str, BaseTag], name: str, count: int) -> tuple[tuple[float, ...], str]:
    """The numbers of a tag that the geometry needs, or () and what is wrong."""
    try:
        found = header.numbers(tags[name], name, count)
    except HeaderError as error:
        return (), str(error)
    if name == "ImageOrientationPatient" and not any(np.cross(found[:3], found[3:])):
        return (), f"{name} {list(found)}, where two directions at right angles belong"
    return found, ""


def _identifying(header: Header) -> tuple[str, ...]:
    staff = [word for name in _STAFF for word in _words(header.text(_TAGS[name])) if len(word) > 2]  # not "Dr", "CT"
    numbers = [header.text(_TAGS[name]) for name in _NUMBERS]
    place = _place_words(header.text(_TAGS["InstitutionName"]))
    words = (*_words(header.text(_TAGS["PatientName"])), *staff, *numbers, *place)
    return tuple(sorted({word for word in words if len(word) > 1}))


def _place_words(name: str) -> list[str]:
    """The words of an institution by which it can be told from others: longer than 3 letters, and not common."""
    words = re.findall(r"[^\W\d_]{4,}", name)
    return [
        word for word in words if not _COMMON_WORDS.fullmatch(word.lower()) and not _COMMON_STEMS.match(word.lower())
    ]


def _words(name: str) -> list[str]:
    return re.split(r"[\s^=,\\]+", name)


def rescaling(header: Header, tags: Mapping[str, BaseTag]) -> tuple[tuple[float | None, float | None], str]:
    """Slope and intercept (None where absent), and what is wrong with them."""
    found: list[float | None] = []
    for name in ("RescaleSlope", "RescaleIntercept"):
        values, fault = vector(header, tags, name, 1)
        if fault and header.texts(tags[name]):
            return (None, None), fault
        found.append(values[0] if values else None)
    return (found[0], found[1]), "RescaleSlope of 0" if found[0] == 0 else ""


def _whole(number: float | None) -> int | None:
    return int(number) if number is not None and number.is_integer() else None


def number_text(number: float | None) -> str:
    """A number in its shortest form, '' for none."""
    return "" if number is None else f"{number:g}"


def _padding(header: Header, *, signed: bool) -> tuple[int, int] | None:
    """The stored values that mean no picture here. Their sign follows the pixels, whatever the file's VR says."""
    value = header.integer(_TAGS["PixelPaddingValue"], signed=signed)
    if value is None:
        return None
    limit = header.integer(_TAGS["PixelPaddingRangeLimit"], signed=signed)
    return (value, value) if limit is None else (min(value, limit), max(value, limit))
