"""Scene: one head with its findings, painted in Hounsfield units onto blocks of slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.ingest.phantom.anatomy import Anatomy
from headctssl.ingest.phantom.fields import (
    Array,
    Block,
    CoarseGrid,
    Frame,
    Position,
    coverage,
    index_box,
    sheet_coverage,
)
from headctssl.ingest.phantom.findings import Finding, Fracture, Intraparenchymal, Local, Shift, Swelling
from headctssl.ingest.phantom.shapes import TISSUES, Part

__all__ = ["Scene", "ScenePainter"]

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Scene:
    """What is scanned."""

    anatomy: Anatomy
    findings: tuple[Finding, ...] = ()
    shift: Shift | None = None
    swellings: tuple[Swelling, ...] = ()


class ScenePainter:
    """Paints a scene seen through one frame.

    Args:
        scene: what is scanned.
        frame: scan index to head coordinates.
        shape: voxels (k, j, i) of the scan.
        brain_step_mm: nodes of the fields of the brain; the head's are twice as far apart.
    """

    def __init__(self, scene: Scene, frame: Frame, shape: tuple[int, int, int], brain_step_mm: float) -> None:
        self.scene, self.frame = scene, frame
        limits = np.array([[-0.5, n - 0.5] for n in shape])
        self.box = _clip(index_box(frame, scene.anatomy.head_ranges), limits)
        cavity = _clip(index_box(frame, scene.anatomy.cavity_ranges), limits)
        self.head = CoarseGrid(frame, self.box, 2 * brain_step_mm, self._head_fields)
        self.brain = CoarseGrid(frame, cavity, brain_step_mm, self._brain_fields)

    def _head_fields(self, position: Position) -> dict[str, Array]:
        fields = self.scene.anatomy.head_fields(position)
        for swelling in self.scene.swellings:
            fields["skin"] = fields["skin"] - swelling.at(position)
        return fields

    def _brain_fields(self, position: Position) -> dict[str, Array]:
        z, y, x = position
        fields: dict[str, Array] = {}
        if self.scene.shift is not None:
            fields["shift"] = self.scene.shift.at(position)
            x = x - fields["shift"]
        fields.update(self.scene.anatomy.brain_fields((z, y, x)))
        fields["gap"] = self.scene.anatomy.gap(position) + np.zeros_like(fields["ventricle"])
        return fields

    def paint(self, block: Block) -> Iterator[tuple[Finding, Window, Array]]:
        """Paint everything; yields (finding, part of the block, share covered) as the findings are painted."""
        self._soft_tissue(block)
        for part in self.scene.anatomy.face_parts:
            self._part(block, part)
        self._skull(block)
        self._brain(block)
        for part in self.scene.anatomy.base_parts:
            self._part(block, part)
        yield from self._findings(block)

    def _soft_tissue(self, block: Block) -> None:
        a, w = self.scene.anatomy, block.width
        window = block.window(a.head_ranges)
        if window is None:
            return
        skin = block.field(self.head, "skin", window)
        outer = block.field(self.head, "outer", window)
        mix = block.field(self.head, "mix", window)
        block.paint(window, coverage(skin, w), 42.0, TISSUES["scalp"])
        deep = skin + np.float32(1.8)
        # Over the vault: skin, fat, galea, with muscle at the temples and the nape. Face, neck: fat between muscles.
        fat = np.maximum(deep, np.maximum(np.float32(1.6) - outer, outer - np.float32(9)))
        z, y, _ = block.position((window[0], window[1], slice(window[2].start, window[2].start + 1)))
        sz, sy, _ = a.scale
        temple = np.exp(-(((z + 12 * sz) / (26 * sz)) ** 2) - ((y + 22 * sy) / (24 * sy)) ** 2)
        nape = np.exp(-(((z + 50 * sz) / (22 * sz)) ** 2) - ((y - 75 * sy) / (24 * sy)) ** 2)
        fat += np.clip(9 * (temple + nape) - 2 + mix, 0, None)
        loose = np.maximum(deep + np.float32(2), (np.float32(0.9) - mix) * np.float32(4))
        loose = np.maximum(loose, np.float32(7) - outer)
        block.paint(window, coverage(np.minimum(fat, loose), w), -75.0, TISSUES["fat"])
        for swelling in self.scene.swellings:
            r = 2.2 * swelling.spread_mm
            low_high = [(c - r, c + r) for c in swelling.centre]
            part = block.window((low_high[0], low_high[1], low_high[2]))
            if part is not None:
                raised = swelling.at(block.position(part)) * np.float32(1 / swelling.height_mm)
                skin_part = block.field(self.head, "skin", part)
                cover = coverage(skin_part + 1, w) * np.clip(2 * raised - np.float32(0.5), 0, 1)
                block.paint(part, cover, 55.0, TISSUES["soft_tissue"])

    def _skull(self, block: Block) -> None:
        a, w = self.scene.anatomy, block.width
        window = block.window(a.head_ranges)
        if window is None:
            return
        outer = block.field(self.head, "outer", window)
        inner = block.field(self.head, "inner", window)
        block.paint(window, coverage(outer, w), a.bone_hu, TISSUES["bone"])
        marrow = np.maximum(outer, -inner) + np.float32(1.7)
        if w > 2:  # Coarse voxels cannot resolve the tables; the mean density stays.
            marrow += np.float32(0.6)
        mix = block.field(self.head, "mix", window)
        block.paint(window, coverage(marrow, w), np.float32(a.diploe_hu) + mix * np.float32(110), TISSUES["diploe"])
        block.paint(window, coverage(inner, w), a.csf_hu, TISSUES["csf"])

    def _brain(self, block: Block) -> None:
        a, w = self.scene.anatomy, block.width
        window = block.window(a.cavity_ranges)
        if window is None:
            return
        inner = block.field(self.head, "inner", window)
        sulci = np.abs(block.field(self.brain, "sulci", window))
        depth = -inner - block.field(self.brain, "gap", window)
        sulci += np.clip(depth - np.float32(15), 0, None) * np.float32(0.25)
        sulci += np.clip(depth, 0, None) * np.float32(0.035)
        brain = coverage(-depth, w)
        brain *= 1 - sheet_coverage(sulci, a.sulcus_mm, w)
        ribbon = np.minimum(depth, sulci - np.float32(a.sulcus_mm))
        grey = coverage(ribbon - np.float32(2.7), max(w, 1.2))
        block.paint(window, brain, np.float32(a.white_hu) + np.float32(a.grey_hu - a.white_hu) * grey)
        if block.tissue is not None:
            part = block.tissue[window]
            part[(brain > 0.5) & (grey > 0.5)] = TISSUES["cortex"]
            part[(brain > 0.5) & (grey <= 0.5)] = TISSUES["white_matter"]
        for item in a.brain_parts:
            self._part(block, item, brain=True)
        self._ventricles(block)
        self._midline(block)
        # Beam hardening: brain next to the skull is a few HU brighter.
        glow = np.exp(np.minimum(inner, 0) * np.float32(1 / 6)) * coverage(inner, w)
        block.hu[window] += np.float32(5) * glow

    def _position(self, block: Block, window: Window) -> tuple[Position, Array]:
        """Head coordinates, and x in the brain's own coordinates."""
        position = block.position(window)
        if self.scene.shift is None:
            return position, position[2]
        return position, position[2] - block.field(self.brain, "shift", window)

    def _part(self, block: Block, part: Part, *, brain: bool = False) -> None:
        (z, y, (x0, x1)) = part.ranges
        reach = abs(self.scene.shift.mm) if brain and self.scene.shift is not None else 0.0
        window = block.window((z, y, (x0 - reach, x1 + reach)))
        if window is None:
            return
        position, brain_x = self._position(block, window) if brain else (block.position(window), None)
        if brain_x is not None:
            position = (position[0], position[1], brain_x)
        cover = coverage(part.distance(position), block.width)
        if brain:
            cover *= coverage(block.field(self.head, "inner", window) + np.float32(1), block.width)
        if part.texture:
            z_mm, y_mm, x_mm = position
            bent = np.sin(z_mm * 0.43 + 0.31 * x_mm) + np.sin(0.37 * y_mm - 0.23 * z_mm)
            cells = np.abs(np.sin(0.42 * y_mm + 1.3 * bent)) * np.abs(np.sin(0.5 * x_mm + 0.9 * bent + 1.57))
            cover *= np.clip(np.float32(3.2) * cells, 0.1, 1)
        block.paint(window, cover, part.hu, TISSUES[part.tissue])

    def _ventricles(self, block: Block) -> None:
        a, w = self.scene.anatomy, block.width
        sz, sy, sx = a.scale
        reach = abs(self.scene.shift.mm) if self.scene.shift is not None else 0.0
        window = block.window(((-40 * sz, 40 * sz), (-55 * sy, 76 * sy), (-46 * sx - reach, 46 * sx + reach)))
        if window is not None:
            cover = coverage(block.field(self.brain, "ventricle", window), w)
            block.paint(window, cover, a.csf_hu, TISSUES["ventricle"])
        septum = block.window(((-2 * sz, 30 * sz), (-38 * sy, 16 * sy), (-3 - reach, 3 + reach)))
        if septum is not None:
            position, x = self._position(block, septum)
            cover = sheet_coverage(np.abs(x), 0.7, w)
            rim = ((position[0] - np.float32(10 * sz)) / (16 * sz)) ** 2
            rim = rim + ((position[1] + np.float32(11 * sy)) / (26 * sy)) ** 2
            cover *= np.clip(3 * (1 - rim), 0, 1)
            block.paint(septum, cover, a.white_hu + 2, TISSUES["white_matter"])

    def _midline(self, block: Block) -> None:
        """Interhemispheric fissure, falx, superior sagittal sinus."""
        a, w = self.scene.anatomy, block.width
        sz, sy, _ = a.scale
        reach = abs(self.scene.shift.mm) if self.scene.shift is not None else 0.0
        z_range, y_range, _ = a.cavity_ranges
        window = block.window(((-30 * sz, z_range[1]), y_range, (-9 - reach, 9 + reach)))
        if window is None:
            return
        (z, y, x), brain_x = self._position(block, window)
        inner = block.field(self.head, "inner", window)
        inside = coverage(inner, w)
        # The corpus callosum and what lies under it is an ellipse in the midline; the fissure begins outside.
        q = np.sqrt(((z + 2 * sz) / (32 * sz)) ** 2 + ((y - 4 * sy) / (50 * sy)) ** 2)
        outside = coverage((1 - q) * np.float32(32), w) * coverage(np.float32(-18 * sz) - z, 4.0) * inside
        off = np.abs(brain_x)
        block.paint(window, sheet_coverage(off, 1.1 + 0.25 * a.gap_mm, w) * outside, a.csf_hu, TISSUES["csf"])
        falx = sheet_coverage(off, 0.7, w) * coverage((np.float32(1.1) - q) * np.float32(32), w) * outside
        block.paint(window, falx, 58.0, TISSUES["falx"])
        sinus = np.abs(x) - np.float32(0.7) * inner - np.float32(5)  # a triangle below the vault
        cover = coverage(sinus, w) * inside * coverage(np.maximum(np.float32(-60) - y, 0) - z + np.float32(5), 6.0)
        block.paint(window, cover, 54.0, TISSUES["venous_sinus"])

    def _local(self, block: Block, window: Window) -> Local:
        position, brain_x = self._position(block, window)
        return Local(
            position,
            brain_x,
            block.field(self.head, "inner", window),
            block.field(self.head, "outer", window),
            block.field(self.brain, "ventricle", window),
        )

    def _findings(self, block: Block) -> Iterator[tuple[Finding, Window, Array]]:
        for finding in self.scene.findings:
            window = block.window(finding.ranges)
            if window is None:
                continue
            local = self._local(block, window)
            if isinstance(finding, Intraparenchymal):
                block.paint(window, finding.oedema(local, block.width), 18.0, TISSUES["oedema"])
            cover = finding.cover(local, block.width)
            tissue = TISSUES["soft_tissue" if isinstance(finding, Fracture) else "blood"]
            block.paint(window, cover, finding.hu, tissue)
            yield finding, window, cover


def _clip(box: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.stack([np.maximum(box[:, 0], limits[:, 0]), np.minimum(box[:, 1], limits[:, 1])], axis=1)
    return np.where(out[:, :1] < out[:, 1:], out, np.stack([limits[:, 0], limits[:, 0] + 1.0], axis=1))
