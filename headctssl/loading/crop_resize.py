"""Crop and resize: samples a grid from an int16 volume, anti-aliased, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.loading.draws import Grid
from headctssl.loading.separable import Taps, along_axes, together
from headctssl.volume.geometry import AIR_HU, axis_taps

__all__ = ["Cover", "crop_and_resize", "crop_and_resize_together"]

Cover = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""Per axis (z, y, x) the share (n,) of each sample that lies on stored voxels; of a voxel it is their product."""


def crop_and_resize(volume: Tensor, grid: Grid, box: NDArray[np.float64], fill: float = AIR_HU) -> tuple[Tensor, Cover]:
    """Sample a grid from one volume.

    Only the stored voxels under the grid are touched, so a view is the same whatever lies around them, and a small
    crop is cheap. Flips cost nothing: the weights are reversed.

    Args:
        volume: int16 (D, H, W) HU, on any device.
        grid: where to sample, in voxel index coordinates.
        box: (3, 2) the stored voxels; everything outside it counts as `fill`.
        fill: value outside the box, air by default.

    Returns:
        HU, float32 of the grid's shape, and which share of each sample lies in the box.
    """
    taps: list[Taps] = []
    for axis in range(3):
        start, step, count = grid.start[axis], grid.step[axis], grid.shape[axis]
        reach = max(1.0, step)
        first = max(int(box[axis, 0]), int(np.floor(start - reach)))
        last = min(int(box[axis, 1]), int(np.ceil(start + (count - 1) * step + reach)) + 1)
        if last <= first:
            z, y, x = (np.zeros(n, np.float32) for n in grid.shape)
            return torch.full(grid.shape, fill, device=volume.device), (z, y, x)
        volume = volume.narrow(axis, first, last - first)
        begin, weights = axis_taps(last - first, count, start - first, step)
        columns = np.clip(begin[:, None] + np.arange(weights.shape[1]), 0, last - first - 1)
        turn = slice(None, None, -1) if grid.flip[axis] else slice(None)
        taps.append(Taps(columns[turn], weights[turn], last - first))
    z, y, x = (np.minimum(axis.sums, 1.0) for axis in taps)
    return along_axes(volume, (taps[0], taps[1], taps[2]), fill), (z, y, x)


def crop_and_resize_together(
    volume: Tensor, grids: Sequence[Grid], boxes: NDArray[np.float64], fill: float = AIR_HU
) -> tuple[Tensor, list[Cover]]:
    """Sample one grid from each of several volumes, with a few calls for all of them.

    Measured on a GPU: one by one, 64 scans cost 0.4 s of calls, while the GPU had little to do.

    Args:
        volume: int16 (B, D, H, W) HU.
        grids: B grids of one shape.
        boxes: (B, 3, 2) the stored voxels.
        fill: value outside a box, air by default.

    Returns:
        HU, float32 (B, d, h, w), and a cover per volume.
    """
    taps: list[Taps] = []
    for axis in range(3):
        start, step = (np.array([getattr(grid, name)[axis] for grid in grids]) for name in ("start", "step"))
        low, high = boxes[:, axis, 0].astype(np.int64), boxes[:, axis, 1].astype(np.int64)
        begin, weights = axis_taps(high - low, grids[0].shape[axis], start - low, step)
        size = volume.shape[1 + axis]
        columns = np.clip(begin[..., None] + np.arange(weights.shape[-1]) + low[:, None, None], 0, size - 1)
        flip = np.array([grid.flip[axis] for grid in grids])
        columns[flip], weights[flip] = columns[flip, ::-1], weights[flip, ::-1]
        taps.append(Taps(columns, weights, size))
    covers = [np.minimum(axis.sums, 1.0) for axis in taps]
    values = together(volume, (taps[0], taps[1], taps[2]), fill)
    return values, [(z, y, x) for z, y, x in zip(*covers, strict=True)]
