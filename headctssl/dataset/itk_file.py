"""NRRD and MetaImage: geometry and pixels by SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from headctssl.dataset.raw_image import Geometry, RawImage, hounsfield, mirror_to_spl, unreadable

__all__ = ["itk_geometry", "read_itk"]

_IO = {"nrrd": "NrrdImageIO", "metaimage": "MetaImageIO"}  # ITK does not know SCAN.MHA by its suffix
_DO_EXPORT = "Export or download the file again; a header file (.nhdr, .mhd) needs its data file beside it."


def itk_geometry(path: Path, source_format: str) -> Geometry:
    """Geometry of an NRRD or MetaImage file without its voxels.

    Args:
        path: the file.
        source_format: "nrrd" or "metaimage".

    Raises:
        ImageReadError: the file cannot be parsed or is not one volume of one number per voxel.
    """
    reader = _reader(path, source_format)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, _reason(error), f"a {source_format} file", _DO_EXPORT) from None
    size = [int(n) for n in reader.GetSize()]
    dimension = len(size)
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) != 3 or min(size) < 2:
        raise unreadable(
            path,
            f"an array of {' x '.join(map(str, size))}",
            "one volume of three dimensions, at least 2 voxels along each",
            "Save each volume of a perfusion or dual-energy file by itself.",
        )
    if reader.GetNumberOfComponents() != 1:
        raise unreadable(path, f"{reader.GetNumberOfComponents()} numbers per voxel", "one", "Save one channel.")
    notes: list[str] = []
    if source_format == "nrrd" and "NRRD_space" not in reader.GetMetaDataKeys():
        notes.append("The file states no orientation (no 'space' field): its axes are taken as L, P, S.")
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return Geometry(source_format, (size[2], size[1], size[0]), mirror_to_spl(affine, ras=False), notes=tuple(notes))


def read_itk(path: Path, source_format: str) -> RawImage:
    """Geometry and voxels of an NRRD or MetaImage file.

    Raises:
        ImageReadError: as `itk_geometry`, and truncated data or NaN voxels.
    """
    geometry = itk_geometry(path, source_format)
    try:
        stored: NDArray[Any] = SimpleITK.GetArrayFromImage(_reader(path, source_format).Execute())
    except RuntimeError as error:
        raise unreadable(path, _reason(error), "complete voxel data", _DO_EXPORT) from None
    return RawImage(geometry, hounsfield(stored.reshape(geometry.shape), 1.0, 0.0, path, copy=False))


def _reader(path: Path, source_format: str) -> SimpleITK.ImageFileReader:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_IO[source_format])
    return reader


def _reason(error: RuntimeError) -> str:
    """The telling line of an ITK exception, without its address and path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    passed_over = ("Exception thrown", "/", "sitk::ERROR: The file", "Reason: Success")
    told = [line for line in lines if not line.startswith(passed_over) and "File cannot be read" not in line]
    # What it quotes are names of files and pieces of what is in them.
    return re.sub(r'"[^"]*("|$)', "'...'", (told or ["it cannot be parsed, or is cut off"])[-1])[:200]
