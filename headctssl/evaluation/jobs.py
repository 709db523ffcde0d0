"""Jobs: tasks in several processes at a time; one that dies is named and takes no other task with it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Generic, TypeVar

import torch

from headctssl.dataset.parallel import begin_worker
from headctssl.errors import DataError, HeadCTSSLError, UsageError
from headctssl.planning.machine import available_cores

__all__ = ["Job", "Share", "run_jobs"]

T = TypeVar("T")

_SECONDS_TO_STOP = 60.0  # a run that is asked to stop writes a checkpoint first


@dataclass(frozen=True)
class Job(Generic[T]):
    """One task and where its process says what it does."""

    task: T
    title: str  # for messages
    log: Path  # gets everything that its process prints
    rank: int = 0  # those of the lowest rank begin first


def run_jobs(
    function: Callable[[T], None],
    jobs: Iterable[Job[T]],
    num_jobs: int,
    *,
    environment: Mapping[str, str],
    threads: int,
    on_start: Callable[[Job[T]], None],
    on_end: Callable[[Job[T], HeadCTSSLError | None], Iterable[Job[T]]],
) -> None:
    """Run a function for every job in processes that take one job after the other.

    A process that ends by itself (killed, out of memory) costs its own job only: it is replaced. When this process is
    stopped, the others are asked to stop too and waited for.

    Args:
        function: of a module, for it is sent to other processes.
        jobs: begin in this order among those of one rank.
        num_jobs: processes at a time.
        environment: variables that the processes get; those of a server process that runs already may be others.
        threads: of numeric libraries in a process.
        on_start: called before a job begins.
        on_end: called with the error of a job or None; gives jobs that can begin now.
    """
    count = itertools.count()
    waiting = [(job.rank, next(count), job) for job in jobs]
    heapq.heapify(waiting)
    workers: list[_Worker[T]] = []
    try:
        while True:
            while waiting and (idle := _idle(workers, num_jobs, function, environment, threads)) is not None:
                _, _, job = heapq.heappop(waiting)
                on_start(job)
                idle.begin(job)
            busy = [worker for worker in workers if worker.job is not None]
            if not busy:
                return
            wait([worker.process.sentinel for worker in busy] + [worker.connection for worker in busy])
            for worker in busy:
                ended = worker.end()
                if ended is not None:
                    if not worker.process.is_alive():
                        workers.remove(worker)
                    for job in on_end(*ended):
                        heapq.heappush(waiting, (job.rank, next(count), job))
    finally:
        _stop(workers)


class _Worker(Generic[T]):
    """A process and the job it is at."""

    def __init__(self, function: Callable[[T], None], environment: Mapping[str, str], threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(function, dict(environment), threads, other))
        self.process.start()
        other.close()
        self.job: Job[T] | None = None

    def begin(self, job: Job[T]) -> None:
        """Send a job; a process that is gone by then is found by `end`."""
        self.job = job
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job)

    def end(self) -> tuple[Job[T], HeadCTSSLError | None] | None:
        """The job and its error when it has ended, else None."""
        assert self.job is not None, "a busy worker"
        job, error = self.job, None
        try:
            if self.connection.poll():
                error = self.connection.recv()
                assert error is None or isinstance(error, HeadCTSSLError)
                self.job = None
                return job, error
        except (EOFError, ConnectionResetError):
            self.process.join()
        if self.process.is_alive():
            return None
        self.process.join()
        self.job = None
        return job, _died(job, self.process.exitcode)


def _idle(
    workers: list[_Worker[T]],
    num_jobs: int,
    function: Callable[[T], None],
    environment: Mapping[str, str],
    threads: int,
) -> _Worker[T] | None:
    """A worker without a job, a new one where there may be more; None when all are busy."""
    for worker in workers:
        if worker.job is None:
            return worker
    if len(workers) == num_jobs:
        return None
    workers.append(_Worker(function, environment, threads))
    return workers[-1]


def _work(function: Callable[[T], None], environment: dict[str, str], threads: int, connection: Connection) -> None:
    """The life of a process: what it prints goes to the log of its job, the error of a job or None to the parent."""
    os.environ.update(environment)
    begin_worker()
    torch.set_num_threads(threads)
    while True:
        try:
            job: Job[T] = connection.recv()
        except EOFError:
            return
        ended = _do(function, job)
        try:
            connection.send(ended)
        except BrokenPipeError:  # the parent has stopped and asked this process to
            return


def _do(function: Callable[[T], None], job: Job[T]) -> HeadCTSSLError | None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w", encoding="utf-8", buffering=1) as log:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(log.fileno(), number)
        try:
            function(job.task)
            return None
        except HeadCTSSLError as error:
            print(error.message)
            return error
        except Exception as error:
            traceback.print_exc()
            line = (str(error).splitlines() or ["no message"])[0]
            return DataError(
                f"Internal error in {job.title}: {type(error).__name__}.",
                got=line[:300],
                expected="a finished run",
                do=f"The whole message is in {job.log}; if it is a fault of headctssl, please report it.",
            )
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _died(job: Job[T], code: int | None) -> DataError:
    how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    return DataError(
        f"The process of {job.title} ended before it was done.",
        got=how,
        expected="a finished run",
        do="Start the same command again, with a smaller --num_jobs if memory ran out.",
    )


def _stop(workers: list[_Worker[T]]) -> None:
    """Let idle processes go, ask busy ones to stop, and wait for all."""
    for worker in workers:
        worker.connection.close()
        if worker.job is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_SECONDS_TO_STOP)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@dataclass(frozen=True)
class Share:
    """How runs share the machine."""

    jobs: int  # processes at a time
    threads: int  # of numeric libraries in each
    readers: int | None  # reader processes of each; None: chosen for the run
    on_cpu: bool

    @classmethod
    def of(cls, num_jobs: int | None, device: str | None, num_workers: int | None) -> Share:
        """What was asked for, else one run per core, or one run on a GPU.

        Raises:
            UsageError: there cannot be so many runs at a time.
        """
        if num_jobs is not None and num_jobs < 1:
            raise UsageError("There must be a process.", got=num_jobs, expected="1 or more", do="Correct --num_jobs.")
        cores = available_cores()
        on_cpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cpu"
        jobs = num_jobs or (cores if on_cpu else 1)
        readers = 0 if num_workers is None and jobs > 1 else num_workers
        return cls(jobs, max(1, cores // jobs), readers, on_cpu)

    @contextmanager
    def threads_of_a_job(self) -> Iterator[None]:
        """Let this process compute with as many threads as a job has, so that what is measured is a job's speed."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
