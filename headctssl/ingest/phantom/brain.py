"""Brain: which share of each place inside the skull is brain, and which CSF between brain and skull."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headctssl.ingest.phantom.fields import Array, Position, coverage, sheet_coverage
from headctssl.ingest.phantom.shapes import Part

if TYPE_CHECKING:
    from headctssl.ingest.phantom.anatomy import Anatomy

__all__ = ["BrainShares", "brain_shares", "subarachnoid_share"]

_WET = ("csf",)
_SOLID = ("brain_stem", "deep_grey", "ventricle", "vessel", "venous_sinus", "calcification")


@dataclass(frozen=True)
class BrainShares:
    """Shares of each place, before the small parts of the brain are put in."""

    brain: Array  # brain of either kind
    ribbon: Array  # depth under the surface of the brain or of a sulcus in mm


def brain_shares(
    anatomy: Anatomy, surface: Array, gap: Array, sulci: Array, cerebellum: Array, width: float
) -> BrainShares:
    """Brain between the inner table and the depth of the sulci.

    Args:
        anatomy: the head.
        surface: signed distance to the surface that the brain lies under in mm.
        gap: how far under it the brain begins in mm.
        sulci: signed distance to the sheets of the sulci in mm.
        cerebellum: signed distance to the tentorium in mm, positive below it.
        width: extent of partial-volume transitions in mm.
    """
    sheets = np.abs(sulci)
    depth = -surface - gap
    # Sulci close with depth; the fissures of the cerebellum are narrower than the sulci of the cerebrum.
    sheets += np.clip(depth - np.float32(15), 0, None) * np.float32(0.25)
    sheets += np.clip(depth, 0, None) * np.float32(0.035)
    sheets += np.clip(cerebellum, 0, 1) * np.float32(0.3 + 0.35 * anatomy.sulcus_mm)
    brain = coverage(-depth, width)
    brain *= 1 - sheet_coverage(sheets, anatomy.sulcus_mm, width)
    brain *= 1 - sheet_coverage(np.abs(cerebellum), 0.9 + 0.3 * anatomy.gap_mm, width)
    ribbon = np.minimum(depth, sheets - np.float32(anatomy.sulcus_mm))
    return BrainShares(brain, ribbon)


def _everywhere(_part: Part) -> tuple[slice, ...]:
    return ()  # the whole of an array of any number of axes


def subarachnoid_share(
    anatomy: Anatomy,
    brain: Array,
    surface: Array,
    ventricle: Array,
    position: Position,
    width: float,
    where: Callable[[Part], tuple[slice, ...] | None] = _everywhere,
) -> Array:
    """Share of each place that is CSF outside the ventricles: what is inside the skull and no brain, and the cisterns.

    Args:
        anatomy: the head.
        brain: share that is brain, from `brain_shares`.
        surface: signed distance to the surface that the brain lies under in mm.
        ventricle: signed distance to the lateral ventricles in mm.
        position: the brain's own coordinates.
        width: extent of partial-volume transitions in mm.
        where: the part of the arrays that a small piece touches, None for nothing.
    """
    share = coverage(surface, width) * (1 - brain)
    for part in anatomy.brain_parts:
        window = where(part)
        if window is None or part.tissue not in (*_WET, *_SOLID):
            continue
        there = share[window]
        cover = coverage(part.distance((position[0][window], position[1][window], position[2][window])), width)
        if part.tissue in _WET:
            there += cover * (1 - there)
        else:
            there *= 1 - cover
    share *= 1 - coverage(ventricle - np.float32(1), width)
    return np.asarray(share, np.float32)
