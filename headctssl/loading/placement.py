"""Placement: how large a view is and where it may lie, alone, beside another view, or in a grid of views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.loading.view_plan import ViewGroup

__all__ = ["Room", "room_for"]

_Axes = NDArray[np.float64]  # (3,) one number per axis (z, y, x), in voxels of the read volume
_Edges = NDArray[np.float64]  # (3, 2) start and stop per axis


@dataclass(frozen=True)
class Room:
    """The size of a view and where it may begin, all (3,) in voxels."""

    side: _Axes
    low: _Axes  # the view begins anywhere between `low` and `high`, each place with the same chance ...
    high: _Axes
    least: _Axes  # ... and between `least` and `most` where its middle was asked for
    most: _Axes


def room_for(
    group: ViewGroup,
    position: int,
    share: _Axes,
    frame: _Edges,
    target: _Edges,
    generator: np.random.Generator,
    anchor: _Edges | None,
) -> Room:
    """Where a view of a group may lie.

    Args:
        group: which rule holds: alone, overlapping, a cell of a grid, or within a grid.
        position: which view of the group, from 0.
        share: (3,) drawn side of the view, or of a whole grid, over the side of the frame.
        frame: (3, 2) the box the encoder's input covers.
        target: (3, 2) the part of the head that was read.
        generator: the sample's own; three numbers are taken for a view that must overlap with another, else none.
        anchor: (3, 2) the box of the view that this one depends on: the group's first one, or the first cell of the
            grid that it lies in.
    """
    side = share * (frame[:, 1] - frame[:, 0])
    if group.grid:
        return _in_grid(group, position, side, frame, target, anchor)
    room = _alone(side, frame, target)
    if group.overlap > 0 and position > 0:
        assert anchor is not None, "a view overlaps with the first one of its group"
        return _overlapping(room, anchor, group.overlap, generator.random(3))
    return room


def _alone(side: _Axes, frame: _Edges, target: _Edges) -> Room:
    """Inside the frame, where the view holds as much of the target as it can."""
    low = np.minimum(target[:, 0], target[:, 1] - side)
    high = np.maximum(target[:, 0], target[:, 1] - side)
    least, most = frame[:, 0], frame[:, 1] - side
    low = np.maximum(low, least)
    return Room(side, low, np.maximum(low, np.minimum(high, most)), least, np.maximum(least, most))


def _overlapping(room: Room, anchor: _Edges, overlap: float, u: _Axes) -> Room:
    """The same, with at least `overlap` of the volume of each of the two views in common.

    The share is divided among the axes at random: along each, the common part is at least s_i of the longer side,
    and the s_i multiply to `overlap`. The side is cut or stretched to within s_i of the other's.
    """
    weights = -np.log1p(-u)  # exponential numbers: their shares are uniform over all divisions
    total = weights.sum()
    s = overlap ** (weights / total if total > 0 else np.full(3, 1 / 3))
    first = anchor[:, 1] - anchor[:, 0]
    grown = np.clip(room.side, s * first, first / s)
    common = s * np.maximum(first, grown)
    # A side that was stretched to s_i of the other's still fits into the frame, because the other does.
    frame_stop = room.most + room.side
    least = np.maximum(room.least, anchor[:, 0] + common - grown)
    most = np.maximum(least, np.minimum(frame_stop - grown, anchor[:, 1] - common))
    return Room(grown, np.clip(room.low, least, most), np.clip(room.high, least, most), least, most)


def _in_grid(
    group: ViewGroup, position: int, side: _Axes, frame: _Edges, target: _Edges, anchor: _Edges | None
) -> Room:
    """A cell of a grid whose cells touch in the plane, or a view as large as a cell anywhere within such a grid."""
    n = group.grid
    if not group.within and position == 0:
        # The grid as a whole lies like a view; its first cell begins where it does.
        whole = _alone(side / (n, 1, 1), frame, target)
        return Room(side / n, whole.low, whole.high, whole.least, whole.most)
    assert anchor is not None, "cells follow the first one"
    start, cell = anchor[:, 0], anchor[:, 1] - anchor[:, 0]
    if group.within:
        last = start + (0, n - 1, n - 1) * cell
        return Room(cell, start, last, start, last)
    place = start + (0, position // n, position % n) * cell
    return Room(cell, place, place, place, place)
