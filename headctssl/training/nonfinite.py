"""Nonfinite: steps whose loss or gradient is not finite are skipped, told, counted, and end the run or rewind it."""

from __future__ import annotations

from headctssl.errors import TrainingError
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.run_log import RunLog
from headctssl.types import Clock

__all__ = ["SkippedSteps"]


class SkippedSteps:
    """Counts the steps that were skipped in a row, and the rewinds.

    A rewind takes back the weights, never the step: the scans since then are not shown again, so it cannot go round
    in circles, and a run has `most_rewinds` of them.

    Args:
        training: the limits.
        log: where lines go.

    Attributes:
        in_a_row: steps skipped since the last one that was taken.
        rewinds: rewinds of the run so far.
    """

    def __init__(self, training: TrainingSettings, log: RunLog) -> None:
        self.training, self.log = training, log
        self.in_a_row = 0
        self.rewinds = 0

    def taken(self) -> None:
        """Note a step that was taken."""
        self.in_a_row = 0

    def skipped(self, clock: Clock) -> bool:
        """Note a step that was skipped, and say which scans it showed.

        The scans of a step are those numbers of its epoch, over all processes; `training.replay` repeats it.

        Args:
            clock: of the step.

        Returns:
            Whether the run must rewind now.

        Raises:
            TrainingError: there were too many, and the run may not rewind or not once more.
        """
        training = self.training
        self.in_a_row += 1
        first = clock.step % clock.steps_per_epoch * training.batch_size
        self.log.say(
            f"step {clock.step}: loss or gradient is not finite, step skipped (seed {training.seed}, "
            f"epoch {clock.epoch}, samples {first} to {first + training.batch_size - 1})"
        )
        if self.in_a_row < training.nonfinite_limit:
            return False
        if training.on_nonfinite == "rewind" and self.rewinds < training.most_rewinds:
            return True
        raise TrainingError(
            f"The loss or the gradient was not finite in {self.in_a_row} steps in a row.",
            got=f"steps {clock.step - self.in_a_row + 1} to {clock.step}, see train.log for the samples"
            + (f"; {self.rewinds} rewinds before" if self.rewinds else ""),
            expected="finite numbers",
            do="Lower training.lr or set training.precision=float32, and start again with --overwrite.",
        )

    def rewound(self, clock: Clock, back_to: int) -> None:
        """Note a rewind.

        Args:
            clock: of the last step.
            back_to: the step whose weights the run goes on with.
        """
        self.in_a_row = 0
        self.rewinds += 1
        self.log.say(
            f"rewind {self.rewinds} of {self.training.most_rewinds}: the run goes on at step {clock.step + 1} with the "
            f"weights of step {back_to}; the scans between are not shown again"
        )
