"""Phases: which part of a classifier learns at which rate when, as functions of the global step."""

from __future__ import annotations

from dataclasses import dataclass

from headctssl.finetuning.settings import Schedule, TaskSettings
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.schedule import learning_rate

__all__ = ["Phases", "head_steps"]


def head_steps(task: TaskSettings, num_steps: int) -> int:
    """Optimiser steps at the start in which only the head learns; 0 where the schedule has no such phase."""
    if task.schedule not in ("sawtooth", "valley"):
        return 0
    return max(2, round(task.head_share * num_steps))


@dataclass(frozen=True)
class Phases:
    """The fine-tuning schedules of the OpenMind benchmark (arXiv 2412.17041), scaled to the length of a run.

    - default and warmup: linear warm-up of the whole network, then the main schedule.
    - sawtooth: the head alone, its rate rising linearly in one half of the steps and falling linearly in the other;
      then as above.
    - valley: the head alone, its rate falling linearly; then as above.

    Published are 50 epochs for the head and 50 of warm-up in 1,000, and 15 and 15 in the public code's 150. Its head
    rate falls with exponent .9 in both; a straight line is taken here, as the paper describes the valley.

    Args:
        schedule: which of them.
        head_steps: steps in which only the head learns, from `head_steps`.
        training: steps, peak and least rate, warm-up, main schedule.
    """

    schedule: Schedule
    head_steps: int
    training: TrainingSettings

    @property
    def has_frozen(self) -> bool:
        """Whether the encoder rests in some steps."""
        return self.head_steps > 0

    def frozen(self, step: int) -> bool:
        """Whether the encoder rests in a step, counted from 0."""
        return step < self.head_steps

    def rate(self, step: int) -> float:
        """The learning rate of a step, before the factors of the groups of parameters."""
        t = self.training
        if not self.frozen(step):
            return learning_rate(
                step - self.head_steps,
                t.num_steps - self.head_steps,
                peak=t.lr,
                minimum=t.min_lr,
                warmup_steps=t.warmup_steps,
                schedule=t.schedule,
            )
        rising = self.head_steps // 2 if self.schedule == "sawtooth" else 1
        if step < rising:
            return t.lr * (step + 1) / rising  # the last rising step has the peak
        share = (step - rising + 1) / (self.head_steps - rising)
        return t.lr + (t.min_lr - t.lr) * share
