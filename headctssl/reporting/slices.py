"""Slices: three planes of a stored scan in the brain window and one in the bone window, for people to look at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headctssl.contract import Window
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.reporting.page import Picture, data_uri
from headctssl.volume.mask_store import StoredLabels
from headctssl.volume.store import StoredCase

__all__ = ["BONE", "BRAIN", "CONVENTION", "Slices", "case_slices"]

BRAIN = Window(level=40, width=80)
BONE = Window(level=600, width=2800)

SIDE = 224
"""Most pixels along a side of a picture; 48 such pictures stay under 3.3 MB whatever they show."""

CONVENTION = (
    "Slices show stored voxels, nothing else: brain window level 40, width 80 HU; bone window level 600, width 2800. "
    "Axial and coronal slices are seen from the feet and from the front: the patient's left is on the right. "
    "In sagittal slices the face is on the left. The slices of a case have one scale."
)

_AXIAL = 0.5  # height of the head at which the ventricles are usually met


@dataclass(frozen=True)
class Slices:
    """Pictures of a case and where they were taken."""

    pictures: tuple[Picture, ...]
    where: str


def case_slices(index: CaseIndex, case_id: str) -> Slices:
    """Pictures of a stored case: axial, coronal and sagittal in the brain window, axial in the bone window.

    The planes pass through the largest cross-section of the stored segmentation where there is one with voxels,
    else through the middle of the head.

    Args:
        index: the stored cases.
        case_id: one of them.

    Raises:
        DataError: the case is not stored.
        CorruptCaseError: the stored case is damaged.
    """
    position = index.position(case_id)
    case = StoredCase(index.path(position))
    hu = case.read_all()[0]
    at, where = _planes(index.folder, case_id, case)
    z, y, x = at
    sz, sy, sx = case.meta.spacing_mm
    planes = (
        ("axial, brain", hu[z], (sy, sx), BRAIN),
        ("coronal, brain", hu[::-1, y], (sz, sx), BRAIN),
        ("sagittal, brain", hu[::-1, :, x], (sz, sy), BRAIN),
        ("axial, bone", hu[z], (sy, sx), BONE),
    )
    widest = max(plane.shape[1] * across for _, plane, (_, across), _ in planes)
    pictures = tuple(
        Picture(
            name,
            data_uri(_png(_grey(plane, window), spacing)),
            f"{case_id}, {name} window, {where}",
            round(100 * plane.shape[1] * spacing[1] / widest),
        )
        for name, plane, spacing, window in planes
    )
    return Slices(pictures, where)


def _planes(folder: Path, case_id: str, case: StoredCase) -> tuple[tuple[int, int, int], str]:
    """Indices (z, y, x) of the three planes, and in words where they lie."""
    if "segmentation" in case.meta.masks:
        labels = StoredLabels(mask_path(folder, case_id, "segmentation"))
        marked = labels.read(labels.whole) > 0
        if marked.any():
            sums = (marked.sum((1, 2)), marked.sum((0, 2)), marked.sum((0, 1)))
            z, y, x = (int(s.argmax()) for s in sums)
            return (z, y, x), "through the largest cross-section of the reference segmentation"
    (z0, z1), (y0, y1), (x0, x1) = case.meta.head_box
    last = [n - 1 for n in case.shape[1:]]
    middle = (z0 + _AXIAL * (z1 - z0), (y0 + y1) / 2, (x0 + x1) / 2)
    z, y, x = (min(max(0, int(m)), end) for m, end in zip(middle, last, strict=True))
    return (z, y, x), "through the middle of the head"


def _grey(hu: NDArray[np.int16], window: Window) -> NDArray[np.uint8]:
    share = (hu.astype(np.float32) - (window.level - window.width / 2)) / window.width
    return np.asarray(np.clip(share, 0, 1) * 255, np.uint8)


def _png(grey: NDArray[np.uint8], spacing: tuple[float, float]) -> bytes:
    """A PNG of square pixels, at most `SIDE` along its longer side and never finer than the voxels need."""
    down, across = (n * s for n, s in zip(grey.shape, spacing, strict=True))
    pixel = max(min(spacing), max(down, across) / SIDE)
    size = (max(1, round(across / pixel)), max(1, round(down / pixel)))
    image = Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
