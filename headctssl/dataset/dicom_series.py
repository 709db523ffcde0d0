"""DICOM series: geometry from the headers of its slices, pixels by SimpleITK slice by slice."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from headctssl.dataset.raw_image import Geometry, RawImage, hounsfield
from headctssl.errors import ImageReadError

__all__ = ["dicom_geometry", "is_dicom", "read_dicom", "series_files"]

_TAGS = [
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
    "Manufacturer",
]
_GEOMETRY = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2, "Rows": 1, "Columns": 1}
_SAME_POSITION_MM = 0.01
_SAME_DIRECTION = 1e-3  # cosine units; 0.06 degrees
_DO_SERIES = "Give each series its own folder, or use headct_convert --from dicom, which separates them."


def is_dicom(path: Path) -> bool:
    """Whether a file carries DICOM's mark: 'DICM' after 128 bytes; False for one that cannot be opened."""
    try:
        with open(path, "rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name.

    Raises:
        ImageReadError: the folder is empty, holds no DICOM file, or has a .dcm file that is not DICOM.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    slices = [p for p in files if p.name != "DICOMDIR" and is_dicom(p)]
    broken = [p.name for p in files if p not in slices and p.suffix.lower() in (".dcm", ".dicom", ".ima")]
    if broken:
        raise _error(
            folder,
            f"{broken[0]} (and {len(broken) - 1} more) without DICOM's mark"
            if len(broken) > 1
            else f"{broken[0]} without DICOM's mark",
            "complete DICOM files",
            "Export the series again: a slice is damaged.",
        )
    if not slices:
        got = f"{len(files)} files, none of them DICOM" if files else "an empty folder"
        raise _error(folder, got, "the slices of one series", "Check the path; name the folder that holds the slices.")
    return slices


def _error(folder: Path, got: object, expected: str, do: str) -> ImageReadError:
    return ImageReadError(f"{folder} cannot be read as one DICOM series.", got=got, expected=expected, do=do)


def dicom_geometry(files: Sequence[Path]) -> Geometry:
    """Geometry of a series from the headers of its slices.

    Args:
        files: the slices in any order.

    Raises:
        ImageReadError: several series, not CT, missing or differing orientation, several slices at one
            position, or a single slice.
    """
    return _sorted_stack(files)[0]


def read_dicom(files: Sequence[Path]) -> RawImage:
    """Geometry and voxels of a series; slices sorted along their normal, rescaled slice by slice.

    SimpleITK decodes every encoding and applies the slope and intercept of each slice.

    Raises:
        ImageReadError: as `dicom_geometry`, and a slice whose pixels cannot be decoded; it is named.
    """
    geometry, ordered = _sorted_stack(files)
    hu: NDArray[np.int16] | NDArray[np.int32] = np.empty(geometry.shape, np.int16)
    for index, file in enumerate(ordered):
        try:
            pixels: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        except RuntimeError:
            raise _error(
                file.parent,
                f"pixels of {file.name} that cannot be decoded",
                "complete, undamaged slices",
                "Export the series again.",
            ) from None
        if pixels.shape != (1, *geometry.shape[1:]):
            raise _error(file.parent, f"{file.name}: pixels {pixels.shape}", f"{geometry.shape[1:]}", _DO_SERIES)
        rescaled = hounsfield(pixels[0], 1.0, 0.0, file)
        if rescaled.dtype != hu.dtype:
            hu = hu.astype(np.int32)  # a slice with numbers beyond 16 bits, which `check_intensity` tells
        hu[index] = rescaled
    return RawImage(geometry, hu)


def _numbers(file: Path, header: pydicom.Dataset, tag: str, count: int) -> list[float]:
    """The numbers of a tag that the geometry needs.

    Raises:
        ImageReadError: the tag is absent, holds another count of values, or one is not a finite number.
    """
    try:
        value = header.get(tag)
        parts = list(value) if isinstance(value, (pydicom.multival.MultiValue, list)) else [value]
        if value in (None, ""):
            raise _error(
                file.parent,
                f"{file.name} without {tag}",
                "the position and orientation of every slice",
                "Localisers and derived pictures are not scans: remove the file, or export again.",
            )
        numbers = [float(part) for part in parts]
    except (ValueError, TypeError, OverflowError, struct.error) as error:  # pydicom parses a value when it is asked for
        raise _error(
            file.parent,
            f"{tag} of {file.name} is no number: {(str(error).splitlines() or ['?'])[0][:120]}",
            f"{count} numbers",
            "Export the series again.",
        ) from None
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise _error(file.parent, f"{tag} {numbers} in {file.name}", f"{count} numbers", "Export the series again.")
    return numbers


def _sorted_stack(files: Sequence[Path]) -> tuple[Geometry, list[Path]]:
    folder = files[0].parent
    headers = [_header(file) for file in files]
    _check_one_series(folder, files, headers)
    both = list(zip(files, headers, strict=True))
    first = headers[0]
    directions = np.array([_numbers(file, h, "ImageOrientationPatient", 6) for file, h in both])
    positions = np.array([_numbers(file, h, "ImagePositionPatient", 3) for file, h in both])
    if np.abs(directions - directions[0]).max() > _SAME_DIRECTION:
        other = int(np.abs(directions - directions[0]).max(axis=1).argmax())
        raise _error(
            folder,
            f"slices of several orientations, for example {files[0].name} and {files[other].name}",
            "parallel slices",
            "Remove the localiser or the other plane. " + _DO_SERIES,
        )
    along_columns, along_rows = directions[0, :3], directions[0, 3:]
    normal = np.cross(along_columns, along_rows)
    if abs(float(np.linalg.norm(normal)) - 1.0) > 0.01:
        raise _error(folder, directions[0].tolist(), "two perpendicular unit vectors", "Export the series again.")
    height = positions @ normal
    order = np.argsort(height, kind="stable")
    gaps = np.diff(height[order])
    if len(files) < 2:
        raise _error(folder, "one slice", "at least two", "Name the folder that holds the whole series.")
    if gaps.min() < _SAME_POSITION_MM:
        at = int(gaps.argmin())
        where = height[order[at]]
        count = int((np.abs(height - where) < _SAME_POSITION_MM).sum())
        raise _error(
            folder,
            f"{count} slices at one position, among them {files[order[at]].name} and {files[order[at + 1]].name}",
            "one slice per position",
            "Repeated scans (bolus monitoring, perfusion, several phases) are not one volume: separate them.",
        )
    origins = positions[order][:, ::-1]  # x, y, z of LPS -> (S, P, L)
    spacing = _numbers(files[0], first, "PixelSpacing", 2)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0] = (origins[-1] - origins[0]) / (len(files) - 1)
    affine[:3, 1] = along_rows[::-1] * spacing[0]
    affine[:3, 2] = along_columns[::-1] * spacing[1]
    affine[:3, 3] = origins[0]
    shape = (len(files), int(first.Rows), int(first.Columns))
    geometry = Geometry("dicom", shape, affine, np.ascontiguousarray(origins), _metadata(headers))
    return geometry, [files[i] for i in order]


