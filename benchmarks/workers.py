"""Workers: how much faster two processes preprocess than one, how soon a killed one is noticed, what the parent holds.

Run as ``python -m benchmarks.workers``. Prints a table, writes ``benchmarks/workers.json``, ends with 1 when a target
is missed. One and two workers run in turn, each in a process of its own with one thread in every library, on phantom
scans of clinical size. What the machine itself allows is measured beside them: two separate commands at the same time,
each with one worker; where cores are shared or memory is the limit, these are not twice as fast as one either.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.rows import Row, alternate, faster, finish, on_one_thread, value

RESULT = Path(__file__).with_suffix(".json")
MODULE = "benchmarks.workers"
CASES = (10, 30, 60)
LISTED = 100_000
_DATASET = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per side, at least 5 for figures to report")
    parser.add_argument("--cases", type=int, nargs="+", default=CASES, metavar="N", help="phantom scans")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--parent", action="store_true", help=argparse.SUPPRESS)  # of the process that lists cases
    arguments = parser.parse_args(argv)
    on_one_thread(MODULE, argv)
    if arguments.parent:
        print(json.dumps(_held()))
        return 0
    began = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in arguments.cases:
            rows += _speed_rows(Path(folder) / str(number), number, arguments.runs)
    rows.append(_death_row(arguments.runs))
    rows.append(_memory_row())
    return finish("Workers of preprocessing", rows, arguments.output, ("blosc2", "numpy"), began)


def _speed_rows(root: Path, number: int, runs: int) -> list[Row]:
    from headctssl.ingest.phantom.make import make_phantom

    places = [_environment(root, f"preprocessed_{n}") for n in range(2)]
    os.environ.update(places[0])
    make_phantom(_DATASET, n=number, quiet=True)
    subprocess.run([*_command("plan_and_preprocess"), "--num_workers", "2"], env=places[0], check=True)
    shutil.copytree(root / "preprocessed_0", root / "preprocessed_1")

    def one() -> tuple[float, float]:
        return _timed(places[:1], 1)

    def two() -> tuple[float, float]:
        return _timed(places[:1], 2)

    def apart() -> tuple[float, float]:
        return _timed(places, 1)

    alone, together, separate = alternate(runs, one, two, apart)
    limit = 2 * median(seconds for seconds, _ in alone) / median(seconds for seconds, _ in separate)
    cause = f"two separate commands at once reach {limit:.2f}x on this machine; load {os.getloadavg()[0]:.1f} on "
    cause += f"{os.cpu_count()} cores"
    cases = f"{number} cases"
    return [
        faster(f"{cases} with 2 workers", _first(together), _first(alone), "1 worker", target=1.8, cause=cause),
        faster(f"{cases} with 2 workers, the whole command", _second(together), _second(alone), "1 worker"),
        faster(f"{cases} twice, by 2 commands at once", _first(separate), [2 * s for s, _ in alone], "one by one"),
    ]


def _first(timed: Sequence[tuple[float, float]]) -> list[float]:
    return [seconds for seconds, _ in timed]


def _second(timed: Sequence[tuple[float, float]]) -> list[float]:
    return [seconds for _, seconds in timed]


def _environment(root: Path, preprocessed: str) -> dict[str, str]:
    folders = {"raw": root / "raw", "preprocessed": root / preprocessed, "results": root / "results"}
    for folder in folders.values():
        if folder.name != "preprocessed_1":
            folder.mkdir(parents=True, exist_ok=True)
    return {**os.environ, **{f"headctssl_{kind}": str(folder) for kind, folder in folders.items()}}


def _command(name: str) -> list[str]:
    return [sys.executable, "-m", "headctssl", name, "-d", str(_DATASET), "--quiet"]


def _timed(places: Sequence[dict[str, str]], num_workers: int) -> tuple[float, float]:
    """Seconds of preprocessing, as the slowest report says, and of the whole commands, which run at the same time."""
    began = time.perf_counter()
    call = [*_command("preprocess"), "--overwrite", "--num_workers", str(num_workers)]
    commands = [subprocess.Popen(call, env=place) for place in places]
    codes = [command.wait() for command in commands]
    seconds = time.perf_counter() - began
    assert not any(codes), f"preprocessing ended with {codes}"
    reports = [next(Path(place["headctssl_preprocessed"]).glob("*/preprocessing_report.json")) for place in places]
    return max(json.loads(report.read_text(encoding="utf-8"))["seconds"] for report in reports), seconds


def _sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def _death_row(runs: int) -> Row:
    """From the kill of a worker until the item it had is done again, less the item's own time."""
    from headctssl.dataset.parallel import run_in_processes

    def once() -> float:
        killed: list[float] = []
        results = run_in_processes(_sleep, [0.01, 0.01, 1.0, 1.0], 2, preload=MODULE)
        workers = [next(results)[1], next(results)[1]]

        def kill() -> None:
            time.sleep(0.3)
            killed.append(time.perf_counter())
            os.kill(int(str(workers[0])), signal.SIGKILL)

        threading.Thread(target=kill).start()
        next(results)
        seconds = time.perf_counter() - killed[0] - 1.0
        results.close()
        return seconds

    what = "a killed worker is noticed, and a new process has begun its case"
    return value(what, [once() for _ in range(runs)], "s", target=5.0, bound="at most")


def _memory_row() -> Row:
    import pandas as pd

    from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset

    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder), "preprocessed")
        ids = [f"case{n:07d}" for n in range(LISTED)]
        cases = pd.DataFrame({"case_id": ids, "image": [f"images/{name}.nii.gz" for name in ids]}, dtype=str)
        write_raw_dataset(Path(folder) / "raw" / "Dataset001_Many", DatasetInfo(name="Many"), cases)
        call = [sys.executable, "-m", MODULE, "--parent"]
        done = subprocess.run(call, env=environment, check=True, capture_output=True, text=True)
    what = f"memory of the parent for {LISTED:,} cases, besides cases.csv"
    return value(what, [json.loads(done.stdout)], "MiB", target=150.0, bound="at most")


def _held() -> float:
    """MiB that a process needs besides the raw dataset to run jobs that do nothing, and to write index and report."""
    from headctssl.contract import StorageRule
    from headctssl.preprocessing import preprocess as module
    from headctssl.preprocessing.case_job import CaseJob, CaseOutcome
    from headctssl.preprocessing.index_table import IndexRow

    before: list[float] = []

    def stored(job: CaseJob) -> CaseOutcome:
        if not before:
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
            before.append(pages * resource.getpagesize() / 2**20)
        size = int(job.case_id[-2:])
        box = ((size, 150 + size), (size, 200 + size), (size, 180 + size))
        source = hashlib.sha256(job.case_id.encode()).hexdigest()
        return CaseOutcome(
            job.case_id,
            "written",
            IndexRow(
                job.case_id,
                (size, size + 301, 281),
                box,
                (size / 3, 1.0, 1.0),
                ("head",),
                source,
                10**6 + size,
                10**9 + size,
                job.rule.digest(),
            ),
        )

    module.run_case = stored
    module.preprocess(_DATASET, rule=StorageRule(spacing_mm=(1.0, 1.0, 1.0)), num_workers=1, quiet=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before[0]


if __name__ == "__main__":
    sys.exit(main())
