"""Boxes: random boxes in a volume, and which of them covers a voxel, without loops over boxes or voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MOST_BOXES", "Boxes", "draw_boxes", "last_box"]

Shape = tuple[int, int, int]
Sides = int | NDArray[np.int64]

MOST_BOXES = 53
"""Boxes that `last_box` can tell apart: one bit each, in the bits that a float64 holds exactly."""


@dataclass(frozen=True)
class Boxes:
    """Boxes in the order in which they are put into a volume; a later one covers an earlier one."""

    start: NDArray[np.int64]  # (K, 3) first voxel per axis (z, y, x)
    stop: NDArray[np.int64]  # (K, 3) exclusive

    def __len__(self) -> int:
        return len(self.start)


def draw_boxes(
    generator: np.random.Generator,
    count: int,
    shape: Shape,
    smallest: Sides,
    largest: Sides,
    margin: int = 0,
) -> Boxes:
    """Boxes wholly within a volume; sides and places are uniform.

    Args:
        generator: of the sample.
        count: K.
        shape: voxels (z, y, x) of the volume.
        smallest: shortest side in voxels per axis (z, y, x).
        largest: longest side in voxels per axis, included; no longer than the volume.
        margin: voxels that stay free at each border, as far as a box leaves so many.
    """
    side = generator.integers(smallest, largest, size=(count, 3), endpoint=True)
    room = np.asarray(shape) - side
    free = np.minimum(margin, room // 2)
    start = generator.integers(free, room - free, endpoint=True)
    return Boxes(start, start + side)


def last_box(boxes: Boxes, shape: Shape, device: torch.device) -> Tensor:
    """Which box was put last over each voxel.

    Each box has a bit. The boxes that hold a voxel are those that hold its z, its y and its x, so three lines of bits
    give them all, and the highest bit is the last box.

    Args:
        boxes: at most `MOST_BOXES`; they may reach beyond the volume.
        shape: voxels (z, y, x) of the volume.
        device: where the result lies.

    Returns:
        int64 (D, H, W), the position in `boxes`, -1 where there is none.
    """
    assert len(boxes) <= MOST_BOXES, len(boxes)
    bit = np.arange(len(boxes), dtype=np.int64)[:, None]
    lines = []
    for axis, side in enumerate(shape):
        place = np.arange(side)
        holds = (place >= boxes.start[:, axis, None]) & (place < boxes.stop[:, axis, None])
        lines.append(torch.from_numpy((holds.astype(np.int64) << bit).sum(0)).to(device))
    z, y, x = lines
    covering = z[:, None, None] & y[:, None] & x
    return torch.frexp(covering.double()).exponent.long() - 1
