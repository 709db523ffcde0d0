"""Paint base: a real head, its brain displaced as the scene says."""

from __future__ import annotations

import numpy as np

from headctssl.ingest.phantom.base_head import BaseHead
from headctssl.ingest.phantom.canvas import Canvas

__all__ = ["paint_base"]

_FADE_MM = 8.0  # under the skull, over which the displacement of the brain ends


def paint_base(canvas: Canvas, base: BaseHead) -> None:
    """Put the densities of the image where the head lies."""
    block = canvas.block
    window = block.window(base.head_ranges)
    if window is None:
        return
    position = block.position(window)
    cavity = block.window(base.cavity_ranges)
    block.paint(window, np.ones((1, 1, 1), np.float32), base.density(position))
    if canvas.scene.warp.moves and cavity is not None:
        place = block.position(cavity)
        own = canvas.own(place, cavity)
        share = np.clip(canvas.field("inner", cavity) * np.float32(-1 / _FADE_MM), 0, 1)
        z, y, x = (p + share * (o - p) for p, o in zip(place, own, strict=True))
        block.paint(cavity, (share > 0).astype(np.float32), base.density((z, y, x)))
