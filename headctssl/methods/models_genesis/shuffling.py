"""Shuffling: voxels change places within thousands of small windows (arXiv 1908.06912, local pixel shuffling)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.methods.boxes import Boxes, draw_boxes

__all__ = ["Shuffle", "draw_shuffle", "shuffle_sources", "shuffle_voxels"]

# Legend: K windows, P voxels of all windows together, N voxels of the volume.

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Shuffle:
    """Windows, and a number for each voxel of each window; the order of a window's numbers is its permutation."""

    windows: Boxes
    keys: NDArray[np.int32]  # (P,) the voxels of window 0, then of window 1, ...; each in the order of the volume


def draw_shuffle(generator: np.random.Generator, shape: Shape, count: int, side: float) -> Shuffle:
    """Draw windows and permutations.

    Args:
        generator: of the sample.
        shape: voxels (z, y, x) of the volume.
        count: K; the published 10,000 cover a voxel 1 to 2 times, whatever the size of the volume.
        side: longest side of a window over that of the volume; the shortest is one voxel, and the longest is never
            shorter than two, which volumes under 20 voxels would be left without.
    """
    largest = np.minimum(np.maximum((np.asarray(shape) * side + 1e-9).astype(np.int64), 2), shape)
    windows = draw_boxes(generator, count, shape, 1, largest)
    voxels = int((windows.stop - windows.start).prod(axis=1).sum())
    # Bytes are drawn several times faster than numbers; an odd sign is dropped where they are used.
    return Shuffle(windows, np.frombuffer(generator.bytes(4 * voxels), dtype="<i4").copy())


def shuffle_sources(shuffle: Shuffle, shape: Shape, device: torch.device) -> Tensor:
    """Which voxel each voxel takes its values from.

    Every window permutes the voxels of the unchanged volume, and a later window is put over an earlier one.

    Args:
        shuffle: what was drawn for this shape.
        shape: voxels (z, y, x).
        device: where to work.

    Returns:
        int64 (N,), flat index of the source of each voxel.
    """
    _, h, w = shape
    start = torch.from_numpy(shuffle.windows.start).to(device)
    side = torch.from_numpy(shuffle.windows.stop - shuffle.windows.start).to(device)
    keys = torch.from_numpy(shuffle.keys).to(device).long()
    voxels = side.prod(dim=1)
    window = torch.repeat_interleave(torch.arange(len(start), device=device), voxels, output_size=len(keys))
    within = torch.arange(len(keys), device=device) - (voxels.cumsum(0) - voxels)[window]
    rows, columns = side[:, 1][window], side[:, 2][window]
    z, y, x = within // (rows * columns), within // columns % rows, within % columns
    corner = (start[:, 0] * h + start[:, 1]) * w + start[:, 2]
    place = corner[window] + (z * h + y) * w + x
    # Sorted by window and number, the voxels of a window stay together and come in the drawn order.
    permuted = place[torch.argsort((window << 31) | (keys & 0x7FFFFFFF), stable=True)]
    total = shape[0] * h * w
    top = torch.full((total,), -1, device=device).scatter_reduce_(0, place, window, "amax")
    seen = top[place] == window
    sources = torch.arange(total, device=device)
    sources[place[seen]] = permuted[seen]
    return sources


def shuffle_voxels(volume: Tensor, shuffle: Shuffle) -> Tensor:
    """The shuffled volume; all channels of a voxel move together.

    Args:
        volume: (C, D, H, W).
        shuffle: what was drawn for its shape.
    """
    _, d, h, w = volume.shape
    sources = shuffle_sources(shuffle, (d, h, w), volume.device)
    return volume.flatten(1)[:, sources].view_as(volume)
