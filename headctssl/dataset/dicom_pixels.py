"""DICOM pixels: the picture of a slice in Hounsfield units, decoded by SimpleITK.

Two things SimpleITK (GDCM) does are undone by handing it the bare picture as a plain slice without rescaling: it
rescales every frame of a multi-frame file by the first frame's slope and intercept, and it inverts MONOCHROME1.
DICOM PS3.3 C.7.6.3.1.2 means MONOCHROME1 for the display after all transformations, so a slice with rescaling is in
Hounsfield units as it is; without rescaling the stored numbers are the picture, and they are inverted.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from scipy.ndimage import binary_propagation

from headctssl.dataset.dicom_header import quietly, series_error
from headctssl.dataset.dicom_slices import Slice
from headctssl.dataset.raw_image import hounsfield
from headctssl.errors import ImageReadError
from headctssl.volume.geometry import AIR_HU

__all__ = ["PixelReader"]

_UID = UID("1.2.3")  # of a file that lives for one decoding
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)  # pixels as they are
_COPIED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")


class PixelReader:
    """Reads pictures of slices; holds the multi-frame file it read last."""

    def __init__(self) -> None:
        self._file = ""
        self._data = Dataset()

    def hounsfield(self, one: Slice) -> NDArray[np.int16] | NDArray[np.int32]:
        """The picture of a slice, (rows, columns), rescaled by its own slope and intercept; padding is -1024.

        Raises:
            ImageReadError: it cannot be decoded; the slice is named.
        """
        common = one.common
        _require_bytes(one)
        inverted = common.photometric == "MONOCHROME1"
        if one.frame is None and not inverted:
            rescaled = hounsfield(self._decoded(one, Path(one.file)), 1.0, 0.0, Path(one.file))
        else:
            stored = self._stored(one)
            if inverted and common.slope is None and common.intercept is None:
                low = -(1 << (common.bits - 1)) if common.signed else 0
                stored = (2 * low + (1 << common.bits) - 1) - stored.astype(np.int32)
            rescaled = hounsfield(stored, *_rescaling(one), Path(one.file))
        return rescaled if common.padding is None else _without_padding(rescaled, one)

    def same(self, one: Slice, other: Slice) -> bool:
        """Whether two slices have the same picture."""
        return np.array_equal(self.hounsfield(one), self.hounsfield(other))

    def _stored(self, one: Slice) -> NDArray[Any]:
        """The numbers as they are stored."""
        if self._file != one.file:
            try:
                with quietly():
                    self._data = pydicom.dcmread(one.file, force=True)
            except Exception as error:  # pydicom raises errors of many types on damaged files
                raise _undecodable(one, str(error)) from None
            self._file = one.file
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "slice.dcm"
            try:
                with quietly():
                    bare = _plain_slice(self._data, one.frame or 0, one.common.frames)
                    bare.save_as(plain, enforce_file_format=True)
            except OSError:  # a full disk says nothing of the slice
                raise
            except Exception as error:  # a fragment that is missing, pixels that are cut off
                raise _undecodable(one, str(error)) from None
            return self._decoded(one, plain)

    @staticmethod
    def _decoded(one: Slice, file: Path) -> NDArray[Any]:
        try:
            pixels: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="GDCMImageIO"))
        except RuntimeError:
            raise _undecodable(one, "") from None
        if pixels.shape != (1, one.common.rows, one.common.columns):
            raise _undecodable(one, f"a picture of shape {pixels.shape}")
        picture: NDArray[Any] = pixels[0]
        return picture


def _require_bytes(one: Slice) -> None:
    """A file must be as large as its pixels: the decoder takes memory for what the header states, however much.

    Raises:
        ImageReadError: the file is smaller.
    """
    common = one.common
    if common.syntax and common.syntax not in _PLAIN:
        return
    needed = common.rows * common.columns * common.samples * common.frames * (1 if 0 < common.bits <= 8 else 2)
    size = os.path.getsize(one.file)
    if size < needed:
        raise _undecodable(one, f"{size} bytes where {common.rows} x {common.columns} pixels need {needed}")


def _undecodable(one: Slice, reason: str) -> ImageReadError:
    told = f": {reason.splitlines()[0][:120]}" if reason else ""
    return series_error(
        Path(one.file).parent,
        f"pixels of {one.name} that cannot be decoded{told}",
        "complete, undamaged slices",
        "Export the series again.",
    )


def _rescaling(one: Slice) -> tuple[float, float]:
    slope, intercept = one.common.slope, one.common.intercept
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _plain_slice(data: Dataset, frame: int, frames: int) -> Dataset:
    """One frame as a CT slice of nothing but pixels: no rescaling, no inversion, nobody's name.

    Raises:
        ValueError: its pixels are not all there.
    """
    meta = getattr(data, "file_meta", FileMetaDataset())
    syntax = meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    plain = Dataset()
    for name in _COPIED:
        setattr(plain, name, data[name].value)
    plain.SOPClassUID, plain.SOPInstanceUID, plain.Modality = CTImageStorage, _UID, "CT"
    plain.StudyInstanceUID, plain.SeriesInstanceUID = _UID, _UID
    plain.PhotometricInterpretation = "MONOCHROME2"
    if syntax.is_encapsulated:
        plain.PixelData = encapsulate([get_frame(data.PixelData, frame, number_of_frames=frames)])
    else:
        size = data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
        plain.PixelData = data.PixelData[frame * size : (frame + 1) * size]
        if len(plain.PixelData) < size:
            raise ValueError(f"{len(plain.PixelData)} of {size} bytes")
        plain["PixelData"].VR = "OW"
    plain.file_meta = FileMetaDataset()
    # pydicom inflates when it reads.
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    plain.file_meta.MediaStorageSOPClassUID, plain.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, _UID
    return plain


def _without_padding(hu: NDArray[np.int16] | NDArray[np.int32], one: Slice) -> NDArray[np.int16] | NDArray[np.int32]:
    """The picture with -1024 where the header says that there is none.

    A padding value that lies among real ones (0 of a picture whose water is 0) counts only where it is connected with
    the border: a careless header must not punch holes into a head.
    """
    assert one.common.padding is not None
    slope, intercept = _rescaling(one)
    ends = sorted(value * slope + intercept for value in one.common.padding)
    padded = (hu >= ends[0] - 0.5) & (hu <= ends[1] + 0.5)
    if ends[1] > AIR_HU and padded.any():
        border = np.ones_like(padded)
        border[1:-1, 1:-1] = False
        padded = binary_propagation(border & padded, mask=padded)
    hu[padded] = int(AIR_HU)
    return hu
