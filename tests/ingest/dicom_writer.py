"""DICOM writer: real DICOM CT series made of an array, clean or with one stated fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
    generate_uid,
)
from scipy.ndimage import map_coordinates

__all__ = ["Options", "slice_positions", "tilted_slices", "write_dicom"]

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
}
_COMPRESSED = ("rle", "jpegls")
_PLANES = {  # directions (L, P, S) in which the column index and the row index grow
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
}


@dataclass(frozen=True)
class Options:
    """How a series is written. The defaults give a clean axial series of 16-bit slices with HU = stored - 1024."""

    spacing_mm: tuple[float, float, float] = (5.0, 0.5, 0.5)  # between slices along their normal, rows, columns
    origin_lps: tuple[float, float, float] = (-20.0, -30.0, 40.0)  # mm, centre of the first pixel of slice 0
    heights_mm: Sequence[float] | None = None  # of every slice along the normal; None = even, from spacing_mm
    plane: str = "axial"  # axial, coronal, sagittal
    direction: Sequence[float] | None = None  # ImageOrientationPatient instead of that of `plane` and `tilt_deg`
    tilt_deg: float = 0.0  # gantry tilt of axial slices: positive = the back of the slices points down, as GE's +
    tag_sign: int | None = 1  # GantryDetectorTilt is tag_sign * tilt_deg, for vendors do not agree; None = no tag
    drop: Sequence[int] = ()  # slices that are not written
    duplicate: Sequence[int] = ()  # slices that are written twice, with their own SOP instance UID
    duplicate_differs: bool = False  # the second of them has other pixels
    shuffle: bool = False  # file names do not follow the positions
    instance_numbers: str = "right"  # right, reversed, shuffled, same, none
    names: str = "dcm"  # "dcm": 0001.dcm ...; "none": no suffix
    prefix: str = ""  # of every file name: several series in one folder
    syntax: str = "explicit"  # a name of SYNTAXES
    preamble: bool = True  # False: without the 128 bytes, DICM and the file meta information
    bits: int = 16  # stored: 12 or 16
    signed: bool = False
    rescale: Sequence[tuple[float, float]] | tuple[float, float] = (1.0, -1024.0)  # of the series, or one per slice
    photometric: str = "MONOCHROME2"
    enhanced: str = ""  # "", "enhanced", "legacy": one multi-frame file
    shared: bool = False  # multi-frame: orientation, spacing and rescaling in the shared group, not by frame
    shuffle_frames: bool = False  # multi-frame: frames are not stored in order
    study_uid: str = ""  # "" = new
    series_uid: str = ""
    series_number: int = 2
    tags: Mapping[str, Any] = field(default_factory=dict)  # replaced at the end; None removes
    slice_tags: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # the same for single slices


def slice_positions(options: Options, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where slices lie: ImagePositionPatient (n, 3) in mm and ImageOrientationPatient (6,).

    The stack of a tilted gantry grows along the table (z), so its slices are sheared against each other.
    """
    column, row = (np.array(v) for v in _PLANES[options.plane])
    angle = np.radians(options.tilt_deg)
    if options.tilt_deg:
        row = np.array([0.0, np.cos(angle), -np.sin(angle)])
    if options.direction is not None:
        column, row = np.array(options.direction[:3], float), np.array(options.direction[3:], float)
    heights = np.asarray(
        options.heights_mm if options.heights_mm is not None else np.arange(count) * options.spacing_mm[0]
    )
    normal = np.cross(column, row)
    along = np.array([0.0, 0.0, 1.0]) / np.cos(angle) if options.tilt_deg else normal
    return np.array(options.origin_lps) + heights[:, None] * along, np.concatenate([column, row])


def tilted_slices(hu: NDArray[np.int16], spacing_mm: tuple[float, float, float], tilt_deg: float) -> NDArray[np.int16]:
    """A straight volume (z, y, x) as a tilted gantry sees it: as many slices of the same size, linear between voxels.

    Written with `tilt_deg` and the origin of the volume, each pixel lies where it was sampled.
    """
    angle = np.radians(tilt_deg)
    k, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in hu.shape), indexing="ij")
    height = k * spacing_mm[0] / np.cos(angle) - y * spacing_mm[1] * np.sin(angle)
    index = [height / spacing_mm[0], y * np.cos(angle), x]
    sampled = map_coordinates(hu.astype(np.float32), index, order=1, mode="constant", cval=-1000.0)
    return np.asarray(np.rint(sampled), np.int16)


