"""DICOM series: slices and frames that belong together as one stack, geometry from their positions alone.

ImagePositionPatient and ImageOrientationPatient say where a slice is. SliceLocation, SpacingBetweenSlices,
InstanceNumber and GantryDetectorTilt are not asked: vendors do not agree on their meaning, nor on the sign of the tilt.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.dicom_header import HeaderError, is_dicom, series_error
from headctssl.dataset.dicom_passes import pass_notes
from headctssl.dataset.dicom_pixels import PixelReader
from headctssl.dataset.dicom_slices import ENHANCED_CT, Common, Slice, number_text, slices_of
from headctssl.dataset.raw_image import Geometry, RawImage

__all__ = [
    "DICOM_SUFFIXES",
    "SAME_DIRECTION",
    "SAME_POSITION_MM",
    "dicom_geometry",
    "is_dicom",
    "read_dicom",
    "series_files",
]

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

SAME_POSITION_MM = 0.01
"""Slices closer along their normal are at one position."""

SAME_DIRECTION = 1e-3
"""Slices whose direction cosines differ by no more are parallel: 0.06 degrees."""

_LARGEST_SIDE = 8192
"""Pixels. Scanners make up to 4096; a header that states more is damaged, and would take all memory."""

_DO_SERIES = "Give each series its own folder, or use headct_convert --from dicom, which separates them."


def series_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name.

    Raises:
        ImageReadError: the folder is empty, holds no DICOM file, or has a .dcm file that is not DICOM.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    slices = [p for p in files if p.name != "DICOMDIR" and is_dicom(p)]
    broken = [p.name for p in files if p not in slices and p.suffix.lower() in DICOM_SUFFIXES]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise series_error(
            folder,
            f"{broken[0]}{more} without DICOM's mark",
            "complete DICOM files",
            "Export the series again: a slice is damaged.",
        )
    if not slices:
        got = f"{len(files)} files, none of them DICOM" if files else "an empty folder"
        raise series_error(
            folder, got, "the slices of one series", "Check the path; name the folder that holds the slices."
        )
    return slices


def dicom_geometry(files: Sequence[Path]) -> Geometry:
    """Geometry of a series from the headers of its slices.

    Pixels are read only of slices at one position, to see whether they are the same slice twice.

    Args:
        files: the slices in any order, or multi-frame files.

    Raises:
        ImageReadError: several series, not CT, missing or differing orientation, several images at one
            position, or a single slice.
    """
    return _sorted_stack(files)[0]


def read_dicom(files: Sequence[Path]) -> RawImage:
    """Geometry and voxels of a series; slices sorted along their normal, rescaled slice by slice.

    Raises:
        ImageReadError: as `dicom_geometry`, and a slice whose pixels cannot be decoded; it is named.
    """
    geometry, ordered = _sorted_stack(files)
    reader = PixelReader()
    # Before memory is taken for all: a header may state more rows and columns than there are pixels.
    picture = reader.hounsfield(ordered[0])
    hu: NDArray[np.int16] | NDArray[np.int32] = np.empty(geometry.shape, np.int16)
    for index, one in enumerate(ordered):
        picture = reader.hounsfield(one) if index else picture
        if picture.dtype != hu.dtype:
            hu = hu.astype(np.int32)  # a slice with numbers beyond 16 bits, which `check_intensity` tells
        hu[index] = picture
    return RawImage(geometry, hu)


def _sorted_stack(files: Sequence[Path]) -> tuple[Geometry, list[Slice]]:
    folder = files[0].parent
    slices = [one for file in files for one in _slices(file)]
    _require_one_series(folder, slices)
    normal = _normal(folder, slices)
    heights = np.array([one.position for one in slices]) @ normal
    ordered = [slices[k] for k in np.argsort(heights, kind="stable")]
    ordered, copies = _one_per_position(folder, ordered, np.sort(heights))
    if len(ordered) < 2:
        raise series_error(folder, "one slice", "at least two", "Name the folder that holds the whole series.")
    common = ordered[0].common
    origins = np.array([one.position for one in ordered])[:, ::-1]  # x, y, z of LPS -> (S, P, L)
    affine = np.eye(4)
    affine[:3, 0] = (origins[-1] - origins[0]) / (len(ordered) - 1)
    affine[:3, 1] = np.array(common.orientation[3:])[::-1] * common.spacing_mm[0]
    affine[:3, 2] = np.array(common.orientation[:3])[::-1] * common.spacing_mm[1]
    affine[:3, 3] = origins[0]
    notes = [f"{copies} slice(s) were there twice, with the same pixels, and were taken once."] if copies else []
    shape = (len(ordered), common.rows, common.columns)
    metadata = _metadata([one.common for one in ordered])
    notes += _photometric_notes(ordered)
    notes += pass_notes([one.acquisition for one in ordered], origins[:, ::-1] @ normal)
    return Geometry("dicom", shape, affine, np.ascontiguousarray(origins), metadata, tuple(notes)), ordered


def _slices(file: Path) -> list[Slice]:
    try:
        return slices_of(file)
    except HeaderError as error:
        raise series_error(
            file.parent, f"{file.name}: {error}", "DICOM headers", "Export the series again: a slice is damaged."
        ) from None


def _require_one_series(folder: Path, slices: Sequence[Slice]) -> None:
    """Everything that must hold before positions can be compared."""
    series = {one.common.series_uid for one in slices}
    if len(series) > 1:
        raise series_error(folder, f"{len(series)} series in one folder", "one series", _DO_SERIES)
    for one in slices:
        common = one.common
        if common.modality != "CT":
            raise series_error(folder, f"modality '{common.modality}' in {one.name}", "CT", "Only CT is supported.")
        if common.frames > 1 and common.sop_class not in ENHANCED_CT:
            raise series_error(
                folder,
                f"{one.name} holds {common.frames} frames and is no Enhanced CT",
                "one slice per file, or Enhanced CT, which says where its frames are",
                "Export the original slices: pictures of a screen or of a film have no place in the patient.",
            )
        if fault := one.fault or common.fault:
            localiser = "Localisers and derived pictures are not scans: remove the file, or export again."
            joint = " " if fault.startswith("without") else ": "
            raise series_error(
                folder, f"{one.name}{joint}{fault}", "the position and orientation of every slice", localiser
            )
        if common.samples != 1:
            raise series_error(
                folder, f"colour pictures ({one.name})", "one value per pixel", "Remove secondary captures."
            )
        sides = (common.rows, common.columns)
        if min(sides) < 1 or max(sides) > _LARGEST_SIDE or min(common.spacing_mm) <= 0:
            size = f"{common.rows} rows, {common.columns} columns, PixelSpacing {list(common.spacing_mm)}"
            raise series_error(folder, f"{one.name} with {size}", "a picture with a size", "Export the series again.")
    told: tuple[tuple[str, Callable[[Common], object]], ...] = (
        ("Rows", lambda common: common.rows),
        ("Columns", lambda common: common.columns),
        ("PixelSpacing", lambda common: common.spacing_mm),
    )
    for name, value in told:
        values = {value(one.common) for one in slices}
        if len(values) > 1:
            raise series_error(
                folder, f"several values of {name}: {', '.join(sorted(map(str, values)))}", "one", _DO_SERIES
            )


def _normal(folder: Path, slices: Sequence[Slice]) -> NDArray[np.float64]:
    """The unit normal of slices that are parallel."""
    directions = np.array([one.common.orientation for one in slices])
    away = np.abs(directions - directions[0]).max(axis=1)
    if away.max() > SAME_DIRECTION:
        raise series_error(
            folder,
            f"slices of several orientations, for example {slices[0].name} and {slices[int(away.argmax())].name}",
            "parallel slices",
            "Remove the localiser or the other plane. " + _DO_SERIES,
        )
    lengths = np.linalg.norm(directions[0].reshape(2, 3), axis=1)
    normal = np.cross(directions[0, :3], directions[0, 3:])
    size = float(np.linalg.norm(normal))
    if abs(size - 1.0) > 0.01 or np.abs(lengths - 1.0).max() > 0.01:
        expected = "two perpendicular unit vectors"
        raise series_error(folder, f"directions {directions[0].tolist()}", expected, "Export the series again.")
    return np.asarray(normal / size)


def _one_per_position(folder: Path, ordered: list[Slice], heights: NDArray[np.float64]) -> tuple[list[Slice], int]:
    """The slices without those that are there twice, and how many these were.

    Args:
        folder: for errors.
        ordered: by height.
        heights: of `ordered`, ascending.

    Raises:
        ImageReadError: different pictures at one position.
    """
    starts = [0, *(np.flatnonzero(np.diff(heights) >= SAME_POSITION_MM) + 1), len(ordered)]
    reader = PixelReader()
    for low, high in itertools.pairwise(starts):
        first = ordered[low]
        for other in ordered[low + 1 : high]:
            moved = float(np.linalg.norm(np.array(first.position) - other.position))
            if moved >= SAME_POSITION_MM or not reader.same(first, other):
                raise series_error(
                    folder,
                    f"several images at one position: {high - low} slices at one position,"
                    f" and {first.name} and {other.name} differ",
                    "one slice per position",
                    "Repeated scans (bolus monitoring, perfusion, several phases) are not one volume: separate them.",
                )
    return [ordered[low] for low in starts[:-1]], len(ordered) - len(starts) + 1


def _photometric_notes(slices: Sequence[Slice]) -> list[str]:
    inverted = sum(
        one.common.photometric == "MONOCHROME1" and one.common.slope is None and one.common.intercept is None
        for one in slices
    )
    return [f"{inverted} slice(s) are MONOCHROME1 without rescaling: their values were inverted."] if inverted else []


def _metadata(commons: Sequence[Common]) -> tuple[tuple[str, str], ...]:
    """What is known of the acquisition and identifies nobody: the most frequent value of each.

    Among equally frequent ones the first in order, whatever the order of files.
    """
    columns: tuple[tuple[str, Callable[[Common], str]], ...] = (
        ("kvp", lambda common: common.kvp),
        ("convolution_kernel", lambda common: common.kernel),
        ("slice_thickness_mm", lambda common: number_text(common.thickness_mm)),
        ("manufacturer", lambda common: common.manufacturer),
    )
    found: list[tuple[str, str]] = []
    for name, value in columns:
        texts = Counter(value(common) for common in commons)
        texts.pop("", None)
        if texts:
            found.append((name, min(texts, key=lambda text: (-texts[text], text))))
    return tuple(found)
