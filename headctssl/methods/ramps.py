"""Ramps: values that change over a run, as functions of the global step alone."""

from __future__ import annotations

import math

__all__ = ["cosine_ramp", "linear_ramp"]


def cosine_ramp(start: float, end: float, step: int, total_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step, total_steps - 1."""
    if step == 0:
        return start
    share = min(1.0, step / max(1, total_steps - 1))
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def linear_ramp(start: float, end: float, step: int, ramp_steps: int) -> float:
    """A straight line from `start` at step 0 to `end` at step `ramp_steps`, then constant."""
    if ramp_steps <= 0:
        return end
    return start + (end - start) * min(1.0, step / ramp_steps)
