"""Separable: a volume times one matrix per axis; sparse and slab by slab on a CPU, whole matrices elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

__all__ = ["Matrices", "along_axes"]

Matrices = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""One matrix (samples out, samples in) per axis (z, y, x)."""

_SLAB = 16  # planes at once on a CPU: what lies between two steps stays in the second-level cache
_BAND = 24  # columns of the result per product along x: skips most zeros, large enough for BLAS


def along_axes(volume: Tensor, matrices: Matrices, fill: float = 0.0) -> Tensor:
    """Multiply every axis of a volume with its matrix, as if `fill` lay wherever a row sums to less than 1.

    On a CPU, y and z are products with sparse matrices, 2 to 6 numbers a row, which add whole lines of voxels;
    along x, where the lines lie, the bands of the matrix are products of BLAS. Measured for 127 x 173 x 145 voxels to
    96^3 on one core: 10.5 -> 6 ms against bands along all axes.

    Args:
        volume: int16 or float32 (D, H, W), any strides, on any device.
        matrices: (d, D), (h, H), (w, W).
        fill: value outside the volume.

    Returns:
        float32 (d, h, w) on the same device.
    """
    sums = [rows.sum(axis=1) for rows in matrices]
    # Numbers above `fill`: what the weights leave out is `fill` then. Nothing to do where they leave nothing out.
    shift = 0.0 if all(np.abs(s - 1.0).max() < 1e-6 for s in sums) else fill
    out = _sparse(volume, matrices, shift) if volume.device.type == "cpu" else _dense(volume, matrices, shift)
    return out.add_(shift) if shift else out


def _dense(volume: Tensor, matrices: Matrices, shift: float) -> Tensor:
    """Whole matrices: what a GPU is best at."""
    z, y, x = (torch.from_numpy(np.ascontiguousarray(rows)).to(volume.device) for rows in matrices)
    planes = torch.matmul(y, torch.matmul(volume.float() - shift, x.t()))
    return torch.mm(z, planes.flatten(1)).view(len(z), len(y), len(x))


def _sparse(volume: Tensor, matrices: Matrices, shift: float) -> Tensor:
    """Slab by slab to float, y, x; then z over all planes."""
    depth, height, width = volume.shape
    rows_z, rows_y, rows_x = (len(rows) for rows in matrices)
    slab = min(depth, _SLAB)
    along_y, bands = _repeated(matrices[1], slab), _bands(matrices[2])
    values = torch.empty((slab * height, width))
    planes = torch.empty((depth, rows_y, rows_x))
    for at in range(0, depth, slab):
        first = min(at, depth - slab)  # the last slab is a whole one again
        values.view(slab, height, width).copy_(volume[first : first + slab])
        if shift:
            values.sub_(shift)
        narrow = torch.from_numpy(along_y @ values.numpy())
        flat = planes[first : first + slab].view(-1, rows_x)
        for rows, columns, weights in bands:
            torch.mm(narrow[:, columns], weights, out=flat[:, rows])
    out: NDArray[np.float32] = sparse.csr_array(matrices[0]) @ planes.view(depth, -1).numpy()
    return torch.from_numpy(out.reshape(rows_z, rows_y, rows_x))


def _repeated(rows: NDArray[np.float32], times: int) -> sparse.csr_array:
    """The block-diagonal matrix that multiplies `times` planes lying under each other, each with `rows`."""
    one = sparse.csr_array(rows)
    block = np.arange(times)[:, None]
    columns = (one.indices + rows.shape[1] * block).ravel()
    ends = np.append(0, (one.indptr[1:] + one.nnz * block).ravel())
    return sparse.csr_array(
        (np.tile(one.data, times), columns, ends), shape=(times * rows.shape[0], times * rows.shape[1])
    )


def _bands(rows: NDArray[np.float32]) -> list[tuple[slice, slice, Tensor]]:
    """Some rows of a matrix, the columns that are not zero in them, and that part of it transposed."""
    bands = []
    for first in range(0, len(rows), _BAND):
        part = rows[first : first + _BAND]
        used = np.flatnonzero(part.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
        weights = torch.from_numpy(np.ascontiguousarray(part[:, columns].T))
        bands.append((slice(first, first + len(part)), columns, weights))
    return bands
