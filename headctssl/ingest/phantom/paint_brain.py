"""Paint brain: cortex, white matter, nuclei, ventricles, falx, tentorium and vessels of a parametric head."""

from __future__ import annotations

import numpy as np

from headctssl.ingest.phantom.anatomy import Anatomy
from headctssl.ingest.phantom.canvas import Canvas
from headctssl.ingest.phantom.fields import coverage, sheet_coverage
from headctssl.ingest.phantom.shapes import TISSUES

__all__ = ["paint_brain"]


def paint_brain(canvas: Canvas, a: Anatomy) -> None:
    """Everything inside the skull, as it is without a finding."""
    w, block = canvas.width, canvas.block
    window = block.window(a.cavity_ranges)
    if window is None:
        return
    shares = canvas.shares(a, window)
    brain = shares.brain
    grey = coverage(shares.ribbon - np.float32(2.7), max(w, 1.2))
    white = np.float32(a.white_hu)
    if a.pale_hu > 0:
        near = np.exp(-np.clip(canvas.field("ventricle", window), 0, None) * np.float32(1 / 6))
        white = white - np.float32(a.pale_hu) * near
    block.paint(window, brain, white + (np.float32(a.grey_hu) - white) * grey)
    if block.tissue is not None:
        part = block.tissue[window]
        below = canvas.field("cerebellum", window) > 0
        part[(brain > 0.5) & (grey > 0.5)] = TISSUES["cortex"]
        part[(brain > 0.5) & (grey <= 0.5)] = TISSUES["white_matter"]
        part[(brain > 0.5) & below] = TISSUES["cerebellum"]
    solid = [p for p in a.brain_parts if p.tissue not in ("vessel", "venous_sinus", "calcification")]
    for item in solid:
        canvas.part(item, brain=True)
    _ventricles(canvas, a)
    _midline(canvas, a)
    _tentorium(canvas, a)
    for item in a.brain_parts:
        if item not in solid:
            canvas.part(item, brain=True)
    inner = canvas.field("inner", window)
    glow = np.exp(np.minimum(inner, 0) * np.float32(1 / 6)) * coverage(inner, w)
    block.hu[window] += np.float32(canvas.cupping_hu) * glow


def _ventricles(canvas: Canvas, a: Anatomy) -> None:
    w, block = canvas.width, canvas.block
    sz, sy, sx = a.scale
    reach = canvas.scene.warp.most_mm[2] + max(a.ventricle_mm, 0.0)
    window = block.window(
        ((-40 * sz - reach, 40 * sz + reach), (-55 * sy - reach, 76 * sy + reach), (-46 * sx - reach, 46 * sx + reach))
    )
    if window is not None:
        cover = coverage(canvas.field("ventricle", window), w)
        block.paint(window, cover, a.csf_hu, TISSUES["ventricle"])
    septum = block.window(((-2 * sz, 30 * sz), (-38 * sy, 16 * sy), (-3 - reach, 3 + reach)))
    if septum is not None:
        position = block.position(septum)
        own = canvas.own(position, septum)
        cover = sheet_coverage(np.abs(own[2]), 0.7, w)
        rim = ((position[0] - np.float32(10 * sz)) / (16 * sz)) ** 2
        rim = rim + ((position[1] + np.float32(11 * sy)) / (26 * sy)) ** 2
        cover *= np.clip(3 * (1 - rim), 0, 1)
        block.paint(septum, cover, a.white_hu + 2, TISSUES["white_matter"])


def _midline(canvas: Canvas, a: Anatomy) -> None:
    """Interhemispheric fissure, falx, superior sagittal sinus."""
    w, block = canvas.width, canvas.block
    sz, sy, _ = a.scale
    reach = canvas.scene.warp.most_mm[2]
    z_range, y_range, _ = a.cavity_ranges
    window = block.window(((-30 * sz, z_range[1]), y_range, (-9 - reach, 9 + reach)))
    if window is None:
        return
    position = block.position(window)
    z, y, x = position
    own = canvas.own(position, window)
    inner = canvas.field("inner", window)
    inside = coverage(inner, w)
    # The corpus callosum and what lies under it is an ellipse in the midline; the fissure begins outside, above the
    # tentorium.
    q = np.sqrt(((z + 2 * sz) / (32 * sz)) ** 2 + ((y - 4 * sy) / (50 * sy)) ** 2)
    outside = coverage((1 - q) * np.float32(32), w) * coverage(np.float32(-18 * sz) - z, 4.0) * inside
    outside *= coverage(canvas.field("cerebellum", window), w)
    off = np.abs(own[2])
    block.paint(window, sheet_coverage(off, 1.1 + 0.25 * a.gap_mm, w) * outside, a.csf_hu, TISSUES["csf"])
    falx = sheet_coverage(off, 0.7, w) * coverage((np.float32(1.1) - q) * np.float32(32), w) * outside
    block.paint(window, falx, 58.0, TISSUES["falx"])
    sinus = np.abs(x) - np.float32(0.7) * inner - np.float32(5)  # a triangle below the vault
    cover = coverage(sinus, w) * inside * coverage(np.maximum(np.float32(-60) - y, 0) - z + np.float32(5), 6.0)
    block.paint(window, cover, a.vessel_hu, TISSUES["venous_sinus"])


def _tentorium(canvas: Canvas, a: Anatomy) -> None:
    """The sheet between cerebrum and cerebellum, open around the midbrain."""
    w, block = canvas.width, canvas.block
    sz, hx = a.scale[0], a.half_mm[2]
    window = block.window(((-48 * sz, 2 * sz), (0.0, a.half_mm[1] + 2), (-hx, hx)))
    if window is None:
        return
    own = canvas.own(block.position(window), window)
    sheet = sheet_coverage(np.abs(canvas.field("cerebellum", window)), 0.75, w)
    sheet *= coverage(a.tentorium_edge(own), max(w, 1.5))
    sheet *= coverage(canvas.surface(window), w)
    block.paint(window, sheet, 52.0, TISSUES["tentorium"])
