"""Paint head: skin, fat, muscle and skull of a parametric head."""

from __future__ import annotations

import numpy as np

from headctssl.ingest.phantom.anatomy import Anatomy
from headctssl.ingest.phantom.canvas import Canvas
from headctssl.ingest.phantom.fields import coverage
from headctssl.ingest.phantom.shapes import TISSUES

__all__ = ["paint_skull", "paint_soft_tissue"]


def paint_soft_tissue(canvas: Canvas, a: Anatomy) -> None:
    """Skin, fat, muscle and swellings, filled through to the middle."""
    w, block = canvas.width, canvas.block
    window = block.window(a.head_ranges)
    if window is None:
        return
    skin, outer = canvas.field("skin", window), canvas.field("outer", window)
    mix = canvas.field("mix", window)
    block.paint(window, coverage(skin, w), a.muscle_hu, TISSUES["scalp"])
    deep = skin + np.float32(1.8)
    # Over the vault: skin, fat, galea, with muscle at the temples and the nape. Face, neck: fat between muscles.
    fat = np.maximum(deep, np.maximum(np.float32(1.6) - outer, outer - np.float32(9)))
    z, y, _ = block.position((window[0], window[1], slice(window[2].start, window[2].start + 1)))
    sz, sy, _ = a.scale
    temple = np.exp(-(((z + 12 * sz) / (26 * sz)) ** 2) - ((y + 22 * sy) / (24 * sy)) ** 2)
    nape = np.exp(-(((z + 50 * sz) / (22 * sz)) ** 2) - ((y - 75 * sy) / (24 * sy)) ** 2)
    fat += np.clip(9 * (temple + nape) - 2 + mix, 0, None)
    # `mix` is about N(0, 1): the share of it above the threshold is fat.
    threshold = np.float32(3 * (a.muscle_share - 0.5))
    loose = np.maximum(deep + np.float32(2), (threshold - mix) * np.float32(4))
    loose = np.maximum(loose, np.float32(7) - outer)
    block.paint(window, coverage(np.minimum(fat, loose), w), -75.0, TISSUES["fat"])
    for swelling in canvas.scene.swellings:
        r = 2.2 * swelling.spread_mm
        low_high = [(c - r, c + r) for c in swelling.centre]
        part = block.window((low_high[0], low_high[1], low_high[2]))
        if part is not None:
            raised = swelling.at(block.position(part)) * np.float32(1 / swelling.height_mm)
            cover = coverage(canvas.field("skin", part) + 1, w) * np.clip(2 * raised - np.float32(0.5), 0, 1)
            block.paint(part, cover, 55.0, TISSUES["soft_tissue"])


def paint_skull(canvas: Canvas, a: Anatomy) -> None:
    """Bone with marrow between its tables, and CSF in the cavity."""
    w, block = canvas.width, canvas.block
    window = block.window(a.head_ranges)
    if window is None:
        return
    outer, inner = canvas.field("outer", window), canvas.field("inner", window)
    block.paint(window, coverage(outer, w), a.bone_hu, TISSUES["bone"])
    marrow = np.maximum(outer, -inner) + np.float32(1.7)
    if w > 2:  # Coarse voxels cannot resolve the tables; the mean density stays.
        marrow += np.float32(0.6)
    mix = canvas.field("mix", window)
    block.paint(window, coverage(marrow, w), np.float32(a.diploe_hu) + mix * np.float32(110), TISSUES["diploe"])
    block.paint(window, coverage(inner, w), a.csf_hu, TISSUES["csf"])
