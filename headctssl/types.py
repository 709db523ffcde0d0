"""Types: what crosses module borders, with the shape and unit of every array. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headctssl.seeding import sample_generator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Box",
    "Clock",
    "EncoderOutput",
    "PretrainBatch",
    "StepResult",
    "Triple",
    "Views",
    "Volume",
    "VolumeInfo",
]

Triple = tuple[float, float, float]
"""One number per axis (z, y, x)."""

_WHOLLY = 0.99  # share of a voxel that counts as all of it: sums of weights are rounded

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(start, stop) in voxels per axis (z, y, x), stop exclusive."""


@dataclass(frozen=True)
class VolumeInfo:
    """What reading an image found and did."""

    source_format: str  # "nifti", "nrrd", "metaimage", "dicom"
    original_shape: tuple[int, int, int]  # voxels (slices, rows, columns) as stored in the file
    original_spacing_mm: Triple  # (slice, row, column) as stored; slice = median gap
    tilt_deg: float = 0.0  # angle between the slice normal and the stacking direction
    straightened: bool = False  # True when voxels were resampled to a straight, even grid
    slice_gaps_mm: tuple[float, ...] = ()  # distinct gaps along the slice normal, rounded to 0.01 mm
    original_affine: tuple[tuple[float, ...], ...] = ()  # 4x4, stored (slice, row, column) index -> (S, P, L) mm
    metadata: tuple[tuple[str, str], ...] = ()  # (name, value): kvp, convolution_kernel, ...; never identifying
    notes: tuple[str, ...] = ()  # sentences on what was noticed or done
    displacement_mm: float = 0.0  # largest in-plane distance by which straightening moved a slice


@dataclass(frozen=True)
class Volume:
    """A straight, even volume in Hounsfield units.

    Axes are (z, y, x), growing towards superior, posterior, patient left.
    """

    hu: NDArray[np.int16]  # (z, y, x), Hounsfield units; of a read image possibly a flipped view of what was stored
    affine: NDArray[np.float64]  # (4, 4), index (z, y, x, 1) -> mm (S, P, L, 1); columns orthogonal
    info: VolumeInfo

    @property
    def spacing_mm(self) -> Triple:
        """Distance between voxel centres per axis (z, y, x) in mm."""
        s = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(s[0]), float(s[1]), float(s[2]))


@dataclass
class PretrainBatch:
    """A batch as read from the store: raw Hounsfield units, nothing drawn but the crop."""

    volume: Tensor  # int16 (B, 1, D, H, W) Hounsfield units at storage spacing, padded with -1024
    inside_box: Tensor  # int64 (B, 3, 2), start and stop per axis of the stored voxels in `volume`, on the CPU
    head_box: Tensor  # float32 (B, 3, 2), start and stop of the head per axis in voxels of `volume`
    case_index: Tensor  # int64 (B,), row of the case in the index
    sample_index: Tensor  # int64 (B,), position in the global order of the epoch
    spacing_mm: Tensor  # float32 (B, 3), storage spacing (z, y, x) in mm
    seed: int
    epoch: int
    masks: dict[str, Tensor] = field(default_factory=dict)  # name -> bool (B, 1, D, H, W), names of the raw dataset
    segmentation: Tensor | None = None  # int16 (B, 1, D, H, W), position in the run's classes + 1, 0 = none, -1 unknown
    known_classes: Tensor | None = None  # bool (B, K), the classes that the case's dataset marks; with segmentation
    labels: Tensor | None = None  # float32 (B, L), NaN = unknown; fine-tuning only

    @property
    def inside(self) -> Tensor:
        """Bool (B, 1, D, H, W), True where a stored voxel was read; made anew each time it is asked for."""
        inside = self.volume.new_zeros(self.volume.shape).bool()
        for mask, ((z0, z1), (y0, y1), (x0, x1)) in zip(inside, self.inside_box.tolist(), strict=True):
            mask[:, z0:z1, y0:y1, x0:x1] = True
        return inside


@dataclass
class Views:
    """What an encoder sees: named groups of views, every view float in [0, 1]."""

    groups: dict[str, tuple[Tensor, ...]]  # name -> views, each float32 (B, C, D, H, W) in [0, 1]
    inside: dict[str, Sequence[Tensor]]  # name -> per view float32 (B, 1, D, H, W), share of stored voxels in [0, 1]
    sample_index: Tensor  # int64 (B,)
    seed: int
    epoch: int
    labels: Tensor | None = None  # float32 (B, L), NaN = unknown
    foreground: dict[str, Tensor] = field(default_factory=dict)  # name -> (V, B) share of a view's voxels above -500 HU
    anonymised: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Name -> per view float32 (B, 1, D, H, W), share of anonymised voxels in [0, 1]; empty where no scan has any."""
    segmentation: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Name -> per view int16 (B, 1, D, H, W), position in the run's classes + 1, 0 = none of them, -1 = unknown."""
    known_classes: Tensor | None = None  # bool (B, K), the classes that the scan's dataset marks; with segmentation
    tissue: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Name -> per view bool (B, 1, D, H, W), True above -500 HU; only where the view plan asks for it."""
    boxes: dict[str, Tensor] = field(default_factory=dict)
    """Name -> float32 (V, B, 3, 2) on the CPU: the box (z, y, x) that each view shows, before any rotation, in voxels
    of the read volume; comparable between the views of one scan."""
    flipped: dict[str, Tensor] = field(default_factory=dict)
    """Name -> bool (V, B) on the CPU: whether left and right are swapped in the view."""

    def valid(self, group: str, index: int) -> Tensor:
        """Where a view shows what was measured and nothing else: no part of the outside, nor of an anonymised voxel.

        Every loss on voxels counts these alone. A mask can only take voxels away.

        Args:
            group: name of the group of views.
            index: which view of the group, from 0.

        Returns:
            bool (B, 1, D, H, W).
        """
        valid = self.inside[group][index] >= _WHOLLY
        if self.anonymised:
            valid &= self.anonymised[group][index] <= 0.0
        return valid

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        return int(self.sample_index.shape[0])

    def generators(self, purpose: str) -> list[np.random.Generator]:
        """One CPU generator per sample for one purpose, a function of seed, epoch and sample only."""
        return [sample_generator(self.seed, self.epoch, int(i), purpose) for i in self.sample_index.tolist()]


@dataclass
class EncoderOutput:
    """What every encoder returns."""

    tokens: Tensor  # (B, N, C), N = d*h*w or K kept tokens, in `networks.tokens` order
    grid: tuple[int, int, int]  # (d, h, w) of the whole input, also when only K tokens were kept
    cls: Tensor | None  # (B, C) class token, transformers that have one
    features: Tensor  # (B, C): cls, else mean of tokens
    pyramid: tuple[Tensor, ...] | None = None  # CNN: (B, C_i, D_i, H_i, W_i), finest first


@dataclass(frozen=True)
class Clock:
    """Where a run stands. Schedules are functions of `step` over `total_steps`."""

    step: int  # optimiser steps already taken, from 0
    total_steps: int
    epoch: int
    steps_per_epoch: int

    @property
    def epochs(self) -> float:
        """Epochs done so far, fractional."""
        return self.step / max(1, self.steps_per_epoch)


@dataclass
class StepResult:
    """What one forward pass of a method or task gives."""

    loss: Tensor  # scalar float32, mean over samples
    logs: dict[str, Any] = field(default_factory=dict)  # name -> detached scalar tensor or float
