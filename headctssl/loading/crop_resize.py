"""Crop and resize: samples a grid from an int16 volume, anti-aliased, axis by axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.loading.draws import Grid
from headctssl.loading.separable import Taps, along_axes, in_blocks, together
from headctssl.volume.geometry import AIR_HU, axis_taps

__all__ = ["Cover", "crop_and_resize", "crop_and_resize_in_blocks", "crop_and_resize_together"]

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
    volume, taps, cover = _under(volume, grid, box)
    if taps is None:
        return torch.full(grid.shape, fill, device=volume.device), cover
    return along_axes(volume, taps, fill), cover


def crop_and_resize_in_blocks(
    volume: Tensor, grid: Grid, box: NDArray[np.float64], fill: float = AIR_HU
) -> tuple[Iterable[tuple[slice, Tensor]], Cover]:
    """As `crop_and_resize` on a CPU, with the planes of the result block by block, as `separable.in_blocks`."""
    volume, taps, cover = _under(volume, grid, box)
    if taps is None:
        return [(slice(0, grid.shape[0]), torch.full(grid.shape, fill))], cover
    return in_blocks(volume, taps, fill), cover


def _under(
    volume: Tensor, grid: Grid, box: NDArray[np.float64]
) -> tuple[Tensor, tuple[Taps, Taps, Taps] | None, Cover]:
    """The stored voxels under a grid, the weights on them, None where there are no such voxels, and the cover."""
    columns, weights = _taps([grid], box[None])
    taps: list[Taps] = []
    for axis, count in enumerate(grid.shape):
        turn = slice(None, None, -1) if grid.flip[axis] else slice(None)
        share, place = weights[0, axis, :count][turn], columns[0, axis, :count][turn]
        used = place[share != 0.0]
        if not used.size:
            z, y, x = (np.zeros(n, np.float32) for n in grid.shape)
            return volume, None, (z, y, x)
        first, last = int(used.min()), int(used.max())
        volume = volume.narrow(axis, first, last - first + 1)
        taps.append(Taps(np.minimum(np.maximum(place, first), last) - first, share, last - first + 1))
    z, y, x = (np.minimum(axis.sums, 1.0) for axis in taps)
    return volume, (taps[0], taps[1], taps[2]), (z, y, x)


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
    columns, weights = _taps(grids, boxes)
    taps: list[Taps] = []
    for axis, count in enumerate(grids[0].shape):
        place, share = columns[:, axis, :count], weights[:, axis, :count]
        flip = np.array([grid.flip[axis] for grid in grids])
        place[flip], share[flip] = place[flip, ::-1], share[flip, ::-1]
        size = volume.shape[1 + axis]
        taps.append(Taps(np.clip(place, 0, size - 1), share, size))
    covers = [np.minimum(axis.sums, 1.0) for axis in taps]
    values = together(volume, (taps[0], taps[1], taps[2]), fill)
    return values, [(z, y, x) for z, y, x in zip(*covers, strict=True)]


def _taps(grids: Sequence[Grid], boxes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and weights (B, 3, n, K) of every axis of every grid, n of the longest axis; 0 outside the boxes.

    All in one call: three calls for each view took a twentieth of its time more.
    """
    start, step = (np.array([getattr(grid, name) for grid in grids]) for name in ("start", "step"))
    low, high = (boxes[..., side].astype(np.int64) for side in (0, 1))
    begin, weights = axis_taps(high - low, max(grids[0].shape), start - low, step)
    return (begin + low[..., None])[..., None] + np.arange(weights.shape[-1]), weights
