"""Parallel: apply a function to many items in processes, one result or named failure per item."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from headctssl.errors import DataError, HeadCTSSLError

__all__ = ["map_items"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_items(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[tuple[int, Result | HeadCTSSLError]]:
    """Apply `function` to every item; the error of one item is its result and stops no other.

    Args:
        function: a function of a module, for it is sent to other processes.
        items: what to apply it to.
        num_workers: processes; None = one per core, fewer for few items; 0 and 1 work in this process.

    Yields:
        (position of the item, its result or error), in the order in which they are done. When a worker process dies
        (out of memory, killed), the items that it may have held are tried once more, each in a process by itself;
        one that dies again gets an error, and the others go on. When every one of them dies, all that were not done
        get the error. An exception that is no `HeadCTSSLError` becomes a `DataError` that names its type.
    """
    # A process takes a second or more to start and import: by default each gets at least four items.
    workers = min(os.cpu_count() or 1, len(items) // 4) if num_workers is None else min(num_workers, len(items))
    if workers <= 1:
        for position, item in enumerate(items):
            yield position, _attempt(function, item)
        return
    left = list(range(len(items)))
    while left:
        done: set[int] = set()
        for position, result in _in_processes(function, items, left, workers):
            if not isinstance(result, _WorkerDiedError):
                done.add(position)
                yield position, result
        left = [position for position in left if position not in done]
        # A process has one item and the pool hands out one more for each, in their order.
        suspects, left = left[: 2 * workers + 1], left[2 * workers + 1 :]
        alive = not suspects
        for suspect in suspects:
            for position, result in _in_processes(function, items, [suspect], 1):
                alive = alive or not isinstance(result, _WorkerDiedError)
                yield position, result
        if not alive:
            for position in left:
                yield position, _worker_died()
            return


class _WorkerDiedError(DataError):
    """A worker process ended before an item was done."""


def _worker_died() -> _WorkerDiedError:
    return _WorkerDiedError(
        "A worker process died before this was done.",
        got="a process that ended by itself, most often for lack of memory",
        expected="a result",
        do="Run again with a smaller --num_workers; in a Python script, call it under if __name__ == '__main__'.",
    )


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], positions: Sequence[int], workers: int
) -> Iterator[tuple[int, Result | HeadCTSSLError]]:
    """Apply a function to some of the items; `_WorkerDiedError` for those that were not done when a process died."""
    # spawn: SimpleITK and BLAS start threads, which a forked process would inherit half-dead.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_attempt, function, items[position]): position for position in positions}
        try:
            for future in as_completed(list(waiting)):
                yield waiting.pop(future), _result(future)
        finally:  # an interrupted caller does not wait for what was not begun
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Result | HeadCTSSLError]) -> Result | HeadCTSSLError:
    try:
        return future.result()
    except BrokenProcessPool:
        return _worker_died()
    except Exception as error:  # for example a result that cannot be sent between processes
        return _unexpected(error)


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
