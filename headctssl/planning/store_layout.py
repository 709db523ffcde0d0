"""Store layout: which of the measured layouts the cases of a dataset are stored in."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from headctssl.types import Triple
from headctssl.volume.layout import StoreLayout

__all__ = ["HEADS_PER_SECOND", "MEASURED", "LayoutChoice", "MeasuredLayout", "choose_layout"]

HEADS_PER_SECOND = 30.0
"""Whole heads that one core should read in a second, so that 16 cores feed 480 of them to a GPU."""

_MARGIN_MM = 20.0  # both sides of the crop rule
_BYTES = 2  # of a voxel in memory


@dataclass(frozen=True)
class MeasuredLayout:
    """What a layout cost on a real head of 148x241x214 voxels of 1 mm and 15.3 MB, on one thread, checks included."""

    layout: StoreLayout
    stored_mb: float
    crop_ms: float  # a crop of 96^3 voxels
    read_mb_s: float  # of int16 voxels, when the whole head is read


MEASURED: tuple[MeasuredLayout, ...] = (
    MeasuredLayout(StoreLayout(codec="zstd", level=1), stored_mb=5.86, crop_ms=4.7, read_mb_s=840),
    MeasuredLayout(StoreLayout(codec="lz4", level=1), stored_mb=7.82, crop_ms=2.9, read_mb_s=1350),
)
"""Smallest first. The whole table, other edges and codecs among them, is in documentation/preprocessing.md."""


@dataclass(frozen=True)
class LayoutChoice:
    """A layout, and what it means for the heads of a dataset."""

    measured: MeasuredLayout
    head_mb: float  # voxels of the 95th-percentile head as int16
    heads_per_second: float  # read by one core

    @property
    def enough(self) -> bool:
        """Whether `HEADS_PER_SECOND` is reached."""
        return self.heads_per_second >= HEADS_PER_SECOND


def choose_layout(extent_mm: Triple, spacing_mm: Triple) -> LayoutChoice:
    """The smallest of the measured layouts that reads enough whole heads a second, else the fastest.

    Args:
        extent_mm: sides (z, y, x) of the 95th-percentile head in mm.
        spacing_mm: storage spacing (z, y, x) in mm.
    """
    head_mb = prod((side + _MARGIN_MM) / step for side, step in zip(extent_mm, spacing_mm, strict=True)) * _BYTES / 1e6
    choices = [LayoutChoice(measured, head_mb, measured.read_mb_s / head_mb) for measured in MEASURED]
    enough = [choice for choice in choices if choice.enough]
    return enough[0] if enough else max(choices, key=lambda choice: choice.heads_per_second)
