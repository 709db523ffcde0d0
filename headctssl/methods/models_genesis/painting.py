"""Painting: noise in boxes, or everywhere but in boxes (arXiv 1908.06912, in-painting and out-painting)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.methods.boxes import Boxes, draw_boxes, last_box

__all__ = ["Painting", "draw_painting", "paint", "painted_voxels"]

Shape = tuple[int, int, int]
Range = tuple[float, float]

MARGIN = 3
"""Voxels at each border that no box reaches, as published."""


@dataclass(frozen=True)
class Painting:
    """What is painted over."""

    boxes: Boxes
    outside: bool  # True: all but the boxes is painted over
    noise: NDArray[np.uint8]  # (D, H, W), in 256ths of a window; the same for all channels


def draw_painting(
    generator: np.random.Generator, shape: Shape, *, outside: bool, most: int, another: float, side: Range
) -> Painting:
    """Draw boxes and noise.

    Args:
        generator: of the sample.
        shape: voxels (z, y, x) of the volume.
        outside: out-painting, with at least one box; else in-painting, which may have none.
        most: largest number of boxes.
        another: chance of one more box while there are fewer.
        side: shortest and longest side of a box over that of the volume.
    """
    given = 1 if outside else 0
    count = given + int((generator.random(most - given) < another).cumprod().sum())
    sides = np.asarray(shape)
    smallest = np.maximum(1, (sides * side[0] + 1e-9).astype(np.int64))
    largest = np.maximum(smallest, (sides * side[1] + 1e-9).astype(np.int64))
    boxes = draw_boxes(generator, count, shape, smallest, largest, MARGIN)
    noise = np.frombuffer(generator.bytes(int(sides.prod())), dtype=np.uint8).reshape(shape)
    return Painting(boxes, outside, noise.copy())


def painted_voxels(painting: Painting, device: torch.device) -> Tensor:
    """Bool (D, H, W), True where a voxel is painted over."""
    d, h, w = painting.noise.shape
    covered = last_box(painting.boxes, (d, h, w), device) >= 0
    return ~covered if painting.outside else covered


def paint(volume: Tensor, painting: Painting) -> Tensor:
    """The volume with noise in all channels of the painted voxels.

    Args:
        volume: (C, D, H, W) in [0, 1].
        painting: what was drawn for its shape.
    """
    noise = (torch.from_numpy(painting.noise).to(volume.device).to(volume.dtype) + 0.5) / 256
    return torch.where(painted_voxels(painting, volume.device), noise, volume)
