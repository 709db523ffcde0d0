"""Scene: one head with its findings, painted in Hounsfield units onto blocks of slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headctssl.ingest.phantom.anatomy import Anatomy
from headctssl.ingest.phantom.base_head import BaseHead
from headctssl.ingest.phantom.bleeds import Subdural, UnderSkull
from headctssl.ingest.phantom.canvas import Canvas, Window
from headctssl.ingest.phantom.fields import Array, Block, CoarseGrid, Frame, Position
from headctssl.ingest.phantom.findings import Finding, Local, Swelling
from headctssl.ingest.phantom.growth import Inside, pushed_mm
from headctssl.ingest.phantom.lesions import Tumour
from headctssl.ingest.phantom.lump import Lump
from headctssl.ingest.phantom.paint_base import paint_base
from headctssl.ingest.phantom.paint_brain import paint_brain
from headctssl.ingest.phantom.paint_head import paint_skull, paint_soft_tissue
from headctssl.ingest.phantom.shapes import TISSUES
from headctssl.ingest.phantom.warp import Warp

__all__ = ["Scene", "ScenePainter"]

_NEEDS_CSF = ("SAH", "Infarct", "Tumor")
_TISSUE = {"Fracture": "soft_tissue", "Infarct": "infarct", "Tumor": "tumour"}


@dataclass(frozen=True)
class Scene:
    """What is scanned."""

    anatomy: Anatomy | BaseHead
    findings: tuple[Finding, ...] = ()  # painted in this order
    warp: Warp = field(default_factory=Warp)
    swellings: tuple[Swelling, ...] = ()
    hydrocephalus_mm: float = 0.0  # by which the ventricles were widened

    @property
    def dural(self) -> tuple[UnderSkull, ...]:
        """Bleeds under the skull, which push the brain inwards."""
        return tuple(f for f in self.findings if isinstance(f, UnderSkull))

    @property
    def inside(self) -> Inside:
        """The head as a finding meets it."""
        return Inside(self.anatomy, self.warp, self.dural)

    @property
    def midline_mm(self) -> float:
        """Where the septum pellucidum is found, in mm towards the left of the middle of the skull."""
        sz, sy, _ = self.anatomy.scale
        return self.warp.midline_mm(9.0 * sz, -6.0 * sy)


class ScenePainter:
    """Paints a scene seen through one frame.

    Args:
        scene: what is scanned.
        frame: scan index to head coordinates.
        shape: voxels (k, j, i) of the scan.
        brain_step_mm: nodes of the fields of the brain; the head's are twice as far apart.
        cupping_hu: how much brighter brain next to the skull is.
    """

    def __init__(
        self, scene: Scene, frame: Frame, shape: tuple[int, int, int], brain_step_mm: float, cupping_hu: float = 5.0
    ) -> None:
        self.scene, self.frame, self.cupping_hu = scene, frame, cupping_hu
        limits = np.array([[-0.5, n - 0.5] for n in shape])
        self.box = _clip(frame.index_box(scene.anatomy.head_ranges), limits)
        cavity = _clip(frame.index_box(scene.anatomy.cavity_ranges), limits)
        self.head = CoarseGrid(frame, self.box, 2 * brain_step_mm, self._head_fields)
        self.brain = CoarseGrid(frame, cavity, brain_step_mm, self._brain_fields)

    def _head_fields(self, position: Position) -> dict[str, Array]:
        fields = self.scene.anatomy.head_fields(position)
        for swelling in self.scene.swellings:
            fields["skin"] = fields["skin"] - swelling.at(position)
        return fields

    def _brain_fields(self, position: Position) -> dict[str, Array]:
        warp, anatomy = self.scene.warp, self.scene.anatomy
        own = warp.back(position)
        fields = dict(anatomy.brain_fields(own))
        still = np.zeros_like(fields["ventricle"])
        fields["gap"] = anatomy.gap(position) + still
        if warp.moves:
            names = ("dz", "dy", "dx") if warp.masses else ("dx",)
            moved = {n: p - o + still for n, p, o in zip(("dz", "dy", "dx"), position, own, strict=True)}
            fields.update({name: moved[name] for name in names})
        if self.scene.dural:
            inner = anatomy.inner_table(position)
            local = Local(position, own, inner, inner, inner, fields["ventricle"], still)
            fields["pushed"] = pushed_mm(self.scene.dural, local)
        return fields

    def paint(self, block: Block) -> Iterator[tuple[Finding, Window, Array]]:
        """Paint everything; yields (finding, part of the block, share covered) as the findings are painted."""
        canvas = Canvas(self.scene, block, self.head, self.brain, self.cupping_hu)
        if isinstance(self.scene.anatomy, BaseHead):
            paint_base(canvas, self.scene.anatomy)
        else:
            _paint_parametric(canvas, self.scene.anatomy)
        yield from _findings(canvas)


def _paint_parametric(canvas: Canvas, anatomy: Anatomy) -> None:
    paint_soft_tissue(canvas, anatomy)
    for part in anatomy.face_parts:
        canvas.part(part)
    paint_skull(canvas, anatomy)
    paint_brain(canvas, anatomy)
    for part in anatomy.base_parts:
        canvas.part(part)


def _findings(canvas: Canvas) -> Iterator[tuple[Finding, Window, Array]]:
    block, w = canvas.block, canvas.width
    for finding in canvas.scene.findings:
        window = block.window(finding.ranges)
        if window is None:
            continue
        local = canvas.local(window, csf=finding.kind in _NEEDS_CSF)
        if isinstance(finding, Lump):
            wet = max(canvas.scene.anatomy.white_hu - 12.0, 10.0)
            block.paint(window, finding.oedema(local, w), wet, TISSUES["oedema"])
        cover = finding.cover(local, w)
        block.paint(window, cover, _density(finding, local), TISSUES[_TISSUE.get(finding.kind, "blood")])
        if isinstance(finding, Tumour) and finding.core_level > 0:
            block.paint(window, finding.core(local, w), finding.core_hu)
        yield finding, window, cover


def _density(finding: Finding, local: Local) -> Array | float:
    """HU of a finding; cells of an old bleed sink to the back."""
    if isinstance(finding, Subdural) and finding.settled_hu > 0:
        y = local.position[1] - np.float32(finding.centre[1])
        sunk = np.clip(y * np.float32(1 / max(finding.extent[1], 1.0)) + np.float32(0.5), 0, 1)
        return np.asarray(np.float32(finding.hu) + np.float32(finding.settled_hu) * sunk + 0 * local.inner, np.float32)
    return finding.hu


def _clip(box: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.stack([np.maximum(box[:, 0], limits[:, 0]), np.minimum(box[:, 1], limits[:, 1])], axis=1)
    return np.where(out[:, :1] < out[:, 1:], out, np.stack([limits[:, 0], limits[:, 0] + 1.0], axis=1))
