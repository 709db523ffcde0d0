"""Head: where the head is in a scan, without its holder, the table and the air around it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headctssl.errors import DataError
from headctssl.types import Box, Triple
from headctssl.volume.resample import resample_to_mask

__all__ = ["Head", "find_head"]

_COARSE_MM = 3.5  # grid of the search
_TISSUE_HU = -250  # skin and fat are above; air, foam and the filling of head holders are below
_OPENING_MM = 7.0  # plates and shells thinner than twice this are no head: holders, tables, cushions, tubes
_REGROWTH_MM = 5.0  # ears and nose are thin too: what hangs on the head within this distance is taken back
_SMALLEST_ML = 100.0  # one 5 mm slice through a head has 125 ml
_SMALLEST_WIDTH_MM = 60.0  # a newborn's head is about 90 mm wide
_WITHIN_PLANES = np.stack([np.zeros((3, 3), bool), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3), bool)])
_TALLEST_MM = 300.0  # vertex to chin is at most about 260 mm, also tilted; what is below is neck and shoulders


@dataclass(frozen=True)
class Head:
    """The head in a scan. The voxels of the scan are not altered."""

    box: Box  # voxels of the scan around the head
    coarse_mask: NDArray[np.bool_]  # (z, y, x) on a grid of every `stride`-th voxel
    stride: tuple[int, int, int]  # voxels of the scan per coarse voxel
    scan_shape: tuple[int, int, int]  # voxels of the scan

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Bool (z, y, x) of the shape of the scan, True in the head, inner air included."""
        return self.mask_on((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), self.scan_shape)

    def mask_on(self, start: Triple, step: Triple, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        """The mask on another grid, with the arguments of `resample.resample`; much faster than resampling `mask`.

        Args:
            start: scan voxel (z, y, x) of the first sample's centre.
            step: scan voxels per sample.
            shape: samples (z, y, x).
        """
        coarse_start = tuple(a / s for a, s in zip(start, self.stride, strict=True))
        coarse_step = tuple(a / s for a, s in zip(step, self.stride, strict=True))
        padded = np.pad(self.coarse_mask, 1, mode="edge").astype(np.float32)  # samples beyond the last coarse centre
        shifted = (coarse_start[0] + 1, coarse_start[1] + 1, coarse_start[2] + 1)
        return resample_to_mask(padded, shifted, (coarse_step[0], coarse_step[1], coarse_step[2]), shape)


def find_head(hu: NDArray[np.int16], spacing_mm: Triple) -> Head:
    """The largest solid object of head size, without the head holder or table.

    Works on every n-th voxel (about 3.5 mm): tissue is opened by a ball so that thin plates and shells drop out, the
    largest connected rest is the head, thin parts that hang on it are grown back, inner air is filled.

    Args:
        hu: (z, y, x) towards superior, posterior, left; HU.
        spacing_mm: (z, y, x) in mm.

    Raises:
        DataError: no object of head size.
    """
    stride = tuple(max(1, round(_COARSE_MM / s)) for s in spacing_mm)
    coarse = np.ascontiguousarray(hu[:: stride[0], :: stride[1], :: stride[2]])
    step_mm = tuple(s * n for s, n in zip(spacing_mm, stride, strict=True))
    mask = _solid(coarse > _TISSUE_HU, step_mm)
    mask = _above_shoulders(mask, step_mm[0])
    _require_head(mask, step_mm)
    box = _box(mask, (stride[0], stride[1], stride[2]), hu.shape)
    return Head(box, mask, (stride[0], stride[1], stride[2]), (hu.shape[0], hu.shape[1], hu.shape[2]))


def _eroded(mask: NDArray[np.bool_], radius_mm: float, step_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    """Voxels further than the radius from any False voxel; what lies beyond the border counts as True."""
    return ~_grown(~mask, radius_mm, step_mm)


def _grown(mask: NDArray[np.bool_], radius_mm: float, step_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    """Voxels within the radius of any True voxel: shifted copies united, one per voxel of the ball.

    Balls are a few voxels wide here: 2 ms, where the distances of all voxels take 20.
    """
    reach = [int(radius_mm / s) + 1 for s in step_mm]
    padded = np.pad(mask, [(n, n) for n in reach])  # so that a shift of the flat array wraps nothing into the scan
    strides = (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
    flat = padded.ravel()
    margin = sum(n * stride for n, stride in zip(reach, strides, strict=True))
    grown = np.zeros(flat.size - 2 * margin, np.bool_)
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        if np.sqrt(sum((n * s) ** 2 for n, s in zip(shift, step_mm, strict=True))) <= radius_mm:
            first = margin + sum(n * stride for n, stride in zip(shift, strides, strict=True))
            grown |= flat[first : first + grown.size]
    inner = np.zeros(flat.size, np.bool_)
    inner[margin : margin + grown.size] = grown
    return inner.reshape(padded.shape)[tuple(slice(n, n + size) for n, size in zip(reach, mask.shape, strict=True))]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _solid(tissue: NDArray[np.bool_], step_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    core = _largest(_eroded(_filled(tissue), _OPENING_MM, step_mm))
    body = _grown(core, _OPENING_MM + _REGROWTH_MM, step_mm) & tissue
    # Growing over the gap to the holder takes pieces of it along: keep what is connected to the head.
    return _filled(_largest(body))


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill air enclosed in axial planes: sinuses, mastoid cells, mouth."""
    labels, count = ndimage.label(~mask, structure=_WITHIN_PLANES)
    outside = np.zeros(count + 1, np.bool_)
    for border in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[border] = True
    outside[0] = False
    return ~outside[labels]


def _above_shoulders(mask: NDArray[np.bool_], step_z_mm: float) -> NDArray[np.bool_]:
    rows = np.flatnonzero(mask.any(axis=(1, 2)))
    if rows.size == 0:
        return mask
    lowest = int(rows[-1]) + 1 - round(_TALLEST_MM / step_z_mm)
    if lowest > 0:
        mask = mask.copy()
        mask[:lowest] = False
    return mask


def _require_head(mask: NDArray[np.bool_], step_mm: tuple[float, ...]) -> None:
    volume_ml = float(mask.sum() * np.prod(step_mm) / 1000.0)
    extent = [float(np.ptp(i) + 1) * s for i, s in zip(np.nonzero(mask), step_mm, strict=True)] if mask.any() else []
    if volume_ml < _SMALLEST_ML or min(extent[1:]) < _SMALLEST_WIDTH_MM:
        size = "x".join(f"{e:.0f}" for e in extent) + " mm, " if extent else ""
        raise DataError(
            "There is no head in this scan.",
            got=f"the largest solid object has {size}{volume_ml:.0f} ml",
            expected=f"at least {_SMALLEST_ML:.0f} ml and {_SMALLEST_WIDTH_MM:.0f} mm in both axes of the plane",
            do="Check that the file is a head CT in Hounsfield units, or leave it out.",
        )


def _box(mask: NDArray[np.bool_], stride: tuple[int, int, int], shape: tuple[int, ...]) -> Box:
    """Scan voxels around the coarse mask: outwards to the next coarse sample that is not head."""
    bounds = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        start = max(0, (int(used[0]) - 1) * stride[axis] + 1)
        stop = min(shape[axis], (int(used[-1]) + 1) * stride[axis])
        bounds.append((start, stop))
    return (bounds[0], bounds[1], bounds[2])
