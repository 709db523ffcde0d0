"""Crop and resize: samples a grid from an int16 volume, one small anti-aliased matrix product per axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.loading.draws import Grid
from headctssl.volume.geometry import AIR_HU, axis_weights

__all__ = ["crop_and_resize"]

_BLOCK = 16  # output samples per band of the weights: skips their zeros, large enough for BLAS
_SLAB = 16  # planes turned into float at once on a CPU: stays in the second-level cache


@dataclass(frozen=True)
class _Band:
    """Some rows of the weights of an axis and the columns that are not zero in them."""

    rows: slice
    columns: slice
    weights: Tensor  # float32 (rows, columns)


def crop_and_resize(
    volume: Tensor, grid: Grid, box: NDArray[np.float64], out: Tensor | None = None, fill: float = AIR_HU
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Sample a grid from one volume: planes first (x, then y), then z.

    Only the stored voxels under the grid are touched, so a view is the same whatever lies around them, and a small
    crop is cheap. Flips cost nothing: the rows of the weights are reversed. On a CPU the volume is turned into
    float a slab at a time and the weights are used in bands (measured: 41 -> 11 ms for 180 x 230 x 190 to 96^3).

    Args:
        volume: int16 (D, H, W) HU, on any device.
        grid: where to sample, in voxel index coordinates.
        box: (3, 2) the stored voxels; everything outside it counts as `fill`.
        out: float32 of the grid's shape, contiguous, to write to; a new one when None.
        fill: value outside the box, air by default.

    Returns:
        HU, float32 of the grid's shape, and per axis the share (n,) of each sample that lies in the box.
    """
    device = volume.device
    out = torch.empty(grid.shape, device=device) if out is None else out
    matrices: list[NDArray[np.float32]] = []
    for axis in range(3):
        start, step, count = grid.start[axis], grid.step[axis], grid.shape[axis]
        reach = max(1.0, step)
        first = max(int(box[axis, 0]), int(np.floor(start - reach)))
        last = min(int(box[axis, 1]), int(np.ceil(start + (count - 1) * step + reach)) + 1)
        if last <= first:
            z, y, x = (torch.zeros(n, device=device) for n in grid.shape)
            return out.fill_(fill), (z, y, x)
        volume = volume.narrow(axis, first, last - first)
        rows = axis_weights(last - first, count, start - first, step)
        matrices.append(np.ascontiguousarray(rows[::-1] if grid.flip[axis] else rows))
    z, y, x = (torch.from_numpy(np.minimum(rows.sum(axis=1), 1.0)).to(device) for rows in matrices)
    _resample(volume, matrices, out, fill)
    return out, (z, y, x)


def _resample(volume: Tensor, matrices: list[NDArray[np.float32]], out: Tensor, fill: float) -> None:
    """Slab by slab: to float, x, y, and what the slab adds along z to the samples it touches."""
    depth, height, width = volume.shape
    out_z, out_y, out_x = out.shape
    device = volume.device
    on_cpu = device.type == "cpu"
    bands_y, bands_x = (_bands(rows, _BLOCK if on_cpu else len(rows), device) for rows in matrices[1:])
    slab = min(depth, _SLAB if on_cpu else depth)
    values = torch.empty((slab, height, width), device=device)
    narrow = torch.empty((slab, height, out_x), device=device)
    planes = torch.empty((slab, out_y, out_x), device=device)
    flat_out = out.fill_(fill).view(out_z, -1)
    for first in range(0, depth, slab):
        count = min(slab, depth - first)
        weights_z = matrices[0][:, first : first + count]
        used = np.flatnonzero(weights_z.any(axis=1))
        if not used.size:
            continue
        # Numbers above `fill`: what the weights leave out at the border then is `fill`.
        values[:count].copy_(volume[first : first + count]).sub_(fill)
        flat, flat_narrow = values[:count].view(-1, width), narrow[:count].view(-1, out_x)
        for band in bands_x:
            torch.mm(flat[:, band.columns], band.weights.t(), out=flat_narrow[:, band.rows])
        for band in bands_y:
            planes[:count, band.rows] = torch.matmul(band.weights, narrow[:count, band.columns])
        rows = slice(int(used[0]), int(used[-1]) + 1)
        weights = torch.from_numpy(np.ascontiguousarray(weights_z[rows])).to(device)
        flat_out[rows].addmm_(weights, planes[:count].view(count, -1))


def _bands(rows: NDArray[np.float32], block: int, device: torch.device) -> list[_Band]:
    bands = []
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        used = np.flatnonzero(part.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
        weights = torch.from_numpy(np.ascontiguousarray(part[:, columns])).to(device)
        bands.append(_Band(slice(first, first + len(part)), columns, weights))
    return bands
