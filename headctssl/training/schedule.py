"""Schedule: learning rate and weight decay as functions of the global step."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["cosine_value", "learning_rate", "weight_decay"]

_POLY_EXPONENT = 0.9  # nnU-Net (Isensee et al. 2021), also OpenMind (arXiv 2412.17041)


def cosine_value(start: float, end: float, step: int, total_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step, ``total_steps - 1``.

    Args:
        start: value at the first step.
        end: value at the last step and after it.
        step: global step, from 0.
        total_steps: steps in all, at least 1.
    """
    if step == 0:
        return start
    share = min(1.0, step / max(1, total_steps - 1))
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    minimum: float = 0.0,
    warmup_steps: int = 0,
    schedule: Literal["cosine", "poly"] = "cosine",
) -> float:
    """Linear warm-up to `peak`, then a decay that reaches `minimum` at the last step.

    Step s of the warm-up uses ``peak * (s + 1) / warmup_steps``: no step is spent at a rate of 0, and the
    last step of the warm-up has the peak.

    Args:
        step: global step, from 0.
        total_steps: steps in all, at least 1.
        peak: the highest rate.
        minimum: the rate at the last step.
        warmup_steps: steps of the warm-up.
        schedule: ``cosine``, or ``poly``: ``(1 - share) ** 0.9``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    start = max(warmup_steps - 1, 0)
    if schedule == "cosine":
        return cosine_value(peak, minimum, step - start, total_steps - start)
    share = min(1.0, (step - start) / max(1, total_steps - 1 - start))
    return minimum + (peak - minimum) * math.pow(1.0 - share, _POLY_EXPONENT)


def weight_decay(step: int, total_steps: int, *, start: float, end: float) -> float:
    """Weight decay of a step: half a cosine from `start` to `end` (DINO, arXiv 2104.14294, section 3.2)."""
    return cosine_value(start, end, step, total_steps)
