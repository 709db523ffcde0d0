"""Executors: run one job per case in this process, in processes, or on a cluster, and try again what may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from headctssl.dataset.parallel import WorkerDied, run_in_processes
from headctssl.errors import UsageError
from headctssl.planning.machine import available_cores

__all__ = ["Workers", "worker_count"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_PAUSE_S = 1.0  # before cases are tried again: a share that hiccups needs a moment


def worker_count(num_workers: int | None, num_items: int) -> int:
    """How many processes to use: one per core, never more than there are items, at least 1."""
    return max(1, min(available_cores() if num_workers is None else num_workers, num_items))


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Raises:
        UsageError: a number of processes together with a scheduler, which has its own.
    """

    num_workers: int | None = None  # processes; one per core when None
    scheduler: str | None = None  # address of a dask scheduler, instead of processes
    retries: int = 1  # how often an item is tried again

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.num_workers is not None:
            raise UsageError(
                "--num_workers has no effect with --scheduler.",
                got="both",
                expected="one of them",
                do="Say how many workers there are when they are started: dask worker ADDRESS --nworkers 16.",
            )

    def named(self, num_items: int) -> str:
        """Who will do a number of items, in words."""
        if self.scheduler is not None:
            return f"the workers of {self.scheduler}"
        return f"{worker_count(self.num_workers, num_items)} process(es)"

    def run(
        self,
        job: Callable[[Item], Result],
        items: Iterable[Item],
        num_items: int,
        *,
        preload: str,
        may_pass: Callable[[Result], bool],
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Run a job for every item; results come in the order they are ready.

        Items are taken as they are needed. Those whose result may pass, such as a file that a share did not give,
        are tried again when the others are done.

        Args:
            job: a function of a module; an exception that it raises ends the run.
            items: what to run it for.
            num_items: how many there are.
            preload: module that processes import once, before they are split off.
            may_pass: whether a result is a failure that another try may mend.
        """
        tries = self.retries
        while num_items:
            again: list[Item] = []
            for item, result in self._once(job, items, num_items, preload):
                if tries > 0 and not isinstance(result, WorkerDied) and may_pass(result):
                    again.append(item)
                else:
                    yield item, result
            items, num_items, tries = again, len(again), tries - 1
            if again:
                time.sleep(_PAUSE_S)

    def _once(
        self, job: Callable[[Item], Result], items: Iterable[Item], num_items: int, preload: str
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        if self.scheduler is not None:
            from headctssl.preprocessing.cluster import run_on_cluster

            return run_on_cluster(job, items, self.scheduler)
        processes = worker_count(self.num_workers, num_items)
        if processes == 1:
            return ((item, job(item)) for item in items)
        # Without retries too an item is run once by itself: only one of those under way killed its worker.
        return run_in_processes(job, items, processes, preload=preload, tries_alone=max(1, self.retries))
