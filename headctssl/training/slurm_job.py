"""Slurm job: what every process of a submitted run does; light to import, since each of them begins with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from headctssl.errors import StoppedError
from headctssl.training.signals import stop_at_once

__all__ = ["JOB_FILE", "InJob", "has_begun", "note_job"]

JOB_FILE = "slurm_job.txt"
"""In a run folder, the number of the Slurm job that works on the run."""


def note_job(folder: Path) -> None:
    """Note in a run folder which Slurm job works on the run; nothing outside of a job."""
    if number := os.environ.get("SLURM_JOB_ID"):
        (folder / JOB_FILE).write_text(f"{number}\n", encoding="utf-8")


def has_begun(runs: Path) -> bool:
    """Whether this Slurm job has begun a run, which a requeued job must ask before it goes on with what is there.

    Args:
        runs: the folder of the run folders.
    """
    number = os.environ.get("SLURM_JOB_ID", "")
    return any(path.read_text(encoding="utf-8").strip() == number for path in runs.glob(f"*/{JOB_FILE}"))


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
