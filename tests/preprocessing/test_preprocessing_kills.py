"""Tests of processes that are killed or stopped while they preprocess: nothing half is left, and a new run goes on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_heads import STORAGE, make_dataset

from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.preprocess import preprocess
from headctssl.volume.store import StoredArray

CASES = 8
SCRIPT = """
import sys
from headctssl.contract import StorageRule
from headctssl.errors import HeadCTSSLError
from headctssl.preprocessing.preprocess import preprocess
if __name__ == "__main__":
    try:
        preprocess(7, rule=StorageRule.model_validate_json(sys.argv[1]), num_workers=int(sys.argv[2]), quiet=True)
    except HeadCTSSLError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)
"""


def storage() -> Path:
    return preprocessed_dataset(7) / STORAGE.storage_id


def files() -> dict[str, bytes]:
    return {str(p.relative_to(storage())): p.read_bytes() for p in storage().rglob("*") if p.is_file()}


def empty() -> None:
    for path in sorted(storage().rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.fixture
def whole(roots: Path) -> dict[str, bytes]:
    """What an undisturbed run of some cases of about 50 ms stores; it is removed again."""
    make_dataset(7, CASES, spacing=2.5)
    preprocess(7, rule=STORAGE, num_workers=1, quiet=True)
    stored = files()
    empty()
    return stored


def started(script: Path, num_workers: int) -> subprocess.Popen[str]:
    """A run in a process group of its own."""
    script.write_text(SCRIPT)
    call = [sys.executable, str(script), STORAGE.model_dump_json(), str(num_workers)]
    return subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_cases(number: int, run: subprocess.Popen[str]) -> None:
    """Wait until some cases are stored or the run is over."""
    while run.poll() is None and len(list(storage().glob("??/*.b2nd"))) < 2 * number:
        time.sleep(0.005)


def of_group(group: int) -> list[int]:
    """Processes of a group that are not over."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(int(stat.parent.name))
    return alive


def expect_whole_files(whole: dict[str, bytes]) -> int:
    """Everything that has a final name is as an undisturbed run leaves it; gives the number of such files."""
    stored = {name: data for name, data in files().items() if name[0] != "." and name != "cases.csv"}
    for name, data in stored.items():
        assert data == whole[name]
        StoredArray(storage() / name).verify()
    return len(stored)


def kill_parent(seed: int, whole: dict[str, bytes], script: Path) -> None:
    rng = random.Random(seed)
    run = started(script, 2)
    wait_for_cases(rng.randrange(CASES - 1), run)
    time.sleep(rng.uniform(0, 0.1))
    run.kill()
    run.communicate()
    until = time.monotonic() + 60
    while of_group(run.pid) and time.monotonic() < until:  # workers end with their parent, the resource tracker too
        time.sleep(0.02)
    assert of_group(run.pid) == []
    before = expect_whole_files(whole)
    report = preprocess(7, rule=STORAGE, num_workers=1, quiet=True)
    assert not report.failures
    assert report.num_kept >= before // 2 - 1  # a mask may be without its case
    assert files() == whole
    assert len(CaseIndex.open(storage())) == CASES


def kill_workers(seed: int, whole: dict[str, bytes], kills: int) -> None:
    rng = random.Random(seed)
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        for _ in range(kills):
            over.wait(rng.uniform(0.05, 0.6))
            workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
            if workers and not over.is_set():
                killed.append(rng.choice(workers))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    report = preprocess(7, rule=STORAGE, num_workers=2, retries=kills, quiet=True)
    over.set()
    killer.join()
    assert not report.failures
    assert report.num_written == CASES
    assert files() == whole


def test_a_killed_parent_leaves_no_half_file_and_no_worker(whole: dict[str, bytes], tmp_path: Path) -> None:
    kill_parent(1, whole, tmp_path / "run.py")


def test_killed_workers_cost_nothing(whole: dict[str, bytes]) -> None:
    kill_workers(1, whole, kills=2)


@pytest.mark.evidence
@pytest.mark.parametrize("seed", range(2, 14))
def test_kills_at_many_moments(whole: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    kill_parent(seed, whole, tmp_path / "run.py")
    empty()
    kill_workers(seed, whole, kills=4)


@pytest.mark.evidence
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(
    whole: dict[str, bytes], tmp_path: Path, num_workers: int
) -> None:
    rng = random.Random(num_workers)
    for _ in range(40):
        run = started(tmp_path / "run.py", num_workers)
        stored = len(list(storage().glob("??/*.b2nd")))
        wait_for_cases(stored // 2 + 1, run)
        time.sleep(rng.uniform(0, 0.05))
        run.kill()
        run.communicate()
        expect_whole_files(whole)
        if run.returncode == 0:
            break
    assert run.returncode == 0
    assert files() == whole


@pytest.mark.parametrize(
    ("number", "num_workers"),
    [
        (signal.SIGINT, 2),
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.evidence),
        pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.evidence),
    ],
)
def test_a_signal_stops_it_between_two_files(
    whole: dict[str, bytes], tmp_path: Path, number: signal.Signals, num_workers: int
) -> None:
    run = started(tmp_path / "run.py", num_workers)
    wait_for_cases(2, run)
    os.killpg(run.pid, number)  # as Ctrl-C and schedulers do: to every process
    _, told = run.communicate(timeout=60)
    assert run.returncode == 75
    assert f"stopped by {number.name}" in told
    assert "Run the same command again" in told
    assert "Traceback" not in told
    assert all(name[0] != "." for name in files())
    assert not list(preprocessed_dataset(7).glob(".preprocessing*"))
    assert expect_whole_files(whole) >= 4
    preprocess(7, rule=STORAGE, num_workers=1, quiet=True)
    assert files() == whole


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []
