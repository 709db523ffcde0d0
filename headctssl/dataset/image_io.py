"""Image input and output: the only reader of raw images, and the only place that straightens them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.detached import data_files
from headctssl.dataset.intensity import check_intensity, repair
from headctssl.dataset.label_map import LabelMap, MaskRule, straight_label_map
from headctssl.dataset.raw_image import Geometry, RawImage, unreadable
from headctssl.dataset.slice_levels import level_notes
from headctssl.dataset.straightening import SliceStack, distinct
from headctssl.errors import ImageReadError
from headctssl.paths import atomic_path
from headctssl.types import Triple, Volume, VolumeInfo
from headctssl.volume.geometry import spacing_of, to_spl
from headctssl.volume.hounsfield import unpadded

__all__ = [
    "ImageHeader",
    "data_files",
    "find_images",
    "is_image",
    "read",
    "read_header",
    "read_label_map",
    "read_series",
    "source_digest",
    "source_state",
    "stem",
    "write_nifti",
]

_SUFFIXES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}
_EXPECTED = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder with one DICOM series"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class ImageHeader:
    """What the headers of an image say, without its voxels."""

    source_format: str  # "nifti", "nrrd", "metaimage", "dicom"
    shape: tuple[int, int, int]  # voxels (z, y, x) of the volume `read` returns
    spacing_mm: Triple  # (z, y, x) of the volume `read` returns
    original_shape: tuple[int, int, int]  # (slices, rows, columns) as stored
    original_spacing_mm: Triple  # (slice, row, column) as stored; slice = median gap
    tilt_deg: float
    slice_gaps_mm: tuple[float, ...]
    metadata: tuple[tuple[str, str], ...]


def stem(path: Path) -> str:
    """The name of an image without its suffix, `.nii.gz` counted as one suffix."""
    suffix = _suffix(path)
    return path.name[: -len(suffix)] if suffix and not path.is_dir() else path.name


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((s for s in sorted(_SUFFIXES, key=len, reverse=True) if name.endswith(s) and name != s), "")


def is_image(path: Path) -> bool:
    """Whether `read` would try this path: a file with a known suffix, or a folder that holds a DICOM file."""
    if path.is_dir():
        from headctssl.dataset.dicom_series import is_dicom

        return any(is_dicom(file) for file in _plain_files(path))
    return bool(_suffix(path)) and path.is_file()


def find_images(folder: Path) -> list[Path]:
    """Every image under a folder, sorted: files with a known suffix and folders of DICOM files.

    Links are followed, each folder is entered once.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    for name, folders, _ in os.walk(folder, followlinks=True):
        state = os.stat(name)
        if (state.st_dev, state.st_ino) in entered:  # a link to a folder above would be followed for ever
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        folders.sort()
        parent = Path(name)
        images = [file for file in _plain_files(parent) if _suffix(file)]
        found += images
        if not images and parent != folder and is_image(parent):
            found.append(parent)
    return sorted(found)


def _plain_files(folder: Path) -> Iterator[Path]:
    yield from sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def read(path: Path, *, keep_detail: bool = False, fill_gaps: bool = False, repair_intensity: bool = False) -> Volume:
    """Read an image as a straight, even volume in Hounsfield units.

    A sheared or uneven stack of slices is resampled to a straight grid: in-plane spacing kept, slice
    spacing the median gap rounded down to 0.1 mm. Otherwise no voxel is interpolated. Axes are
    permuted and flipped to those closest to superior, posterior, left.

    Args:
        path: a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.
        keep_detail: use the smallest gap (not under 0.5 mm) as slice spacing when resampling.
        fill_gaps: interpolate linearly where slices are missing; else such a hole stays empty (-1024 HU).
        repair_intensity: make Hounsfield units of values that are recognised as HU plus a constant, Cormack units or
            numbers whose sign was misread; noted. Else such values stay as they are and the fault is noted.

    Returns:
        The volume; `info.notes` tells what was noticed (also values that are not Hounsfield units)
        and done.

    Raises:
        ImageReadError: the path cannot be read as one volume.
    """
    return _finish(
        _read_raw(path), str(path), keep_detail=keep_detail, fill_gaps=fill_gaps, repair_intensity=repair_intensity
    )


