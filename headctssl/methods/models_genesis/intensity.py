"""Intensity: one random curve of Hounsfield units, seen through all windows (arXiv 1908.06912, non-linear map)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import Window

__all__ = ["TABLE", "Curve", "apply_tables", "can_invert", "draw_curve", "hu_map", "window_edges", "window_tables"]

# Legend: C channels = windows, S segments between the edges of windows.

TABLE = 4096
"""Steps of a channel's table: 0.7 HU in the widest window in use, 2,800 HU."""

_KNOTS = 513  # points of a segment's curve


@dataclass(frozen=True)
class Curve:
    """A monotone map of Hounsfield units onto themselves that leaves the set of window edges as it is."""

    points: NDArray[np.float64]  # (S, 2, 2) in [0, 1]: (x, y) of the two inner control points of each segment
    inverted: bool  # decreasing: bright becomes dark


def window_edges(windows: Sequence[Window]) -> NDArray[np.float64]:
    """The ends of all windows in HU, ascending, each once; S + 1 numbers."""
    return np.unique([w.level + side * w.width / 2 for w in windows for side in (-1, 1)])


def can_invert(windows: Sequence[Window]) -> bool:
    """Whether a decreasing map can exchange the two ends of every window: they must lie one inside the other."""
    edges = window_edges(windows)
    low = np.searchsorted(edges, [w.level - w.width / 2 for w in windows])
    high = np.searchsorted(edges, [w.level + w.width / 2 for w in windows])
    return bool((low + high == len(edges) - 1).all())


def draw_curve(generator: np.random.Generator, windows: Sequence[Window], invert: float) -> Curve:
    """Draw a map.

    Args:
        generator: of the sample.
        windows: of the channels.
        invert: chance of a decreasing map; taken as 0 where `can_invert` says no.
    """
    chance = generator.random()
    points = generator.random((len(window_edges(windows)) - 1, 2, 2))
    return Curve(points, bool(chance < invert) and can_invert(windows))


def hu_map(curve: Curve, edges: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots of the map: HU before, ascending, and HU after.

    Between two edges it is a cubic Bezier curve from one corner to the opposite one with two inner points,
    B(t) = 3 (1 - t)^2 t P1 + 3 (1 - t) t^2 P2 + t^3 (arXiv 1908.06912), which is monotone in both axes for
    points within the square. With one window that is the published map. With several, each segment is mapped onto
    itself, or, inverted, onto the one that mirrors it, so that a voxel clipped in a window can be clipped after it too.

    Args:
        curve: what was drawn.
        edges: of `window_edges`.
    """
    t = np.linspace(0.0, 1.0, _KNOTS)[:, None]
    before, after = [], []
    for k, (first, second) in enumerate(curve.points):
        x, y = (3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3).T
        target = len(edges) - 2 - k if curve.inverted else k
        before.append(edges[k] + (edges[k + 1] - edges[k]) * x)
        after.append(edges[target] + (edges[target + 1] - edges[target]) * (y[::-1] if curve.inverted else y))
    return np.concatenate(before), np.concatenate(after)


def window_tables(curve: Curve, windows: Sequence[Window]) -> NDArray[np.float32]:
    """The map as each channel sees it: (C, TABLE + 1), the new value of 0, 1 / TABLE, ..., 1.

    Args:
        curve: what was drawn for these windows.
        windows: of the channels.
    """
    before, after = hu_map(curve, window_edges(windows))
    lowest = np.array([[w.level - w.width / 2] for w in windows])
    width = np.array([[w.width] for w in windows])
    hu = lowest + width * np.linspace(0.0, 1.0, TABLE + 1)
    tables: NDArray[np.float32] = np.clip((np.interp(hu, before, after) - lowest) / width, 0.0, 1.0).astype(np.float32)
    return tables


def apply_tables(volume: Tensor, tables: NDArray[np.float32]) -> Tensor:
    """Every voxel through the table of its channel, linear between its entries.

    Args:
        volume: (C, D, H, W) in [0, 1].
        tables: of `window_tables`.

    Returns:
        float32 (C, D, H, W) in [0, 1].
    """
    table = torch.from_numpy(tables).to(volume.device)
    position = volume.flatten(1) * TABLE
    lower = position.long().clamp_(0, TABLE - 1)
    low, high = table.gather(1, lower), table.gather(1, lower + 1)
    return torch.lerp(low, high, position - lower).view_as(volume)
