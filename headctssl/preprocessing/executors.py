"""Executors: run one job per item in processes, notice workers that die, and keep the others going."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

from threadpoolctl import threadpool_limits

from headctssl.planning.machine import available_cores

__all__ = ["WorkerDied", "run_jobs", "worker_count"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDied(Generic[Item]):
    """In place of a result: the process that worked on the item died.

    Out of memory, a crash in a library, or a script without ``if __name__ == "__main__":``, which
    every new process runs again from its top and dies of.
    """


def worker_count(num_workers: int | None, num_items: int) -> int:
    """How many processes to use: one per core, never more than there are items, at least 1."""
    return max(1, min(available_cores() if num_workers is None else num_workers, num_items))


def run_jobs(
    job: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int, preload: str
) -> Iterator[tuple[Item, Result | WorkerDied[Item]]]:
    """Run a job for every item; results come in the order they are ready.

    With one worker the jobs run in this process. With more, a pool of processes is used whose
    numeric libraries have one thread each. When a worker dies, the pool is lost: the items that
    were under way are run again one at a time in a process of their own, so that the one that
    kills its worker is known, and the others go on in a new pool.

    Args:
        job: a function that can be pickled and does not raise for a case that fails.
        items: what to run it for.
        num_workers: processes.
        preload: module that the processes import once, before they are split off.
    """
    if num_workers <= 1:
        for item in items:
            yield item, job(item)
        return
    waiting = list(reversed(items))
    while waiting:
        suspects: list[Item] = []
        with _pool(num_workers, preload) as pool:
            yield from _drain(pool, job, waiting, suspects, 2 * num_workers)
        for item in suspects:
            with _pool(1, preload) as alone:
                try:
                    yield item, alone.submit(job, item).result()
                except BrokenProcessPool:
                    yield item, WorkerDied()


def _drain(
    pool: ProcessPoolExecutor,
    job: Callable[[Item], Result],
    waiting: list[Item],
    suspects: list[Item],
    most: int,
) -> Iterator[tuple[Item, Result | WorkerDied[Item]]]:
    """Feed the pool until nothing waits or a worker died; `suspects` gets what was under way then."""
    running: dict[Future[Result], Item] = {}
    broken = False
    while running or (waiting and not broken):
        while waiting and not broken and len(running) < most:
            item = waiting.pop()
            try:
                running[pool.submit(job, item)] = item
            except BrokenProcessPool:
                waiting.append(item)
                broken = True
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            item = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                broken = True
                suspects.append(item)
            else:
                yield item, result


def _pool(num_workers: int, preload: str) -> ProcessPoolExecutor:
    # Forking a process that has used torch or BLAS can deadlock, so workers come from a clean server process.
    method = "spawn" if sys.platform == "win32" else "forkserver"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([preload])
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread)


def _one_thread() -> None:
    """One thread per worker: the processes already use every core."""
    threadpool_limits(limits=1)
