"""Stacks: synthetic slices of landmarks drawn in patient space, as DICOM series and NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

Array = NDArray[np.float64]

GE_ROW = np.array([0.0, 0.9483237, -0.3173047])  # direction in which the row index grows: 18.5 degrees of tilt
GE_COLUMN = np.array([1.0, 0.0, 0.0])
GE_PIXEL_MM = 0.4882812
GE_FIRST = np.array([-125.0, -123.5404569, 5.8360586])
# Table positions of the real series: 14 slices 4.22 mm apart (4.0 along the normal), 1.14, then 7.38 (7.0).
GE_TABLE_MM = np.concatenate([np.arange(14) * 4.22, 56.0 + np.arange(14) * 7.38])


def ge_positions() -> Array:
    """ImagePositionPatient (L, P, S) of 28 slices of the geometry of a real tilted GE series, (28, 3) mm."""
    return GE_FIRST + GE_TABLE_MM[:, None] * np.array([0.0, 0.0, 1.0])


def landmarks(positions: Array, row: Array, column: Array, rows_mm: float, columns_mm: float) -> Array:
    """Points (n, 3) in patient space (L, P, S) inside the stack, far from each other and from its border."""
    run = positions[-1] - positions[0]
    points = []
    for k, share in enumerate((0.16, 0.37, 0.6, 0.84)):
        for y, x in ((0.28, 0.28), (0.72, 0.72)) if k % 2 else ((0.28, 0.72), (0.72, 0.28)):
            points.append(positions[0] + share * run + y * rows_mm * row + x * columns_mm * column)
    return np.array(points)


def draw(
    points: Array, positions: Array, row: Array, column: Array, pixel_mm: float, shape: tuple[int, int], sigma: float
) -> NDArray[np.int16]:
    """Slices (n, rows, columns) in HU of Gaussian balls of 1500 HU in air, each pixel sampled where it is."""
    hu = np.full((len(positions), *shape), -1000.0)
    normal = np.cross(column, row)
    for point in points:
        for k, position in enumerate(positions):
            away = point - position
            height = away @ normal
            if abs(height) > 5 * sigma:
                continue
            y = np.arange(shape[0]) * pixel_mm - away @ row
            x = np.arange(shape[1]) * pixel_mm - away @ column
            plane = np.exp(-(y**2) / (2 * sigma**2))[:, None] * np.exp(-(x**2) / (2 * sigma**2))
            hu[k] += 1500 * np.exp(-(height**2) / (2 * sigma**2)) * plane
    return np.rint(hu).astype(np.int16)


def centroid(hu: NDArray[np.int16], affine: Array, point_spl: Array, reach_mm: float) -> Array:
    """Where the ball near a point is in a volume: centre of mass of what is above air, (S, P, L) mm."""
    index = np.linalg.inv(affine) @ [*point_spl, 1.0]
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    low = [max(0, int(np.floor(i - reach_mm / s))) for i, s in zip(index[:3], steps, strict=True)]
    high = [int(np.ceil(i + reach_mm / s)) + 1 for i, s in zip(index[:3], steps, strict=True)]
    part = hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float64)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in part.shape), indexing="ij"), axis=-1) + np.array(low)
    places = grid @ affine[:3, :3].T + affine[:3, 3]
    weight = np.maximum(part + 1000.0, 0.0)
    weight = weight * (np.linalg.norm(places - point_spl, axis=-1) <= reach_mm)
    result: Array = (places * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    return result


def largest_error_mm(hu: NDArray[np.int16], affine: Array, points_lps: Array, reach_mm: float) -> float:
    """Largest distance of a ball from where it was drawn, in mm."""
    return max(float(np.linalg.norm(centroid(hu, affine, p[::-1], reach_mm) - p[::-1])) for p in points_lps)


def write_series(
    folder: Path,
    hu: NDArray[np.int16],
    positions: Array,
    row: Array,
    column: Array,
    pixel_mm: float,
    *,
    uid: str | None = None,
    names: Sequence[str] | None = None,
    rescale: Sequence[tuple[float, float]] | None = None,
    **tags: object,
) -> list[Path]:
    """Write slices as a DICOM CT series in a shuffled order of names; `tags` replace or (None) remove tags."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = uid or generate_uid(), generate_uid()
    order = np.random.default_rng(0).permutation(len(hu))
    files = []
    for k, plane in enumerate(hu):
        slope, intercept = rescale[k] if rescale else (1.0, -1024.0)
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, study, "CT"
        data.PatientName, data.PatientID, data.PatientAge, data.PatientSex = "Doe^Jane", "4711", "093Y", "F"
        data.StudyDate, data.StudyDescription, data.KVP = "20200229", "CT HEAD", "120"
        data.ConvolutionKernel, data.SliceThickness, data.Manufacturer = ["Hr40s", "3"], "4.0", "ACME"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImageOrientationPatient = [f"{v:.7f}" for v in (*column, *row)]
        data.ImagePositionPatient = [f"{v:.7f}" for v in positions[k]]
        data.PixelSpacing = [f"{pixel_mm:.7f}"] * 2
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = f"{slope:g}", f"{intercept:g}"
        stored = np.rint((plane.astype(np.float64) - intercept) / slope)
        data.PixelData = stored.astype("<u2").tobytes()
        for tag, value in tags.items():
            if value is None:
                delattr(data, tag)
            else:
                setattr(data, tag, value)
        path = folder / (names[k] if names else f"{order[k]:04d}.dcm")
        data.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def write_sheared_nifti(
    path: Path, hu: NDArray[np.int16], positions: Array, row: Array, column: Array, pixel_mm: float
) -> None:
    """Write evenly spaced slices as NIfTI whose sform keeps the tilt as a shear."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = column * pixel_mm, row * pixel_mm
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    affine[:2] *= -1  # L, P -> R, A
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    nib.save(image, path)
