"""Windows: Hounsfield units to the channels an encoder sees. Training, prediction and embedding share this file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from headctssl.contract import Window

__all__ = ["WindowMap", "through_windows", "to_input", "window_maps"]

_AT_ONCE = 5 << 14
"""Voxels that a CPU takes through all windows before the next ones: 320 kB stay in a core's second-level cache."""


class WindowMap(NamedTuple):
    """A window as ``factor * HU + offset``, to be clipped to [0, 1]."""

    factor: float
    offset: Tensor  # of no dimension, on a CPU: torch adds it to a scaled tensor of any device in one pass


def window_maps(windows: Sequence[Window]) -> list[WindowMap]:
    """What `through_windows` takes, made once for many calls."""
    return [WindowMap(1.0 / w.width, torch.tensor(0.5 - w.level / w.width)) for w in windows]


def through_windows(values: Tensor, maps: Iterable[WindowMap], channels: Iterable[Tensor]) -> None:
    """Each channel: the values clipped and scaled to [0, 1] by its window.

    Args:
        values: int16 or float, HU, any shape.
        maps: of the windows.
        channels: float32 tensors of that shape, written to.
    """
    for (factor, offset), channel in zip(maps, channels, strict=True):
        # Two passes over the voxels instead of four: HU / width + offset, then the clip.
        torch.add(offset, values, alpha=factor, out=channel).clamp_(0.0, 1.0)


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
    maps = window_maps(windows)
    planes = max(1, _AT_ONCE // max(1, batch * prod(grid[1:]))) if volume.device.type == "cpu" else max(1, grid[0])
    for first in range(0, grid[0], planes):
        some = slice(first, first + planes)
        through_windows(volume[:, 0, some], maps, out[:, :, some].unbind(1))
    return out
