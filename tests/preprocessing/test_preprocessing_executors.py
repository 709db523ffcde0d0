"""Tests of who does the work: processes that come and go, a cluster, signals, and lists too long to hold."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from preprocessing_jobs import double, kill_once, kill_twice, refuse_7
from small_heads import STORAGE, make_dataset

from headctssl.dataset.parallel import WorkerDied, map_items, run_in_processes
from headctssl.errors import StoppedError, UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.cluster import run_on_cluster
from headctssl.preprocessing.executors import Workers
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.stop import stoppable

Command = Callable[..., tuple[int, str, str]]


def run(job: Callable[[object], object], items: Iterator[object], workers: Workers) -> dict[object, object]:
    number = 1000  # more than there are, so that the processes are as many as were asked for
    return dict(workers.run(job, items, number, preload="preprocessing_jobs", may_pass=lambda _: False))


def test_an_item_whose_worker_died_is_tried_again_by_itself(tmp_path: Path) -> None:
    once = [(n, tmp_path / "once") for n in range(5)]
    assert run(kill_once, iter(once), Workers(2)) == {item: item[0] for item in once}
    twice = [(n, tmp_path / "twice") for n in range(5)]
    results = run(kill_twice, iter(twice), Workers(2, retries=1))
    assert [item[0] for item, result in results.items() if isinstance(result, WorkerDied)] == [3]
    twice = [(n, tmp_path / "more") for n in range(5)]
    assert run(kill_twice, iter(twice), Workers(2, retries=2)) == {item: item[0] for item in twice}


def test_an_exception_of_a_job_ends_the_run_and_drops_what_was_not_begun() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    with pytest.raises(ValueError, match="7 is refused"):
        list(run_in_processes(refuse_7, items(), 2, preload="preprocessing_jobs"))
    assert len(taken) < 30
    assert multiprocessing.active_children() == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken = [0]

    def items() -> Iterator[int]:
        for n in range(200):
            taken[0] += 1
            yield n + 100

    for count, (item, result) in enumerate(run_in_processes(double, items(), 2, preload="preprocessing_jobs"), start=1):
        assert result == 2 * item
        assert taken[0] <= count + 4


def test_where_every_worker_dies_the_rest_is_not_tried() -> None:
    results = list(run_in_processes(double, [13] * 40, 2, preload="preprocessing_jobs"))
    assert len(results) == 40
    assert all(isinstance(result, WorkerDied) for _, result in results)


def test_100_000_cases_are_not_held_at_once() -> None:
    """Jobs and results pass through; what stays per case is a matter of who collects."""
    tracemalloc.start()
    results = Workers(1).run(
        double, (n for n in range(100_000) if n != 13), 100_000, preload="", may_pass=lambda result: result < 0
    )
    assert sum(1 for _ in results) == 99_999
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_an_interrupted_caller_waits_for_no_more_than_what_was_begun() -> None:
    results = map_items(double, range(100, 1000), 2)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_becomes_an_error_that_says_how_to_go_on(number: signal.Signals) -> None:
    def work() -> None:
        with stoppable("Work"):
            os.kill(os.getpid(), number)
            time.sleep(5)

    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"Work was stopped by {number.name}") as told:
        work()
    assert told.value.exit_code == 75
    assert "same command" in str(told.value.do)
    assert signal.getsignal(number) is before


def test_in_a_thread_there_are_no_handlers() -> None:
    seen: list[object] = []

    def work() -> None:
        with stoppable("Work"):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler and two workers, each a process of its own as on a cluster; gives the address and the scheduler."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    environment |= {"DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "false"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> None:
        call = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
        with open(folder / "dask.txt", "a") as logs:
            processes.append(subprocess.Popen(call, env=environment, stdout=logs, stderr=logs, start_new_session=True))

    file = folder / "scheduler.json"
    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    until = time.monotonic() + 60
    while not file.is_file() or not file.read_text().endswith("}"):
        assert time.monotonic() < until, (folder / "dask.txt").read_text()
        time.sleep(0.05)
    address = file.read_text().split('"address": "')[1].split('"')[0]
    for _ in range(2):
        start("worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder))
    try:
        yield address, processes[0]
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_real_cluster_gives_the_same_files(roots: Path, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("distributed")
    folder = make_dataset(7, 6)
    (folder / "images" / "case7_02.nii.gz").write_bytes(b"no image")
    preprocess(7, rule=STORAGE, num_workers=1, quiet=True)
    storage = preprocessed_dataset(7) / STORAGE.storage_id
    alone = {p: p.read_bytes() for p in storage.rglob("*") if p.is_file()}
    with cluster(tmp_path) as (address, scheduler):
        report = preprocess(7, rule=STORAGE, scheduler=address, overwrite=True, quiet=True)
        assert (report.num_written, [f.case_id for f in report.failures]) == (5, ["case7_02"])
        assert {p: p.read_bytes() for p in storage.rglob("*") if p.is_file()} == alone
        code, out, _ = command("plan_and_preprocess", "-d", 7, "--scheduler", address)
        assert code == 1
        assert f"with the workers of {address}" in out
        killed = [(n, tmp_path / "once") for n in range(8)]
        assert run(kill_once, iter(killed), Workers(scheduler=address)) == {item: item[0] for item in killed}
        results = run_on_cluster(double, range(100, 100_000), address)
        next(results)
        scheduler.kill()
        with pytest.raises(UsageError, match="scheduler was lost"):
            list(results)


def test_a_scheduler_that_is_not_there_is_told(roots: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    make_dataset(7, 2)
    monkeypatch.setattr("headctssl.preprocessing.cluster._CONNECT_S", 0.5)
    code, _, err = command("plan_and_preprocess", "-d", 7, "--scheduler", "tcp://127.0.0.1:9")
    assert code == 2
    assert "The dask scheduler cannot be reached" in err
    assert "dask worker" in err
    with pytest.raises(UsageError, match="no effect with --scheduler"):
        preprocess(7, rule=STORAGE, scheduler="tcp://127.0.0.1:9", num_workers=2)


def test_without_dask_the_extra_is_named(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(7, 2)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed") as told:
        preprocess(7, rule=STORAGE, scheduler="tcp://127.0.0.1:9", quiet=True)
    assert "headctssl[dask]" in str(told.value.do)
