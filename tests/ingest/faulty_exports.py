"""Faulty exports: DICOM folders that take more than options: several series, damaged files, other objects."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from battery_inputs import ACCEPT, NO_PLACE, Expected, Image, Input, Verdict, collector, patient, write_series
from bodies import chest
from pydicom.uid import generate_uid

__all__ = ["EXPORT_INPUTS", "LITTER"]

EXPORT_INPUTS: list[Input] = []
_add = collector(EXPORT_INPUTS)


@_add("two series in a folder", *(("accept", ""), ("accept", "")))
def _two_series(folder: Path, hu: Image) -> None:
    write_series(folder, hu, prefix="a")
    write_series(folder, hu, prefix="b", tags={"ConvolutionKernel": "Hr60s"}, series_number=3)


@_add("one series over three folders", *ACCEPT, clean=True)
def _three_folders(folder: Path, hu: Image) -> Image:
    for k, file in enumerate(write_series(folder, hu)):
        (folder / f"d{k % 3}").mkdir(exist_ok=True)
        file.rename(folder / f"d{k % 3}" / file.name)
    return hu


@_add("a copy of the export", *ACCEPT, clean=True)
def _copied(folder: Path, hu: Image) -> Image:
    write_series(folder / "first", hu)
    shutil.copytree(folder / "first", folder / "second")
    return hu


@_add("slices twice under other UIDs", *ACCEPT, clean=True)
def _twice(folder: Path, hu: Image) -> Image:
    write_series(folder, hu, duplicate=(3, 4))
    return hu


@_add("mixed orientation in one series", *(("accept", ""), ("reject", "at least 10")))
def _mixed(folder: Path, hu: Image) -> None:
    uids, who = {"study_uid": generate_uid(), "series_uid": generate_uid()}, patient()
    write_series(folder, hu, prefix="a", tags=who, **uids)
    write_series(folder, hu[:6], prefix="b", tags=who, plane="coronal", **uids)


@_add("two kernels in one series", *(("accept", ""), ("accept", "")))
def _two_kernels(folder: Path, hu: Image) -> None:
    uids, who = {"study_uid": generate_uid(), "series_uid": generate_uid()}, patient()
    write_series(folder, hu, prefix="a", tags=who, **uids)
    write_series(folder, hu + np.int16(1), prefix="b", tags={**who, "ConvolutionKernel": "Hr60s"}, **uids)


@_add("two patients with the same UIDs", *(("accept", ""), ("accept", "")))
def _same_uids(folder: Path, hu: Image) -> None:
    uids: dict[str, Any] = {"study_uid": generate_uid(), "series_uid": generate_uid()}
    files = write_series(folder / "first", hu, **uids)
    others = write_series(folder / "other", hu + np.int16(2), **uids)
    for file, other in zip(files, others, strict=True):  # the same instance UIDs too
        data = pydicom.dcmread(other)
        data.SOPInstanceUID = pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID
        data.save_as(other)


@_add("same UIDs, other pixels", *(("reject", "several images at one position"),))
def _same_instances(folder: Path, hu: Image) -> None:
    files = write_series(folder / "3", hu)
    (folder / "other").mkdir()
    for k, file in enumerate(files):
        data = pydicom.dcmread(file)
        data.PixelData = (hu[k] + np.int16(1030)).astype("<u2").tobytes()
        data.save_as(folder / "other" / file.name)


@_add("bolus tracking", *(("reject", "over time"),))
def _bolus(folder: Path, hu: Image) -> None:
    uids, who = {"study_uid": generate_uid(), "series_uid": generate_uid()}, patient()
    for k in range(12):
        write_series(
            folder, hu[8:9] + np.int16(k), prefix=f"{k}_", tags={**who, "AcquisitionNumber": str(k + 1)}, **uids
        )


@_add("perfusion", *(("reject", "over time"),))
def _perfusion(folder: Path, hu: Image) -> None:
    uids, who = {"study_uid": generate_uid(), "series_uid": generate_uid()}, patient()
    for k in range(3):
        tags = {**who, "TemporalPositionIdentifier": str(k + 1), "NumberOfTemporalPositions": "3"}
        write_series(folder, hu[4:8] + np.int16(k), prefix=f"{k}_", tags=tags, **uids)


@_add("colour pictures", *(("reject", "colours"),))
def _colours(folder: Path, hu: Image) -> None:
    size = hu.shape[1] * hu.shape[2] * 3
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": bytes(size)}
    write_series(folder, hu, tags={**colour, **bits})


@_add("a dose sheet in the series", *(("accept", ""), ("reject", "")), counted="without a place")
def _dose_sheet(folder: Path, hu: Image) -> None:
    write_series(folder, hu, slice_tags={17: {**NO_PLACE, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}})


@_add(
    "a position missing within the series", *(("review", "may be missing"), ("reject", "")), counted="without a place"
)
def _one_without_place(folder: Path, hu: Image) -> None:
    write_series(folder, hu, slice_tags={9: {"ImagePositionPatient": None}})


@_add("chest with the tags of a head", *(("reject", "trunk"),))
def _chest(folder: Path, hu: Image) -> None:
    del hu
    write_series(folder, chest().hu[::2], spacing_mm=(10.0, 4.0, 4.0))


@_add("vertex cut off", *(("review", "vertex"),))
def _vertex(folder: Path, hu: Image) -> None:
    write_series(folder, hu[:11])


@_add("windowed", *(("reject", "window"),))
def _windowed(folder: Path, hu: Image) -> None:
    write_series(folder, np.clip(hu, -40, 120), rescale=(1.0, -40.0))


@_add("padding of -2000", *ACCEPT, clean=True)
def _padding(folder: Path, hu: Image) -> Image:
    padded = hu.copy()
    padded[:, -6:, -6:] = -2000
    write_series(folder, padded, signed=True, rescale=(1.0, 0.0), tags={"PixelPaddingValue": -2000})
    return np.maximum(padded, -1024)


@_add("empty air", *(("reject", "no solid object"),))
def _air(folder: Path, hu: Image) -> None:
    write_series(folder, np.full_like(hu, -1000) + np.random.default_rng(0).integers(-9, 9, hu.shape).astype(np.int16))


def _cut(name: str, at: Callable[[int], int], expected: Expected, file: str = "0009.dcm", **options: Any) -> None:
    """An input one of whose files is cut off."""

    def make(folder: Path, hu: Image) -> None:
        write_series(folder, hu, **options)
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: at(len(content))])

    EXPORT_INPUTS.append(Input(name, make, expected))


_HOLE: tuple[Verdict, str] = ("review", "1 slice(s) may be missing")
_cut("a slice without bytes", lambda size: 0, (_HOLE, ("reject", "not readable DICOM")))
_cut("a slice cut in its header", lambda size: 600, (_HOLE, ("reject", "not readable DICOM")))
_cut("a slice cut in its pixels", lambda size: size - 700, (("reject", "0009.dcm"),))
_cut("RLE cut", lambda size: size - 700, (("reject", "0009.dcm"),), syntax="rle")
_cut("JPEG-LS cut", lambda size: size - 700, (("reject", "0009.dcm"),), syntax="jpegls")
_cut("enhanced cut", lambda size: size - 4000, (("reject", "cannot be decoded"),), "0001.dcm", enhanced="enhanced")


@_add("a slice of text", *(_HOLE, ("reject", "not readable DICOM")))
def _text(folder: Path, hu: Image) -> None:
    write_series(folder, hu)
    (folder / "0009.dcm").write_text("<html>404 Leakmann</html>" * 30)


@_add("pixels missing", *(("reject", "0009.dcm"),))
def _no_pixels(folder: Path, hu: Image) -> None:
    write_series(folder, hu, slice_tags={8: {"PixelData": None}})


@_add("enhanced without positions of frames", *(("reject", "not readable DICOM"),))
def _no_frames(folder: Path, hu: Image) -> None:
    write_series(folder, hu, enhanced="enhanced", tags={"PerFrameFunctionalGroupsSequence": None})


@_add("among other files and looping links", *ACCEPT, clean=True)
def _litter(folder: Path, hu: Image) -> Image:
    write_series(folder / "a", hu)
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "Leakmann.txt").write_text("Leakmann")
    (folder / "letter.pdf").write_bytes(b"%PDF" + bytes(500))
    (folder / "zero").write_bytes(b"")
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    (folder / "nowhere").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe")
    return hu


LITTER = ("DICOMDIR", "1 links to a folder", "3 links that lead nowhere", "3 files that are not DICOM")
"""Parts of what is told of the files among those of the last input."""