def _header(file: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise _error(
            file.parent,
            f"{file.name}: {(str(error).splitlines() or ['unreadable'])[0][:150]}",
            "DICOM headers",
            "Export the series again: a slice is damaged.",
        ) from None


def _check_one_series(folder: Path, files: Sequence[Path], headers: Sequence[pydicom.Dataset]) -> None:
    """Everything that must hold before positions can be compared."""
    series = {str(h.get("SeriesInstanceUID", "")) for h in headers}
    if len(series) > 1:
        raise _error(folder, f"{len(series)} series in one folder", "one series", _DO_SERIES)
    for file, header in zip(files, headers, strict=True):
        modality = str(header.get("Modality", ""))
        if modality != "CT":
            raise _error(folder, f"modality '{modality}' in {file.name}", "CT", "Only CT is supported.")
        if (frames := _count(header, "NumberOfFrames")) > 1:
            raise _error(
                folder,
                f"{file.name} holds {frames:g} frames",
                "one slice per file",
                "Convert the enhanced (multi-frame) object to classic CT slices, for example with dcm2niix.",
            )
        for tag, count in _GEOMETRY.items():
            _numbers(file, header, tag, count)
    for tag in ("Rows", "Columns", "PixelSpacing"):
        values = {str(h[tag].value) for h in headers}
        if len(values) > 1:
            raise _error(folder, f"several values of {tag}: {', '.join(sorted(values))}", "one", _DO_SERIES)
    if any(_count(h, "SamplesPerPixel") != 1 for h in headers):
        raise _error(folder, "colour pictures", "one value per pixel", "Remove secondary captures.")


def _metadata(headers: Sequence[pydicom.Dataset]) -> tuple[tuple[str, str], ...]:
    """What is known of the acquisition and identifies nobody."""
    tags = {
        "kvp": "KVP",
        "convolution_kernel": "ConvolutionKernel",
        "slice_thickness_mm": "SliceThickness",
        "manufacturer": "Manufacturer",
    }
    found: list[tuple[str, str]] = []
    for name, tag in tags.items():
        texts = Counter(_text(header, tag, number=name in ("kvp", "slice_thickness_mm")) for header in headers)
        texts.pop("", None)
        if texts:  # the most frequent one; among equals the first in order, whatever the order of files
            found.append((name, min(texts, key=lambda text: (-texts[text], text))))
    return tuple(found)


def _count(header: pydicom.Dataset, tag: str) -> float:
    """A tag that is 1 where it is absent or cannot be read: what follows needs one slice and one sample."""
    return float(_text(header, tag, number=True) or 1)


def _text(header: pydicom.Dataset, tag: str, *, number: bool) -> str:
    """A header value as text, several values joined by a backslash as DICOM does.

    '' for none, and where a number is wanted for several numbers (dual energy) and for what is no number
    ("120 kV", "5,0"): this is not worth a scan.
    """
    try:
        value = header.get(tag)
    except (ValueError, TypeError, OverflowError, struct.error):  # pydicom parses a value when it is asked for
        return ""
    if value is None or value == "":
        return ""
    parts = [str(part).strip() for part in (value if isinstance(value, pydicom.multival.MultiValue) else [value])]
    if not number:
        return "\\".join(parts)
    try:
        numbers = {float(part) for part in parts}
    except ValueError:
        return ""
    only = numbers.pop()
    return f"{only:g}" if not numbers and math.isfinite(only) else ""
