"""Faulty series: DICOM series that a few options make, clean and faulty, each with what must become of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from battery_inputs import ACCEPT, HEAD_SPACING, NO_PLACE, NUM_SLICES, Image, Input, Verdict, write_series
from dicom_writer import tilted_slices
from pydicom.uid import generate_uid

__all__ = ["SERIES_INPUTS"]


def _series(*, comes_out: Callable[[Image], Image] | None = None, **options: Any) -> Callable[[Path, Image], Image]:
    """An input of one series, written with options."""

    def make(folder: Path, hu: Image) -> Image:
        write_series(folder, hu, **options)
        return hu if comes_out is None else comes_out(hu)

    return make


def _clean(name: str, told: str = "", **options: Any) -> Input:
    return Input(name, _series(**options), (("accept", told),), clean=True)


def _faulty(name: str, verdict: Verdict, told: str, **options: Any) -> Input:
    return Input(name, _series(**options), ((verdict, told),))


def _other(name: str, counted: str, told: str, **options: Any) -> Input:
    return Input(name, _series(**options), (("reject", told),), counted=counted)


def _tagged(name: str, verdict: Verdict, told: str, **tags: Any) -> Input:
    return _faulty(name, verdict, told, tags=tags)


_CLEAN = [
    _clean("plain"),
    _clean("names without suffix, out of order", names="none", shuffle=True),
    _clean("InstanceNumbers reversed", instance_numbers="reversed"),
    _clean("InstanceNumbers shuffled", instance_numbers="shuffled"),
    _clean("InstanceNumbers all the same", instance_numbers="same"),
    _clean("InstanceNumbers missing", instance_numbers="none"),
    _clean("implicit without preamble", preamble=False),
    _clean("big endian", syntax="big"),
    _clean("deflated", syntax="deflated"),
    _clean("RLE", syntax="rle"),
    _clean("JPEG-LS", syntax="jpegls"),
    _clean("enhanced, frames out of order", enhanced="enhanced", shuffle_frames=True),
    _clean("legacy converted, groups shared", enhanced="legacy", shared=True),
    _clean("another rescaling on every slice", rescale=[(1.0, -1024.0 - k) for k in range(NUM_SLICES)]),
    _clean("MONOCHROME1 with rescaling", photometric="MONOCHROME1"),
    _clean("12 bits stored", bits=12),
    _clean("signed without intercept", signed=True, rescale=(1.0, 0.0)),
    _clean("SliceLocation and SpacingBetweenSlices wrong", tags={"SliceLocation": "7", "SpacingBetweenSlices": "-1"}),
    _clean("GantryDetectorTilt of a straight scan", tags={"GantryDetectorTilt": "20"}),
    _clean("PatientID missing", tags={"PatientID": None, "StudyDescription": "CT HEAD Leakmann"}),
    _clean("PatientID of blanks", tags={"PatientID": "  ", "StudyDescription": "Änne 29FEB2020"}),
    _clean("StudyInstanceUID missing", tags={"StudyInstanceUID": None}),
    _clean("SeriesInstanceUID missing", tags={"SeriesInstanceUID": None}),
    _clean("one SOPInstanceUID on all slices", tags={"SOPInstanceUID": generate_uid()}),
    _clean("dates and ages that are none", tags={"StudyDate": "00000000", "PatientAge": "LOT", "PatientSex": "?"}),
    _clean("kilovolts of two tubes", tags={"KVP": None, "ConvolutionKernel": None, "Manufacturer": ""}),
    _clean("contrast agent in the header", tags={"ContrastBolusAgent": "Omnipaque for Leakmann"}),
    _clean("body part left at ABDOMEN", tags={"BodyPartExamined": "ABDOMEN"}),
    _clean("name too long " + "Leakmann " * 24),
    _clean("Leakmann, Änne (geb. 日本) = 'x' \"y\";#\n%d"),
    Input(
        "prone",
        _series(direction=(-1, 0, 0, 0, -1, 0), comes_out=lambda hu: hu[:, ::-1, ::-1]),
        ACCEPT,
        clean=True,
    ),
]


def _tilted(tilt: int, sign: int | None) -> Input:
    def make(folder: Path, hu: Image) -> None:
        write_series(folder, tilted_slices(hu, HEAD_SPACING, tilt), tilt_deg=tilt, tag_sign=sign)

    return Input(f"tilt {tilt:+d} tag {sign}", make, (("accept", "tilt 15.0 degrees"),))


_TILTS = [_tilted(tilt, sign) for tilt, sign in ((15, 1), (15, -1), (-15, 1), (-15, -1), (15, None))]
_GEOMETRY = [
    _faulty("a slice missing", "review", "1 slice(s) may be missing", drop=(7,)),
    _faulty("three slices missing", "review", "3 slice(s) may be missing", drop=(5, 6, 7)),
    _faulty("tilted and a slice missing", "review", "1 slice(s) may be missing", drop=(7,), tilt_deg=10),
    _faulty(
        "two thicknesses",
        "accept",
        "Several slice distances",
        heights_mm=[*np.arange(9) * 10.0, *(80.0 + np.arange(1, 10) * 8.0)],
    ),
    _faulty(
        "base and vertex of two acquisitions that overlap",
        "review",
        "Acquisitions 1 and 2 show the same part of the body",
        heights_mm=[*np.arange(10) * 10.0, *(75.0 + np.arange(8) * 10.0)],
        slice_tags={k: {"AcquisitionNumber": 1 + (k > 9)} for k in range(NUM_SLICES)},
    ),
    _faulty("one slice 100 km away", "reject", "farther apart", heights_mm=[*np.arange(17) * 10.0, 1e8]),
    _faulty(
        "slices at one position that differ", "reject", "several images at one", duplicate=(4,), duplicate_differs=True
    ),
    _faulty("all slices at one position", "reject", "18 images at one position", heights_mm=[0.0] * NUM_SLICES),
    _tagged("PixelSpacing missing", "reject", "without PixelSpacing", PixelSpacing=None),
    _tagged("PixelSpacing zero", "reject", "pixel spacing of 0 x 0 mm", PixelSpacing=["0", "0"]),
    _tagged("PixelSpacing negative", "reject", "pixel spacing of -6 x 6 mm", PixelSpacing=["-6", "6"]),
    _tagged("PixelSpacing of microns", "reject", "needs at least 60 mm", PixelSpacing=["0.006", "0.006"]),
    _tagged("ImageOrientationPatient missing", "reject", "ImageOrientationPatient", ImageOrientationPatient=None),
    _tagged("ImagePositionPatient missing", "reject", "ImagePositionPatient", ImagePositionPatient=None),
    _tagged(
        "orientation not at right angles",
        "reject",
        "perpendicular",
        ImageOrientationPatient=["1", "0", "0", "0.5", "0.8660254", "0"],
    ),
    _tagged("orientation of zeros", "reject", "two directions", ImageOrientationPatient=["0"] * 6),
    _faulty("coronal reformat", "review", "coronal", plane="coronal"),
    _faulty("too few slices", "reject", "at least 10", drop=tuple(range(9, 18))),
    _faulty("rows that lie", "reject", "65535 rows", tags={"Rows": 65535, "Columns": 65535}),
    _faulty("rows that lie a little", "reject", "pixels need", tags={"Rows": 80}),
    _faulty("frames in plain CT slices", "reject", "no Enhanced CT", tags={"NumberOfFrames": "3"}),
]
_INTENSITY = [
    _faulty("intercept forgotten", "reject", "HU + 1024", tags={"RescaleIntercept": "0"}),
    _faulty("intercept twice", "reject", "HU - 1024", tags={"RescaleIntercept": "-2048"}),
    _faulty("12 bits wrapped", "reject", "12-bit", bits=12, tags={"PixelRepresentation": 1}),
    _faulty("16 bits wrapped", "reject", "16 bits", signed=True, rescale=(1.0, 0.0), tags={"PixelRepresentation": 0}),
    _faulty("slope zero", "reject", "RescaleSlope of 0", tags={"RescaleSlope": "0"}),
    _faulty("slope no number", "reject", "RescaleSlope", tags={"RescaleSlope": "1e999"}),
    _faulty(
        "light and dark exchanged",
        "reject",
        "light and dark",
        rescale=(-1.0, 3071.0),
        tags={"RescaleSlope": "1", "RescaleIntercept": "-3071"},
    ),
    _faulty("intercept lost on one slice", "review", "neighbours", slice_tags={9: {"RescaleIntercept": "0"}}),
    _faulty("slope wrong on one slice", "review", "neighbours", slice_tags={9: {"RescaleSlope": "2"}}),
]
_KINDS = [
    _other("scout", "localisers", "scout", tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, drop=range(1, 18)),
    _other("secondary capture", "secondary", "screen", tags={"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", **NO_PLACE}),
    _other("MR", "modality MR", "MR", tags={"Modality": "MR"}),
    _other("PET", "modality PT", "PT", tags={"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}),
    _tagged("burnt-in name", "reject", "burnt into", BurnedInAnnotation="YES"),
    _tagged("MIP", "reject", "projection", ImageType=["DERIVED", "SECONDARY", "MIP"]),
    _tagged("derived", "review", "derived", ImageType=["DERIVED", "PRIMARY", "AXIAL"]),
    _tagged("MPR", "review", "reformatted", ImageType=["DERIVED", "SECONDARY", "MPR"]),
    _tagged("8 bits stored", "reject", "8 bits", BitsStored=8, HighBit=7),
    _tagged("perfusion in a name", "review", "is it a plain scan", SeriesDescription="Perfusion Leakmann"),
    _tagged("another object", "reject", "radiotherapy", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"),
]

SERIES_INPUTS: list[Input] = [*_CLEAN, *_TILTS, *_GEOMETRY, *_INTENSITY, *_KINDS]
