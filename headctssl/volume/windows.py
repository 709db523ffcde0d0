"""Windows: Hounsfield units to the channels an encoder sees. Training, prediction and embedding share this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headctssl.contract import Window

__all__ = ["to_input"]


def to_input(volume: Tensor, windows: Sequence[Window]) -> Tensor:
    """One channel per window, each clipped and scaled to [0, 1].

    Args:
        volume: (B, 1, D, H, W) int16 or float, HU.
        windows: level and width in HU of each channel.

    Returns:
        float32 (B, C, D, H, W) in [0, 1] on the same device.
    """
    assert volume.ndim == 5, "to_input takes (B, 1, D, H, W)"
    assert volume.shape[1] == 1, "to_input takes one channel of HU"
    batch, _, *grid = volume.shape
    out = torch.empty((batch, len(windows), *grid), dtype=torch.float32, device=volume.device)
    for channel, window in enumerate(windows):
        lowest = window.level - window.width / 2
        out[:, channel].copy_(volume[:, 0]).sub_(lowest).div_(window.width).clamp_(0.0, 1.0)
    return out
