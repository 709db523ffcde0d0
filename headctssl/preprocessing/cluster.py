"""Cluster: run one job per item on the workers of a dask.distributed scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

import headctssl
from headctssl.dataset.parallel import WorkerDied, finished
from headctssl.errors import UsageError

__all__ = ["run_on_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_UNDER_WAY = 1000  # cases handed over at a time: enough for 500 workers, and nothing to the scheduler
_CONNECT_S = 20


def run_on_cluster(
    job: Callable[[Item], Result], items: Iterable[Item], address: str
) -> Iterator[tuple[Item, Result | WorkerDied]]:
    """Run a job for every item on a cluster; results come in the order they are ready.

    The scheduler gives the items of a worker that died to others, and gives one up that killed several workers
    (its setting ``distributed.scheduler.allowed-failures``, 3).

    Args:
        job: a function of a module that the workers have too; an exception that it raises ends the run.
        items: what to run it for; they are taken as they are needed.
        address: of the scheduler, such as ``tcp://node1:8786``.

    Raises:
        UsageError: dask.distributed is not installed, the scheduler cannot be reached or is lost, it has no worker,
            or its workers have another version of headctssl.
    """
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            "The dask scheduler cannot be reached.",
            got=f"--scheduler {address}: {error}",
            expected="the address of a running scheduler, such as tcp://node1:8786",
            do="Start one with `dask scheduler`, and workers with `dask worker ADDRESS --nworkers -1 --nthreads 1`.",
        ) from None
    try:
        _wait_for_a_worker(client, address)
        yield from _results(client, partial(_at_work, headctssl.__version__, job), iter(items), address)
    finally:
        # The scheduler forgets the work of a client that is gone; closing fails where the scheduler is gone.
        with suppress(OSError, RuntimeError):
            client.close()


def _results(
    client: Any, job: Callable[[Item], Result], items: Iterator[Item], address: str
) -> Iterator[tuple[Item, Result | WorkerDied]]:
    killed = _distributed().scheduler.KilledWorker
    connection = client.scheduler_comm

    def check() -> None:
        if client.status != "running" or client.scheduler_comm is not connection:
            raise _lost(address)

    try:
        # Futures that dask was about to fetch when the connection broke stay pending for ever: hence the check.
        for item, future in finished(client.get_executor(pure=False), job, items, _UNDER_WAY, check=check):
            yield item, _result(future, killed)
    except (CancelledError, OSError, RuntimeError):
        check()  # what dask raises in a thread of ours while it loses the connection in its own
        raise


def _result(future: Future[Any], killed: type[Exception]) -> Any:
    try:
        return future.result()
    except killed:
        return WorkerDied()
    except ModuleNotFoundError as error:
        raise _other_workers(str(error)) from None


def _lost(address: str) -> UsageError:
    return UsageError(
        "The dask scheduler was lost.",
        got=f"no connection to {address}",
        expected="a scheduler that runs until the end",
        do="Start it and its workers again, then run the same command: what is stored is kept.",
    )


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise UsageError(
            "--scheduler needs dask.distributed, which is not installed.",
            got="no module 'distributed'",
            expected="the extra [dask]",
            do="pip install 'headctssl[dask]'",
        ) from None
    return distributed


def _wait_for_a_worker(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=_CONNECT_S)
    except TimeoutError:
        raise UsageError(
            "The dask scheduler has no worker.",
            got=f"--scheduler {address}",
            expected="at least one worker",
            do=f"Start some with `dask worker {address} --nworkers -1 --nthreads 1`.",
        ) from None


def _at_work(version: str, job: Callable[[Item], Result], item: Item) -> Result:
    """Run a job in a worker of the same version, with one thread: workers have their own way of using every core."""
    if headctssl.__version__ != version:
        raise _other_workers(headctssl.__version__)
    with threadpool_limits(limits=1):
        return job(item)


def _other_workers(got: str) -> UsageError:
    return UsageError(
        "The workers of the dask scheduler have another headctssl.",
        got=got,
        expected=headctssl.__version__,
        do="Start the workers in the environment that this command runs in.",
    )
