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
        (position of the item, its result or error), in the order in which they are done. When a
        worker process dies (out of memory, killed), the items that were not done get an error. An
        exception that is no `HeadCTSSLError` becomes a `DataError` that names its type.
    """
    # A process takes a second or more to start and import: by default each gets at least four items.
    workers = min(os.cpu_count() or 1, len(items) // 4) if num_workers is None else min(num_workers, len(items))
    if workers <= 1:
        for position, item in enumerate(items):
            yield position, _attempt(function, item)
        return
    # spawn: SimpleITK and BLAS start threads, which a forked process would inherit half-dead.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_attempt, function, item): position for position, item in enumerate(items)}
        try:
            for future in as_completed(waiting):
                yield waiting[future], _result(future)
        finally:  # an interrupted caller does not wait for what was not begun
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Result | HeadCTSSLError]) -> Result | HeadCTSSLError:
    try:
        return future.result()
    except BrokenProcessPool:
        return DataError(
            "A worker process died before this was done.",
            got="a process that ended by itself, most often for lack of memory",
            expected="a result",
            do="Run again with a smaller --num_workers; in a Python script, call it under if __name__ == '__main__'.",
        )
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
