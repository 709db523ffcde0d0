"""Windows: Hounsfield units to the channels an encoder sees. Training, prediction and embedding share this file."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from headctssl.contract import Window

__all__ = ["to_input"]

_AT_ONCE = 1 << 16
"""Voxels that a CPU takes through all windows before the next ones: 256 kB stay in a core's second-level cache."""


def to_input(volume: Tensor, windows: Sequence[Window], out: Tensor | None = None) -> Tensor:
    """One channel per window, each clipped and scaled to [0, 1].

    Args:
        volume: (B, 1, D, H, W) int16 or float, HU.
        windows: level and width in HU of each channel.
        out: float32 (B, C, D, H, W) to write to; a new one when None.

    Returns:
        float32 (B, C, D, H, W) in [0, 1] on the same device.
    """
    assert volume.ndim == 5, "to_input takes (B, 1, D, H, W)"
    assert volume.shape[1] == 1, "to_input takes one channel of HU"
    batch, _, *grid = volume.shape
    if out is None:
        out = torch.empty((batch, len(windows), *grid), dtype=torch.float32, device=volume.device)
    offsets = [torch.tensor(0.5 - window.level / window.width) for window in windows]
    planes = max(1, _AT_ONCE // max(1, batch * prod(grid[1:]))) if volume.device.type == "cpu" else max(1, grid[0])
    for first in range(0, grid[0], planes):
        some = volume[:, 0, first : first + planes]
        for channel, (window, offset) in enumerate(zip(windows, offsets, strict=True)):
            # Two passes over the voxels instead of four: HU / width + offset, then the clip.
            made = out[:, channel, first : first + planes]
            torch.add(offset, some, alpha=1.0 / window.width, out=made).clamp_(0.0, 1.0)
    return out
