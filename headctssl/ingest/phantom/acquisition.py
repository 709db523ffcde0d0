"""Acquisition: how a head is scanned: grid, pose, tilt, slice thickness, noise, holder, padding.

Scanner coordinates (S, P, L) in mm; the head is turned and moved in them. A voxel index (k, j, i)
goes to scanner and head coordinates by affine maps, so a scan is painted where its voxels are and
is never resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headctssl.ingest.phantom.artefacts import Noise, degrade
from headctssl.ingest.phantom.fields import Array, Block, Frame, coverage, sheet_coverage
from headctssl.ingest.phantom.findings import FINDING_IDS, Finding
from headctssl.ingest.phantom.scene import Scene, ScenePainter
from headctssl.ingest.phantom.shapes import TISSUES, Triple

__all__ = ["Acquisition", "Scan", "acquire"]

_BLOCK_VOXELS = 300_000  # voxels painted at a time: about what stays in a core's cache


@dataclass(frozen=True)
class Acquisition:
    """Settings of one scan."""

    matrix: int  # rows and columns
    pixel_mm: float
    thickness_mm: float  # thickness of and distance between slices
    slices: int
    bottom_mm: float  # scanner S of the lowest slice
    rotation_deg: Triple = (0.0, 0.0, 0.0)  # about the S axis, the P axis (roll), the L axis (pitch)
    shift_mm: Triple = (0.0, 0.0, 0.0)  # S, P, L
    tilt_deg: float = 0.0  # of the gantry
    sheared: bool = False  # slices stay stacked along the table: a sheared affine
    noise_hu: float = 4.0  # standard deviation in the head
    sharp: bool = False  # bone kernel: noise is nearly white
    padding_hu: int = -1024  # outside the circle of reconstruction
    circle: bool = False  # only a circle is reconstructed
    holder: bool = True
    noise_seed: int = 0
    kvp: int = 120
    ringing: float = 0.0  # of a sharp kernel: how much edges are overdrawn
    streak_hu: float = 0.0  # dark bands between the petrous bones, bright rays beside them
    metal_mm: Triple | None = None  # head coordinates of a piece of metal, which throws rays
    motion_mm: float = 0.0  # sideways movement during some slices
    motion_span: tuple[float, float] = (0.0, 0.0)  # scanner S in mm of these slices
    offset_hu: float = 0.0  # of the scanner's calibration, added to everything but air
    cupping_hu: float = 5.0  # how much brighter brain next to the skull is: beam hardening

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): index (k, j, i, 1) -> scanner (S, P, L, 1) in mm; sheared only when `sheared`."""
        half = (self.matrix - 1) / 2 * self.pixel_mm
        out = np.diag([self.thickness_mm, self.pixel_mm, self.pixel_mm, 1.0])
        out[:3, 3] = (self.bottom_mm, -half, -half)
        if self.sheared:
            t = np.deg2rad(self.tilt_deg)
            row = np.array([-np.sin(t), np.cos(t), 0.0]) * self.pixel_mm
            # Thickness is along the slice normal; the table moves further than that.
            out[:3, 0] = (self.thickness_mm / np.cos(t), 0.0, 0.0)
            out[:3, 1] = row
            out[:3, 3] = np.array([self.bottom_mm, 0.0, -half]) - row * (self.matrix - 1) / 2
        return out

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3): head coordinates -> scanner coordinates, before `shift_mm` is added."""
        turn, roll, pitch = np.deg2rad(self.rotation_deg)
        if self.tilt_deg and not self.sheared:
            pitch = pitch - np.deg2rad(self.tilt_deg)
        about_s = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
        about_p = np.array([[np.cos(roll), 0, -np.sin(roll)], [0, 1, 0], [np.sin(roll), 0, np.cos(roll)]])
        about_l = np.array([[np.cos(pitch), -np.sin(pitch), 0], [np.sin(pitch), np.cos(pitch), 0], [0, 0, 1]])
        return np.asarray(about_s @ about_p @ about_l, np.float64)

    @property
    def frame(self) -> Frame:
        """Index to head coordinates."""
        rotation, affine = self.rotation, self.affine
        return Frame(rotation.T @ affine[:3, :3], rotation.T @ (affine[:3, 3] - np.array(self.shift_mm)))


@dataclass(frozen=True)
class Scan:
    """What a scan gives."""

    hu: NDArray[np.int16]  # (k, j, i), -1024 outside the circle
    affine: NDArray[np.float64]  # (4, 4), index -> (S, P, L) mm
    segmentation: NDArray[np.uint8]  # (k, j, i), `FINDING_IDS`
    outside: NDArray[np.bool_] | None  # (j, i), not reconstructed
    tissues: NDArray[np.uint8] | None  # (k, j, i), `TISSUES`


def acquire(scene: Scene, acquisition: Acquisition, *, tissues: bool = False) -> Scan:
    """Scan a scene.

    Args:
        scene: the head and its findings.
        acquisition: how.
        tissues: also give the tissue that fills most of each voxel.
    """
    a = acquisition
    shape = (a.slices, a.matrix, a.matrix)
    frame = a.frame
    parts = max(1, round(a.thickness_mm / max(1.3, a.pixel_mm)))  # thin slices that make up one slice
    painter = ScenePainter(scene, frame, shape, max(2.0, a.pixel_mm), a.cupping_hu)
    j, i = _span(painter.box[1], a.matrix), _span(painter.box[2], a.matrix)
    plane = _holder(a)
    noise = Noise(a)
    hu = np.empty(shape, np.int16)
    labels = np.zeros((a.slices, len(j), len(i)), np.uint8) if tissues else None
    covers: dict[int, list[tuple[NDArray[np.intp], Array]]] = {}
    number = {id(f): n for n, f in enumerate(scene.findings)}
    step = max(1, _BLOCK_VOXELS // (parts * len(j) * len(i)))
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    width = max(a.pixel_mm, 0.6 if a.sharp else 0.9)
    window = (slice(None), slice(int(j[0]), int(j[-1]) + 1), slice(int(i[0]), int(i[-1]) + 1))
    for start in range(0, a.slices, step):
        k = np.arange(start, min(start + step, a.slices))
        block = Block(frame, (k[:, None] + offsets).ravel(), j, i, width=width, background=-1000.0, tissues=tissues)
        block.hu[:] = plane[window[1:]]
        for finding, part, cover in painter.paint(block):
            covers.setdefault(number[id(finding)], []).append(_collect(block, part, cover, start, parts, shape))
        slices = np.broadcast_to(plane, (len(k), *shape[1:])).copy()
        slices[window] = block.hu.reshape(len(k), parts, len(j), len(i)).mean(axis=1)
        degrade(slices, a, k)
        noise.add(slices)
        np.rint(np.clip(slices, -1024, 3071), out=slices)
        hu[start : start + len(k)] = slices
        if labels is not None and block.tissue is not None:
            labels[start : start + len(k)] = block.tissue[parts // 2 :: parts]
    outside = _outside(a)
    if outside is not None:
        hu[:, outside] = -1024
    all_tissues = None
    if labels is not None:
        all_tissues = np.zeros(shape, np.uint8)
        all_tissues[:, plane > -990] = TISSUES["holder"]
        all_tissues[window] = np.where(labels > 0, labels, all_tissues[window])
    return Scan(hu, a.affine, _segmentation(scene.findings, covers, shape), outside, all_tissues)


def _span(box: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    start, stop = max(0, int(np.floor(box[0]))), min(count - 1, int(np.ceil(box[1])))
    return np.arange(start, max(stop, start) + 1, dtype=np.float64)


def _collect(
    block: Block,
    part: tuple[slice, slice, slice],
    cover: Array,
    start: int,
    parts: int,
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.intp], Array]:
    """Flat voxel indices and the share that one finding covers, averaged over the parts of each slice."""
    count = len(block.k) // parts
    full = np.zeros((count * parts, *cover.shape[1:]), np.float32)
    full[part[0]] = cover
    mean = full.reshape(count, parts, *cover.shape[1:]).mean(axis=1)
    k, j, i = np.nonzero(mean > 0.1)
    flat = (k + start) * shape[1] * shape[2]
    flat += (j + part[1].start + int(block.j[0])) * shape[2] + i + part[2].start + int(block.i[0])
    return flat, mean[k, j, i]


def _segmentation(
    findings: tuple[Finding, ...],
    covers: dict[int, list[tuple[NDArray[np.intp], Array]]],
    shape: tuple[int, int, int],
) -> NDArray[np.uint8]:
    """A voxel belongs to a finding that fills half of it, or half of what it fills at most (thin gaps)."""
    out = np.zeros(int(np.prod(shape)), np.uint8)
    for number, finding in enumerate(findings):
        pieces = covers.get(number, [])
        if pieces:
            flat = np.concatenate([p[0] for p in pieces])
            share = np.concatenate([p[1] for p in pieces])
            most = float(share.max()) if share.size else 0.0
            out[flat[share > min(0.5, 0.5 * most)]] = FINDING_IDS[finding.kind]
    return out.reshape(shape)


def _plane(a: Acquisition) -> tuple[Array, Array]:
    offset = ((np.arange(a.matrix) - (a.matrix - 1) / 2) * a.pixel_mm).astype(np.float32)
    return offset[:, None], offset[None, :]


def _holder(a: Acquisition) -> Array:
    """HU of air and of the head holder (a curved plate with a foam pad), the same in every slice."""
    out = np.full((a.matrix, a.matrix), -1000.0, np.float32)
    if not a.holder:
        return out
    p, left = _plane(a)
    radius = 100.0
    away = np.sqrt((p - np.float32(a.shift_mm[1] + 8)) ** 2 + (left - np.float32(a.shift_mm[2])) ** 2)
    below = coverage(np.float32(28.0 + a.shift_mm[1]) - p, a.pixel_mm) + np.zeros_like(away)
    pad = coverage(np.abs(away - np.float32(radius - 3)) - np.float32(3), a.pixel_mm) * below
    plate = sheet_coverage(np.abs(away - np.float32(radius + 2)), 1.6, a.pixel_mm) * below
    out += pad * np.float32(90)
    out += plate * (np.float32(180) - out)
    return out


def _outside(a: Acquisition) -> NDArray[np.bool_] | None:
    if not a.circle:
        return None
    p, left = _plane(a)
    return np.asarray(p * p + left * left > (a.matrix * a.pixel_mm / 2) ** 2)
