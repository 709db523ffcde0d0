"""Canvas: slices that a head is painted onto, with the smooth fields of the head and of its brain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from headctssl.ingest.phantom.base_head import BaseHead
from headctssl.ingest.phantom.brain import BrainShares, brain_shares, subarachnoid_share
from headctssl.ingest.phantom.fields import Array, Block, CoarseGrid, Position, coverage
from headctssl.ingest.phantom.findings import Local
from headctssl.ingest.phantom.shapes import TISSUES, Part

if TYPE_CHECKING:
    from headctssl.ingest.phantom.anatomy import Anatomy
    from headctssl.ingest.phantom.scene import Scene

__all__ = ["Canvas", "Window"]

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Canvas:
    """A block of slices and what is painted there."""

    scene: Scene
    block: Block
    head: CoarseGrid  # inner, outer, skin, mix
    brain: CoarseGrid  # sulci, cerebellum, ventricle, gap; where the brain moves dz, dy, dx; with dural blood pushed
    cupping_hu: float  # brain next to the skull is so much brighter: beam hardening

    @property
    def width(self) -> float:
        """Extent of partial-volume transitions in mm."""
        return self.block.width

    def field(self, name: str, window: Window) -> Array:
        """A smooth field on a part of the block."""
        grid = self.head if name in self.head.fields else self.brain
        return self.block.field(grid, name, window)

    def own(self, position: Position, window: Window) -> Position:
        """The brain's own coordinates of places of a part of the block."""
        z, y, x = position
        if not self.scene.warp.moves:
            return position
        if not self.scene.warp.masses:
            return (z, y, x - self.field("dx", window))
        return (z - self.field("dz", window), y - self.field("dy", window), x - self.field("dx", window))

    def surface(self, window: Window) -> Array:
        """Signed distance to the surface that the brain lies under."""
        inner = self.field("inner", window)
        return inner + self.field("pushed", window) if "pushed" in self.brain.fields else inner

    def shares(self, anatomy: Anatomy, window: Window) -> BrainShares:
        """Shares of brain in a part of the block."""
        return brain_shares(
            anatomy,
            self.surface(window),
            self.field("gap", window),
            self.field("sulci", window),
            self.field("cerebellum", window),
            self.width,
        )

    def local(self, window: Window, *, csf: bool = False) -> Local:
        """What a finding may ask of a part of the block; `csf` as of `growth.Inside.local`."""
        position = self.block.position(window)
        own = self.own(position, window)
        inner, surface = self.field("inner", window), self.surface(window)
        ventricle = self.field("ventricle", window)
        spaces = np.zeros_like(inner)
        anatomy = self.scene.anatomy
        if csf and isinstance(anatomy, BaseHead):
            spaces = anatomy.subarachnoid(position, own, surface, ventricle)
        elif csf and not isinstance(anatomy, BaseHead):
            brain = self.shares(anatomy, window).brain
            spaces = subarachnoid_share(
                anatomy, brain, surface, ventricle, own, self.width, partial(self._touched, window)
            )
        return Local(position, own, inner, surface, self.field("outer", window), ventricle, spaces)

    def _touched(self, window: Window, part: Part) -> Window | None:
        """The part of a window, counted from its start, that a piece of the brain touches."""
        touched = self.block.window(self.scene.warp.reached(part.ranges))
        if touched is None:
            return None
        bounds = [
            (max(t.start - w.start, 0), min(t.stop, w.stop) - w.start) for t, w in zip(touched, window, strict=True)
        ]
        if any(low >= high for low, high in bounds):
            return None
        return (slice(*bounds[0]), slice(*bounds[1]), slice(*bounds[2]))

    def part(self, part: Part, *, brain: bool = False) -> None:
        """Paint a small piece, displaced with the brain where it belongs to it."""
        window = self.block.window(self.scene.warp.reached(part.ranges) if brain else part.ranges)
        if window is None:
            return
        position = self.block.position(window)
        if brain:
            position = self.own(position, window)
        cover = coverage(part.distance(position), self.width)
        if brain:
            cover *= coverage(self.surface(window) + np.float32(1), self.width)
        if part.texture:
            z_mm, y_mm, x_mm = position
            bent = np.sin(z_mm * 0.43 + 0.31 * x_mm) + np.sin(0.37 * y_mm - 0.23 * z_mm)
            cells = np.abs(np.sin(0.42 * y_mm + 1.3 * bent)) * np.abs(np.sin(0.5 * x_mm + 0.9 * bent + 1.57))
            cover *= np.clip(np.float32(3.2) * cells, 0.1, 1)
        self.block.paint(window, cover, part.hu, TISSUES[part.tissue])