def write_dicom(folder: Path, hu: NDArray[np.int16], options: Options | None = None, **changes: Any) -> list[Path]:
    """Write slices as one DICOM series.

    Args:
        folder: where to; made when it is not there.
        hu: (slices, rows, columns) Hounsfield units; for axial slices rows grow to posterior, columns to the left.
        options: how; `changes` replace single ones of them.

    Returns:
        The files, in the order of the slices (a duplicate follows its slice).
    """
    options = replace(options or Options(), **changes)
    options = replace(
        options, study_uid=options.study_uid or generate_uid(), series_uid=options.series_uid or generate_uid()
    )
    folder.mkdir(parents=True, exist_ok=True)
    positions, direction = slice_positions(options, len(hu))
    order = [k for k in range(len(hu)) if k not in options.drop for _ in range(1 + (k in options.duplicate))]
    if options.enhanced:
        return [_write_enhanced(folder, hu, positions, direction, order, options)]
    draw = np.random.default_rng(0)
    numbers = draw.permutation(len(order)) if options.shuffle else np.arange(len(order))
    files: list[Path] = []
    for at, k in enumerate(order):
        again = at > 0 and order[at - 1] == k
        plane = hu[k] + np.int16(7) if again and options.duplicate_differs else hu[k]
        data = _slice(plane, positions[k], direction, _rescale(options, k), options)
        if (number := _instance_number(options, at, len(order))) is not None:
            data.InstanceNumber = number
        _replace(data, {**options.tags, **options.slice_tags.get(k, {})})
        path = folder / f"{options.prefix}{numbers[at] + 1:04d}{'.dcm' if options.names == 'dcm' else ''}"
        _save(data, path, options)
        files.append(path)
    return files


def _rescale(options: Options, k: int) -> tuple[float, float]:
    first = options.rescale[0]
    return options.rescale if isinstance(first, (int, float)) else options.rescale[k]  # type: ignore[return-value]  # told apart above


def _instance_number(options: Options, at: int, count: int) -> int | None:
    if options.instance_numbers == "none":
        return None
    if options.instance_numbers == "shuffled":
        return int(np.random.default_rng(1).permutation(count)[at]) + 1
    return {"right": at + 1, "reversed": count - at, "same": 1}[options.instance_numbers]


def _stored(hu: NDArray[np.int16], rescale: tuple[float, float], options: Options) -> bytes:
    """Pixel bytes. A value that does not fit raises: the writer loses nothing."""
    slope, intercept = rescale
    stored = np.rint((hu.astype(np.float64) - intercept) / slope)
    if not np.array_equal(stored * slope + intercept, hu):
        raise ValueError("the rescaling does not give these HU")
    low = -(1 << (options.bits - 1)) if options.signed else 0
    if stored.min() < low or stored.max() >= low + (1 << options.bits):
        raise ValueError(f"stored {stored.min()}..{stored.max()} do not fit {options.bits} bits")
    order = ">" if options.syntax == "big" else "<"
    return stored.astype(f"{order}{'i' if options.signed else 'u'}2").tobytes()


