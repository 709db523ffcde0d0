"""Slurm job: what every process of a submitted run does; light to import, since each of them begins with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from headctssl.errors import StoppedError
from headctssl.training.signals import stop_at_once

__all__ = ["InJob"]


class InJob:
    """What every process of the job runs: the environment that torchrun would set, then the work.

    Args:
        work: called with True when the job was started before; gives the exit code. Must be picklable.
    """

    def __init__(self, work: Callable[[bool], int]) -> None:
        self.work = work

    def __call__(self) -> None:
        """Run the work in a process that Slurm started.

        Raises:
            SystemExit: always, with the exit code of the work; by it the batch script decides on requeueing.
        """
        import submitit

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        try:
            with stop_at_once():
                code = self.work(again)
        except StoppedError as error:  # before the work could say so itself
            print(error.message, file=sys.stderr)
            code = error.exit_code
        raise SystemExit(code)