def read_series(
    files: Sequence[Path], *, keep_detail: bool = False, fill_gaps: bool = False, repair_intensity: bool = False
) -> Volume:
    """Read DICOM files of one series that may share their folder with others; else as `read`.

    Args:
        files: the files of the series, in any order.
        keep_detail: as in `read`.
        fill_gaps: as in `read`.
        repair_intensity: as in `read`.
    """
    from headctssl.dataset.dicom_series import read_dicom

    return _finish(
        read_dicom(files),
        str(files[0].parent),
        keep_detail=keep_detail,
        fill_gaps=fill_gaps,
        repair_intensity=repair_intensity,
    )


def read_label_map(
    path: Path,
    *,
    keep_detail: bool = False,
    fill_gaps: bool = False,
    any_part: bool = False,
    rule: MaskRule | None = None,
) -> LabelMap:
    """Read a mask or segmentation on the grid that `read` gives its image; values are never mixed.

    Args:
        path: as in `read`.
        keep_detail: as its image was read.
        fill_gaps: as its image was read.
        any_part: mark every voxel that any marked part reaches, as for anonymised voxels; else the largest part.
        rule: make a mask of 0 and 1 of it, before it is straightened.

    Raises:
        ImageReadError: the path cannot be read as one volume, or it is no label map.
    """
    return straight_label_map(
        _read_raw(path), str(path), keep_detail=keep_detail, fill_gaps=fill_gaps, any_part=any_part, rule=rule
    )


def _read_raw(path: Path) -> RawImage:
    kind = _kind(path)
    if kind == "nifti":
        from headctssl.dataset.nifti_file import read_nifti

        return read_nifti(path)
    if kind == "dicom":
        from headctssl.dataset.dicom_series import read_dicom, series_files

        return read_dicom(series_files(path))
    from headctssl.dataset.itk_file import read_itk

    return read_itk(path, kind)


def _kind(path: Path) -> str:
    if not path.exists():
        raise ImageReadError(f"{path} does not exist.", got="nothing", expected=_EXPECTED, do="Check the path.")
    if path.is_dir():
        return "dicom"
    suffix = _suffix(path)
    if not suffix:
        raise unreadable(
            path, f"a file ending in '{path.suffix}'", _EXPECTED, "For one DICOM file, name the folder of its series."
        )
    if path.stat().st_size == 0:
        raise unreadable(path, "an empty file", _EXPECTED, "Export or download the file again.")
    data_files(path)  # raises when the voxels are in many files: the digest would not see them change
    return _SUFFIXES[suffix]


def _geometry(path: Path) -> Geometry:
    kind = _kind(path)
    if kind == "nifti":
        from headctssl.dataset.nifti_file import nifti_geometry

        return nifti_geometry(path)
    if kind == "dicom":
        from headctssl.dataset.dicom_series import dicom_geometry, series_files

        return dicom_geometry(series_files(path))
    from headctssl.dataset.itk_file import itk_geometry

    return itk_geometry(path, kind)


def _finish(raw: RawImage, name: str, *, keep_detail: bool, fill_gaps: bool, repair_intensity: bool) -> Volume:
    geometry = raw.geometry
    stack = SliceStack(geometry, name)
    hu, told = _intensity(raw.hu, repair_intensity=repair_intensity)
    told += level_notes(hu, stack.axes[0])
    straight, affine = stack.straight(hu, keep_detail=keep_detail, fill_gaps=fill_gaps)
    turned, affine = to_spl(straight, affine)
    info = VolumeInfo(
        source_format=geometry.source_format,
        original_shape=geometry.shape,
        original_spacing_mm=geometry.spacing_mm,
        tilt_deg=round(stack.stack.tilt_deg, 3),
        straightened=not stack.stack.is_straight_and_even,
        slice_gaps_mm=distinct(stack.stack.gaps_mm),
        original_affine=tuple(tuple(float(v) for v in row) for row in geometry.affine),
        metadata=geometry.metadata,
        displacement_mm=stack.displacement_mm,
        notes=(
            *geometry.notes,
            *stack.notes(keep_detail=keep_detail, fill_gaps=fill_gaps),
            *told,
        ),
    )
    return Volume(turned, affine, info)  # flipped axes stay a view: a copy takes a sixth of the time of reading


