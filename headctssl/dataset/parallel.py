"""Parallel: run a job per item in processes, notice those that die, and keep the others going."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait as wait_for_end
from typing import TypeVar

from threadpoolctl import threadpool_limits

from headctssl.errors import DataError, HeadCTSSLError

__all__ = ["WorkerDied", "begin_worker", "finished", "map_items", "run_in_processes", "warm_up"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_LEFT_TO_THE_PARENT = (signal.SIGINT, signal.SIGUSR1)  # Ctrl-C and some schedulers signal every process of a group


_CHECK_S = 1.0


class WorkerDied:
    """In place of a result: the process that worked on the item died.

    Out of memory, a crash in a library, or a script without ``if __name__ == "__main__":``, which
    every new process runs again from its top and dies of.
    """


def map_items(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[tuple[int, Result | HeadCTSSLError]]:
    """Apply `function` to every item; the error of one item is its result and stops no other.

    Args:
        function: a function of a module, for it is sent to other processes.
        items: what to apply it to.
        num_workers: processes; None = one per core, fewer for few items; 0 and 1 work in this process.

    Yields:
        (position of the item, its result or error), in the order in which they are done. An item whose process dies
        gets an error, see `run_in_processes`. An exception that is no `HeadCTSSLError` becomes a `DataError` that
        names its type.
    """
    # A process takes a second or more to start and import: by default each gets at least four items.
    workers = min(os.cpu_count() or 1, len(items) // 4) if num_workers is None else min(num_workers, len(items))
    if workers <= 1:
        for position, item in enumerate(items):
            yield position, _attempt(function, item)
        return
    named = function.func if isinstance(function, partial) else function
    jobs = run_in_processes(
        partial(_attempt_at, function), enumerate(items), workers, preload=named.__module__, on_error=_unexpected
    )
    for (position, _), result in jobs:
        yield position, _worker_died() if isinstance(result, WorkerDied) else result


def run_in_processes(
    job: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    *,
    preload: str = "",
    tries_alone: int = 1,
    on_error: Callable[[Exception], Result] | None = None,
) -> Iterator[tuple[Item, Result | WorkerDied]]:
    """Run a job for every item in processes whose numeric libraries have one thread each.

    Items are taken from their iterable as they are needed, so a long list need not exist. When a worker dies the pool
    is lost: the items that were under way are run again one at a time, each in a process by itself, so that the one
    that kills its worker is known, and the others go on in a new pool. When a pool gives no result and every item
    that was under way dies by itself too, the fault is none of theirs, and the rest is not tried.

    Args:
        job: a function of a module.
        items: what to run it for.
        num_workers: processes.
        preload: module that the processes import once, before they are split off.
        tries_alone: how often an item whose worker died is run again by itself.
        on_error: makes the result of an item whose job raised, or whose result cannot be sent between processes;
            without it the exception is raised here and ends the run.

    Yields:
        (item, its result or `WorkerDied`), in the order in which they are done.
    """
    waiting = iter(items)
    while True:
        suspects: list[Item] = []
        alive = False
        with _process_pool(num_workers, preload) as pool:
            for item, future in finished(pool, job, waiting, 2 * num_workers):
                if isinstance(future.exception(), BrokenExecutor):
                    suspects.append(item)
                else:
                    alive = True
                    yield item, _result(future, on_error)
        if not suspects:
            return
        for item in suspects:
            result = _alone(job, item, preload, tries_alone, on_error)
            alive = alive or not isinstance(result, WorkerDied)
            yield item, result
        if not alive:
            yield from ((item, WorkerDied()) for item in waiting)
            return


def warm_up(preload: str = "") -> None:
    """Start the server that worker processes are split off from, and return while it imports a module.

    Called before a process imports the same itself, it saves about a second. The server and its helper inherit that
    SIGUSR1 is ignored, and so outlive a signal to every process of a group, as workers do; SIGINT they ignore anyway.

    Args:
        preload: module to import; of no effect when the server runs already.
    """
    if preload:
        forkserver.set_forkserver_preload([preload])
    if threading.current_thread() is not threading.main_thread():  # handlers are the main thread's
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGUSR1, before)


def finished(
    executor: Executor,
    job: Callable[[Item], Result],
    items: Iterator[Item],
    most: int,
    *,
    check: Callable[[], None] | None = None,
) -> Iterator[tuple[Item, Future[Result]]]:
    """Feed an executor from an iterator; each item with its future when that is done.

    Once the executor is broken nothing more is taken from the iterator.

    Args:
        executor: of `concurrent.futures`.
        job: what to run.
        items: what to run it for.
        most: how many items are handed over at a time.
        check: called every second in which nothing is done; raises when nothing will be.
    """
    running: dict[Future[Result], Item] = {}
    broken = False
    while True:
        while not broken and len(running) < most:
            try:
                item = next(items)
            except StopIteration:
                break
            running[_submitted(executor, job, item)] = item
        if not running:
            return
        done, _ = wait(running, None if check is None else _CHECK_S, return_when=FIRST_COMPLETED)
        if not done and check is not None:
            check()
        for future in done:
            broken = broken or (not future.cancelled() and isinstance(future.exception(), BrokenExecutor))
            yield running.pop(future), future


def _submitted(executor: Executor, job: Callable[[Item], Result], item: Item) -> Future[Result]:
    try:
        return executor.submit(job, item)
    except BrokenExecutor as error:  # the item shares the fate of those that were under way
        future: Future[Result] = Future()
        future.set_exception(error)
        return future


def _alone(
    job: Callable[[Item], Result],
    item: Item,
    preload: str,
    tries: int,
    on_error: Callable[[Exception], Result] | None,
) -> Result | WorkerDied:
    for _ in range(tries):
        with _process_pool(1, preload) as pool:
            ((_, future),) = finished(pool, job, iter([item]), 1)
            if not isinstance(future.exception(), BrokenExecutor):
                return _result(future, on_error)
    return WorkerDied()


def _result(future: Future[Result], on_error: Callable[[Exception], Result] | None) -> Result:
    error = future.exception()
    if isinstance(error, Exception) and on_error is not None:
        return on_error(error)
    return future.result()


@contextmanager
def _process_pool(num_workers: int, preload: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; at the end, also an early one, what was not begun is dropped."""
    # Forking a process that has used torch or BLAS can deadlock, so workers come from a clean server process.
    warm_up(preload)
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """One thread, for the processes already use every core; signals are the parent's matter; no life without it."""
    threadpool_limits(limits=1)
    for number in _LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for work for ever, and finish a case unasked."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait_for_end([parent.sentinel])
    os._exit(1)


def _worker_died() -> DataError:
    return DataError(
        "A worker process died before this was done.",
        got="a process that ended by itself, most often for lack of memory",
        expected="a result",
        do="Run again with a smaller --num_workers; in a Python script, call it under if __name__ == '__main__'.",
    )


def _attempt_at(function: Callable[[Item], Result], placed: tuple[int, Item]) -> Result | HeadCTSSLError:
    return _attempt(function, placed[1])


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | HeadCTSSLError:
    try:
        return function(item)
    except HeadCTSSLError as error:
        return error
    except Exception as error:  # files can be odd in ways no reader foresees; the other files are good
        return _unexpected(error)


def _unexpected(error: Exception) -> DataError:
    lines = str(error).splitlines()
    return DataError(
        "It could not be processed.",
        got=f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}",
        expected="a file without such an error",
        do="Check or export the file again; if it opens in other programs, please report this.",
    )
