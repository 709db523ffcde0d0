"""Schedules: what changes over a run of self-distillation, as functions of the step."""

from __future__ import annotations

from headctssl.methods.dino.settings import DinoSettings
from headctssl.methods.ramps import cosine_ramp, linear_ramp
from headctssl.types import Clock

__all__ = ["frozen_steps", "teacher_momentum", "teacher_temperature"]


def teacher_temperature(settings: DinoSettings, clock: Clock) -> float:
    """The teacher's temperature at a step."""
    ramp = round(settings.teacher_warmup_share * clock.total_steps)
    return linear_ramp(settings.teacher_temperature_start, settings.teacher_temperature, clock.step, ramp)


def teacher_momentum(settings: DinoSettings, clock: Clock) -> float:
    """The share of the teacher that stays after a step."""
    return cosine_ramp(settings.teacher_momentum, settings.teacher_momentum_end, clock.step, clock.total_steps)


def frozen_steps(settings: DinoSettings, clock: Clock) -> int:
    """Steps at the start during which the prototypes stand still."""
    # An epoch of a small dataset is 250 steps, which may be a whole short run: hence the tenth.
    return min(round(settings.freeze_last_layer_epochs * clock.steps_per_epoch), clock.total_steps // 10)
