"""Progress: makes the runs of a comparison that are not kept, and notes how each of them ended."""

from __future__ import annotations

from collections.abc import Sequence

from headctssl.console import say
from headctssl.errors import HeadCTSSLError
from headctssl.evaluation.assemble import State
from headctssl.evaluation.cells import is_kept
from headctssl.evaluation.compare_plan import Outlook
from headctssl.evaluation.grid import Cell
from headctssl.evaluation.jobs import Job, Share, run_jobs
from headctssl.evaluation.schedule import Schedule
from headctssl.evaluation.work import FinetuneTask, PretrainTask, ProbeTask, Task, work
from headctssl.paths import ROOT_KINDS, data_root

__all__ = ["Progress"]


class Progress:
    """The runs while they are made.

    Args:
        schedule: the runs.
        outlook: what is kept already.
        quiet: print nothing.
    """

    def __init__(self, schedule: Schedule, outlook: Outlook, quiet: bool) -> None:
        self.schedule, self.quiet = schedule, quiet
        self.states: dict[Cell, State] = {}
        self.ended = 0
        for cell in outlook.kept:
            self._note(cell, "reused")

    def run(self, share: Share) -> dict[Cell, State]:
        """Make every run that is not kept; how each of them stands, in the order of the schedule."""
        jobs = [*self.schedule.pretraining_jobs(), *self._jobs_of(self._waiting(ready=True))]
        run_jobs(
            work,
            jobs,
            share.jobs,
            environment={f"headctssl_{kind}": str(data_root(kind)) for kind in ROOT_KINDS},
            threads=share.threads,
            on_start=lambda job: say(f"begins: {job.title}", quiet=self.quiet),
            on_end=self._end,
        )
        for cell in self._waiting(ready=False):
            self._fail(cell, "what it needs was not made")
        return {cell: self.states[cell] for cell in self.schedule.cells}

    def _waiting(self, *, ready: bool) -> list[Cell]:
        cells = [cell for cell in self.schedule.cells if cell not in self.states]
        return [cell for cell in cells if self.schedule.is_ready(cell)] if ready else cells

    def _jobs_of(self, cells: Sequence[Cell]) -> list[Job[Task]]:
        """The runs of cells; one whose cases cannot be drawn has failed."""
        good = []
        for cell in cells:
            try:
                self.schedule.key(cell)
                good.append(cell)
            except HeadCTSSLError as error:
                self._fail(cell, error.message)
        return list(self.schedule.cell_jobs(good))

    def _end(self, job: Job[Task], error: HeadCTSSLError | None) -> list[Job[Task]]:
        """Note what a process left; the runs that can begin now."""
        self.ended += 1
        how = "ended" if error is None else f"FAILED: {error.message}"
        say(f"{self.ended}. {how}: {job.title}" if error is None else f"{self.ended}. {job.title} {how}",
            quiet=self.quiet)  # fmt: skip
        match job.task:
            case PretrainTask():
                cells = [c for c in self._waiting(ready=False) if self._needs(c, job.task)]
                if error is None:
                    return self._jobs_of(cells)
                for cell in cells:
                    self._fail(cell, f"its {job.title} failed: {error.message}")
            case FinetuneTask(cell=cell):
                self._settle(cell, error)
            case ProbeTask(cells=placed):
                for cell, _, _ in placed:
                    self._settle(cell, error)
        return []

    def _needs(self, cell: Cell, task: PretrainTask) -> bool:
        run = self.schedule.run_of(cell)
        return run is not None and run.folder == task.folder

    def _settle(self, cell: Cell, error: HeadCTSSLError | None) -> None:
        """A run is done when its result is there, also where its process failed after that."""
        if is_kept(self.schedule.kept(cell, self.schedule.key(cell))):
            self._note(cell, "done")
        else:
            self._fail(cell, "its process left no result" if error is None else error.message)

    def _note(self, cell: Cell, status: str) -> None:
        key = self.schedule.key(cell)
        self.states[cell] = State(key, self.schedule.kept(cell, key), status)

    def _fail(self, cell: Cell, reason: str) -> None:
        self.states[cell] = State("", None, "failed", reason)
