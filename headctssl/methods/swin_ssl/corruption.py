"""Corruption: turns that keep the shape of a volume, and boxes cut out of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TURNS", "cut_out", "cutout_mask", "turn_axis", "turned"]

Shape = tuple[int, int, int]

TURNS = 4
"""Classes of the rotation task."""

_HALF_TURNS = ((), (-2, -1), (-3, -1), (-3, -2))
"""Axes to be reversed: nothing, half a turn about z, about y, about x."""

_NOISE_STD = 1 / 7
"""The published code brings normal noise in a box to [0, 1] by its extremes: some thousand values span 7 deviations."""


def turn_axis(shape: Shape) -> int | None:
    """The first axis of (z, y, x) about which a volume can be turned by 90 degrees and keep its shape, or None."""
    return next((a for a in range(3) if shape[(a + 1) % 3] == shape[(a + 2) % 3]), None)


def turned(volume: Tensor, turn: int) -> Tensor:
    """A volume turned in one of four ways that keep its shape, without interpolation.

    Multiples of 90 degrees about an axis whose two other sides are equal, z before y before x (arXiv 2111.14791,
    section 3.2: about z, for cubes). Where all sides differ: nothing, and half a turn about each axis.

    Args:
        volume: (..., D, H, W).
        turn: 0 to 3; 0 leaves everything as it is.
    """
    d, h, w = volume.shape[-3:]
    axis = turn_axis((d, h, w))
    if axis is None:
        return volume.flip(_HALF_TURNS[turn])
    first, second = sorted(((axis + 1) % 3, (axis + 2) % 3))
    return torch.rot90(volume, turn, (first - 3, second - 3))


def cutout_mask(
    generator: np.random.Generator, shape: Shape, share: float, sides: tuple[float, float]
) -> NDArray[np.bool_]:
    """Where boxes are cut out: up to `share` of the voxels (arXiv 2111.14791, section 4.2 and public code).

    A number of voxels is drawn, uniform up to the share; boxes are added until they have as many in sum. They may
    overlap, so that less may be missing, and never more than the share.

    Args:
        generator: of the sample.
        shape: voxels (z, y, x).
        share: largest share of the voxels.
        sides: smallest and largest side of a box over that of the volume.

    Returns:
        bool (D, H, W), True where cut out.
    """
    mask = np.zeros(shape, np.bool_)
    left = int(generator.uniform(0.0, share) * mask.size)
    whole = np.asarray(shape)
    low = np.maximum(1, (whole * sides[0]).astype(int))
    high = np.maximum(low, (whole * sides[1]).astype(int))
    while left > 0:
        size = generator.integers(low, high, endpoint=True)
        start = generator.integers(0, np.maximum(1, whole - low))
        size = np.minimum(size, whole - start)
        size[0] = min(size[0], left // (size[1] * size[2]))  # the last box is made lower, so that the share holds
        if size[0] == 0:
            break
        z, y, x = (slice(a, a + s) for a, s in zip(start, size, strict=True))
        mask[z, y, x] = True
        left -= int(size.prod())
    return mask


def cut_out(volume: Tensor, mask: NDArray[np.bool_], seed: int) -> Tensor:
    """A copy with noise in place of what is cut out.

    Args:
        volume: (C, D, H, W) in [0, 1].
        mask: (D, H, W), True where cut out; the same for all channels.
        seed: of the noise, which is drawn on the CPU.
    """
    count = int(mask.sum())
    noise = torch.randn(volume.shape[0], count, generator=torch.Generator().manual_seed(seed))
    noise = noise.mul_(_NOISE_STD).add_(0.5).clamp_(0.0, 1.0)
    out = volume.clone()
    out[:, torch.from_numpy(mask).to(volume.device)] = noise.to(volume)
    return out
