"""Fusion: two crops mixed in random boxes, each box in one of a few shares (arXiv 2306.16925, volume fusion)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.methods.boxes import Boxes, last_box

__all__ = ["FusionBoxes", "class_map", "draw_fusion", "fuse"]

Shape = tuple[int, int, int]
Counts = tuple[int, int]


@dataclass(frozen=True)
class FusionBoxes:
    """Boxes of the foreground, each with the class of its share."""

    boxes: Boxes
    classes: NDArray[np.int64]  # (M,) in 1..K


def draw_fusion(
    generator: np.random.Generator, shape: Shape, *, shares: int, count: Counts, smallest: int, largest: float
) -> FusionBoxes:
    """Draw boxes one after the other: sides, centres and classes are uniform.

    A centre may be any voxel, and what reaches beyond the volume is cut off, as in the authors' code.

    Args:
        generator: of the sample.
        shape: voxels (z, y, x) of the volume.
        shares: K, classes above 0; class k stands for the share k / K of the foreground.
        count: fewest and most boxes M.
        smallest: shortest side in voxels, no more than the longest.
        largest: longest side over that of the volume.
    """
    boxes = int(generator.integers(*count, endpoint=True))
    longest = np.maximum(1, (np.asarray(shape) * largest + 1e-9).astype(np.int64))
    side = generator.integers(np.minimum(smallest, longest), longest, size=(boxes, 3), endpoint=True)
    start = generator.integers(0, shape, size=(boxes, 3)) - side // 2
    return FusionBoxes(Boxes(start, start + side), generator.integers(1, shares, size=boxes, endpoint=True))


def class_map(drawn: FusionBoxes, shape: Shape, device: torch.device) -> Tensor:
    """int64 (D, H, W), the class of the last box over each voxel, 0 where there is none."""
    classes = torch.from_numpy(np.concatenate([drawn.classes, [0]])).to(device)
    return classes[last_box(drawn.boxes, shape, device)]  # no box is -1, the last entry


def fuse(foreground: Tensor, background: Tensor, classes: Tensor, shares: int) -> Tensor:
    """X = alpha F + (1 - alpha) G with alpha = class / K (arXiv 2306.16925).

    Args:
        foreground: F (B, C, D, H, W).
        background: G (B, C, D, H, W).
        classes: int64 (B, 1, D, H, W) in 0..K.
        shares: K.
    """
    return torch.lerp(background, foreground, (classes / shares).to(background.dtype))