def _common(options: Options, rows: int, columns: int, sop_class: str) -> Dataset:
    """What slices and multi-frame files share, patient and all: made-up, to find what leaks."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAXES[options.syntax]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = options.series_uid, options.study_uid, "CT"
    data.FrameOfReferenceUID, data.SeriesNumber = generate_uid(), options.series_number
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "4711", "19270304"
    data.PatientAge, data.PatientSex, data.AccessionNumber = "093Y", "F", "A998877"
    data.StudyDate, data.StudyTime, data.InstitutionName = "20200229", "101112", "Saint Nowhere"
    data.StudyDescription, data.SeriesDescription, data.ProtocolName = "CT HEAD", "Head 5.0 Hr40s", "Head routine"
    data.BodyPartExamined, data.Manufacturer, data.ManufacturerModelName = "HEAD", "ACME", "Scan 64"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if options.plane == "axial" else options.plane.upper()]
    data.Rows, data.Columns = rows, columns
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, options.photometric
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, options.bits, options.bits - 1
    data.PixelRepresentation = int(options.signed)
    if options.tag_sign is not None:
        data.GantryDetectorTilt = f"{options.tag_sign * options.tilt_deg:g}"
    return data


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    return [f"{v:.10g}"[:16] for v in values]


def _slice(
    hu: NDArray[np.int16],
    position: NDArray[np.float64],
    direction: NDArray[np.float64],
    rescale: tuple[float, float],
    options: Options,
) -> Dataset:
    data = _common(options, *hu.shape, CTImageStorage)
    data.KVP, data.ConvolutionKernel = "120", ["Hr40s", "3"]
    data.SliceThickness = f"{options.spacing_mm[0]:g}"
    data.ImageOrientationPatient, data.ImagePositionPatient = _numbers(direction), _numbers(position)
    data.PixelSpacing = _numbers(options.spacing_mm[1:])
    data.RescaleSlope, data.RescaleIntercept = f"{rescale[0]:g}", f"{rescale[1]:g}"
    data.PixelData = _stored(hu, rescale, options)
    return data


def _write_enhanced(
    folder: Path,
    hu: NDArray[np.int16],
    positions: NDArray[np.float64],
    direction: NDArray[np.float64],
    order: list[int],
    options: Options,
) -> Path:
    """One multi-frame file; legacy converted objects keep kVp and kernel among their unassigned attributes."""
    legacy = options.enhanced == "legacy"
    sop_class = LegacyConvertedEnhancedCTImageStorage if legacy else EnhancedCTImageStorage
    data = _common(options, *hu.shape[1:], sop_class)
    if options.shuffle_frames:
        order = [order[k] for k in np.random.default_rng(2).permutation(len(order))]
    shared, frames = Dataset(), []
    for number, k in enumerate(order):
        frame = Dataset()
        frame.PlanePositionSequence = [_item(ImagePositionPatient=_numbers(positions[k]))]
        frame.FrameContentSequence = [_item(StackID="1", InStackPositionNumber=number + 1)]
        target = shared if options.shared else frame
        slope, intercept = _rescale(options, k)
        target.PlaneOrientationSequence = [_item(ImageOrientationPatient=_numbers(direction))]
        target.PixelMeasuresSequence = [
            _item(PixelSpacing=_numbers(options.spacing_mm[1:]), SliceThickness=f"{options.spacing_mm[0]:g}")
        ]
        target.PixelValueTransformationSequence = [
            _item(RescaleSlope=f"{slope:g}", RescaleIntercept=f"{intercept:g}", RescaleType="HU")
        ]
        target.CTImageFrameTypeSequence = [_item(FrameType=list(data.ImageType))]
        if legacy:
            target.UnassignedPerFrameConvertedAttributesSequence = [_item(KVP="120", ConvolutionKernel=["Hr40s", "3"])]
        else:
            target.CTXRayDetailsSequence = [_item(KVP=120.0)]
            target.CTReconstructionSequence = [_item(ConvolutionKernel="Hr40s")]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.NumberOfFrames, data.InstanceNumber = len(frames), 1
    data.PixelData = b"".join(_stored(hu[k], _rescale(options, k), options) for k in order)
    _replace(data, options.tags)
    path = folder / f"{options.prefix}0001{'.dcm' if options.names == 'dcm' else ''}"
    _save(data, path, options)
    return path


def _item(**tags: Any) -> Dataset:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def _replace(data: Dataset, tags: Mapping[str, Any]) -> None:
    for name, value in tags.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            delattr(data, name)


def _save(data: Dataset, path: Path, options: Options) -> None:
    if options.syntax in _COMPRESSED:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.compress(SYNTAXES[options.syntax], generate_instance_uid=False)
    elif options.syntax == "deflated":
        data["PixelData"].VR = "OW"
    if options.preamble:
        data.save_as(path, enforce_file_format=True)
        return
    data.file_meta = FileMetaDataset()
    pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