def _intensity(
    stored: NDArray[np.int16] | NDArray[np.int32], *, repair_intensity: bool
) -> tuple[NDArray[np.int16], list[str]]:
    """HU of the voxels as stored, and what there is to say of them.

    They are judged before straightening, which adds air around them and would hide that there was none.
    """
    check = check_intensity(stored)
    if repair_intensity and check.can_repair:
        return unpadded(repair(stored, check)), [check.repaired]
    return unpadded(stored), [check.text] if check.text else []


def read_header(path: Path, *, keep_detail: bool = False) -> ImageHeader:
    """What `read` would return, from headers alone.

    Args:
        path: as in `read`.
        keep_detail: as in `read`.

    Raises:
        ImageReadError: the headers do not describe one volume.
    """
    geometry = _geometry(path)
    stack = SliceStack(geometry, str(path))
    shape, affine = stack.grid(keep_detail=keep_detail)
    # An array of no memory stands for the voxels: only its shape is turned.
    turned, affine = to_spl(np.broadcast_to(np.int8(0), shape), affine)
    return ImageHeader(
        source_format=geometry.source_format,
        shape=(turned.shape[0], turned.shape[1], turned.shape[2]),
        spacing_mm=spacing_of(affine),
        original_shape=geometry.shape,
        original_spacing_mm=geometry.spacing_mm,
        tilt_deg=round(stack.stack.tilt_deg, 3),
        slice_gaps_mm=distinct(stack.stack.gaps_mm),
        metadata=geometry.metadata,
    )


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as int16 NIfTI, atomically; `read` gives the same voxels and affine back.

    Args:
        path: file ending in .nii.gz or .nii.
        volume: the volume.
    """
    from headctssl.dataset.nifti_file import save_nifti

    if _SUFFIXES.get(_suffix(path)) != "nifti":
        raise ValueError(f"{path.name} does not end in .nii.gz or .nii")
    with atomic_path(path) as temporary:
        # The suffix decides on compression, so it stays the last part of the temporary name.
        named = temporary.with_name(temporary.name + _suffix(path))
        try:
            save_nifti(named, volume)
            os.replace(named, temporary)
        finally:
            named.unlink(missing_ok=True)


def source_state(path: Path) -> tuple[int, int]:
    """Size in bytes and newest modification time in ns of an image on disk, without reading it.

    Args:
        path: as in `source_digest`.

    Raises:
        OSError: it does not exist or cannot be looked at.
        ImageReadError: as `data_files`.
    """
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        states = [file.stat() for file in _plain_files(path)]
    else:
        states = [state, *(file.stat() for file in data_files(path))]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


def source_digest(path: Path) -> tuple[str, int, int]:
    """Identity of an image on disk.

    Args:
        path: a file (with the data file that its header names), or a folder of DICOM files.

    Returns:
        SHA-256 of the content (of several files: of their names, sizes and contents, in order), size in
        bytes, newest modification time in nanoseconds.
    """
    files = list(_plain_files(path)) if path.is_dir() else [path, *data_files(path)]
    digest = hashlib.sha256()
    size = newest = 0
    for file in files:
        state = file.stat()
        size += state.st_size
        newest = max(newest, state.st_mtime_ns)
        if len(files) > 1:
            digest.update(f"{file.name}\0{state.st_size}\0".encode())
        with open(file, "rb") as handle:
            while block := handle.read(_CHUNK):
                digest.update(block)
    return digest.hexdigest(), size, newest
