"""Check schedule: refuses a warm-up or a last learning rate that does not fit the rest of a run."""

from __future__ import annotations

from headctssl.errors import UsageError
from headctssl.planning.run_settings import TrainingSettings

__all__ = ["check_schedule"]


def check_schedule(training: TrainingSettings) -> None:
    """Refuse a schedule that cannot be followed.

    Args:
        training: as resolved, with what the user set.

    Raises:
        UsageError: the warm-up is longer than the run, or the last learning rate is above the peak.
    """
    if training.warmup_steps > training.num_steps:
        raise UsageError(
            "The warm-up is longer than the run, so that its learning rate would never be reached.",
            got=f"training.warmup_steps={training.warmup_steps} of {training.num_steps} steps",
            expected=f"at most {training.num_steps}",
            do="Lower training.warmup_steps, leave it out, or set more training.num_steps.",
        )
    if training.min_lr > training.lr:
        raise UsageError(
            "The learning rate of the last step is above the peak.",
            got=f"training.min_lr={training.min_lr:g}, a peak of {training.lr:g}",
            expected=f"at most {training.lr:g}",
            do="Lower training.min_lr, leave it out, or raise training.lr.",
        )
