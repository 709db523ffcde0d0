"""Draws: where a view lies in a scan and what is done to it, as plain numbers drawn on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import InputSpec
from headctssl.loading.placement import room_for
from headctssl.loading.view_plan import ViewGroup
from headctssl.types import Triple

__all__ = ["Grid", "ViewDraw", "anchor_of", "centred_grid", "draw_view", "frame_of"]

Edges = NDArray[np.float64]
"""(3, 2): start and stop per axis (z, y, x) in voxels of the read volume, voxel i covering [i, i + 1)."""


@dataclass(frozen=True)
class Grid:
    """The sampling grid of a view: sample j of an axis is centred at index coordinate ``start + j * step``."""

    start: Triple  # voxel index coordinates (voxel i is centred at i) of the first sample
    step: Triple  # voxels between samples, always positive
    shape: tuple[int, int, int]
    flip: tuple[bool, bool, bool] = (False, False, False)  # reverse the samples of an axis

    def widened(self, margin: tuple[int, int, int]) -> Grid:
        """The same samples with `margin` more on each side of each axis."""
        start = tuple(s - m * step for s, m, step in zip(self.start, margin, self.step, strict=True))
        shape = tuple(n + 2 * m for n, m in zip(self.shape, margin, strict=True))
        return Grid((start[0], start[1], start[2]), self.step, (shape[0], shape[1], shape[2]), self.flip)

    @property
    def edges(self) -> Edges:
        """The box that the samples tile, before any rotation."""
        step = np.asarray(self.step)
        start = np.asarray(self.start) - 0.5 * step + 0.5
        return np.stack([start, start + step * np.asarray(self.shape)], axis=1)


@dataclass(frozen=True)
class ViewDraw:
    """Everything random about one view of one sample."""

    grid: Grid
    rotation_deg: Triple | None = None  # angles about (z, y, x), applied after the flips
    window_shift: float = 0.0  # added to the level of every window, in its width
    window_stretch: float = 1.0  # times the width of every window
    shift: float = 0.0  # added to every channel, in windows
    gamma: float = 1.0  # exponent
    blur_sigma: float = 0.0  # voxels, 0 = none
    noise_sigma: float = 0.0  # in windows, 0 = none
    noise_seed: int = 0


def frame_of(head_box: NDArray[np.floating], spacing_mm: NDArray[np.floating], spec: InputSpec) -> Edges:
    """The box an encoder's input covers.

    fixed_spacing: the field of view centred on the head box; for a head larger than it, the field of view
    grows by one factor for all axes. stretch_to_shape: the head box itself.

    Args:
        head_box: (3, 2) start and stop of the head in voxels.
        spacing_mm: (3,) spacing of the voxels.
        spec: what the encoder sees.

    Returns:
        (3, 2) edges in voxels, not necessarily whole.
    """
    head = np.asarray(head_box, np.float64)
    if spec.rule == "stretch_to_shape":
        return head
    side = np.asarray(spec.field_of_view_mm, np.float64) / np.asarray(spacing_mm, np.float64)
    grow = max(1.0, float(((head[:, 1] - head[:, 0]) / side).max()))
    centre = head.mean(axis=1)
    return np.stack([centre - 0.5 * grow * side, centre + 0.5 * grow * side], axis=1)


def centred_grid(edges: Edges, shape: tuple[int, int, int], flip: tuple[bool, bool, bool] = (False,) * 3) -> Grid:
    """The grid whose samples tile a box: the first sample is centred half a step inside the edge."""
    step = (edges[:, 1] - edges[:, 0]) / np.asarray(shape, np.float64)
    start = edges[:, 0] + 0.5 * step - 0.5
    return Grid(_triple(start), _triple(step), shape, flip)


def draw_view(
    group: ViewGroup,
    position: int,
    frame: Edges,
    target: Edges,
    generator: np.random.Generator,
    focus: NDArray[np.float64] | None = None,
    anchor: Grid | None = None,
) -> ViewDraw:
    """Draw one view.

    The side of the crop is a drawn share of the frame's side, for each axis by itself (HeadCT-Foundation crops
    112 to 224 voxels per axis and resizes to a cube). Its place is uniform over the places inside the frame
    where it holds as much of the head as it can, so that views are not mostly air; or it is centred on `focus`,
    as far as the frame allows. Groups whose views overlap or lie in a grid have rules of their own
    (`loading.placement`).

    Args:
        group: what to draw.
        position: which view of the group, from 0.
        frame: (3, 2) the box the encoder's input covers.
        target: (3, 2) the part of the head that was read.
        generator: the sample's own generator; a fixed count of numbers is taken from it.
        focus: (3,) where the middle of the view is wanted, or None.
        anchor: the view that this one depends on, see `anchor_of`.
    """
    u = generator.random(23)
    share = _between(group.scale, u[0:3])
    room = room_for(group, position, share, frame, target, generator, None if anchor is None else anchor.edges)
    side, place = room.side, room.low + u[3:6] * (room.high - room.low)
    if focus is not None:
        place = np.clip(focus - 0.5 * side, room.least, room.most)
    flip = u[6:9] < np.asarray(group.flip_probability)
    grid = centred_grid(
        np.stack([place, place + side], axis=1), group.shape, (bool(flip[0]), bool(flip[1]), bool(flip[2]))
    )

    rotated = u[9] < group.rotate_probability
    angles = _triple((2.0 * u[10:13] - 1.0) * group.rotate_degrees)
    blurred = u[13] < group.blur_probability[position % len(group.blur_probability)]
    changed = u[14] < group.gamma_probability[position % len(group.gamma_probability)]
    window_shift, window_stretch = _jitter(group, math.floor(u[22] * 2**53))
    return ViewDraw(
        grid=grid,
        rotation_deg=angles if rotated else None,
        window_shift=window_shift,
        window_stretch=window_stretch,
        shift=float((2.0 * u[16] - 1.0) * group.shift) if u[15] < group.shift_probability else 0.0,
        gamma=float(_between(group.gamma, u[17])) if changed else 1.0,
        blur_sigma=float(_between(group.blur_sigma, u[18])) if blurred else 0.0,
        noise_sigma=float(u[20] * group.noise_sigma) if u[19] < group.noise_probability else 0.0,
        noise_seed=math.floor(u[21] * 2**53),
    )


def _jitter(group: ViewGroup, seed: int) -> tuple[float, float]:
    """How far every window moves, in its width, and by what it is stretched; from numbers of its own."""
    if group.window_probability == 0.0:
        return 0.0, 1.0
    u = np.random.default_rng(seed).random(3)
    if u[0] >= group.window_probability:
        return 0.0, 1.0
    return float((2.0 * u[1] - 1.0) * group.window_shift), float(1.0 + (2.0 * u[2] - 1.0) * group.window_stretch)


def anchor_of(group: ViewGroup, position: int, drawn: Mapping[str, Sequence[ViewDraw]]) -> Grid | None:
    """The view of the same scan that the next one depends on; None where it depends on none.

    Args:
        group: the next view's.
        position: which view of the group it is.
        drawn: name of a group -> its views so far.
    """
    if group.within:
        return drawn[group.within][0].grid
    return drawn[group.name][0].grid if position > 0 and (group.grid or group.overlap > 0) else None


def _between(limits: tuple[float, float], u: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return np.asarray(limits[0] + u * (limits[1] - limits[0]))


def _triple(values: NDArray[np.float64]) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))
