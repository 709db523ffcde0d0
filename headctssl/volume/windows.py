"""Windows: Hounsfield units to the channels an encoder sees. Training, prediction and embedding share this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headctssl.contract import Window

__all__ = ["to_input"]


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
    for channel, window in enumerate(windows):
        # Two passes over the voxels instead of four: HU / width + offset, then the clip.
        offset = torch.tensor(0.5 - window.level / window.width)
        torch.add(offset, volume[:, 0], alpha=1.0 / window.width, out=out[:, channel]).clamp_(0.0, 1.0)
    return out
