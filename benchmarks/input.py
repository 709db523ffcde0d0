"""Input: all targets of the input pipeline: one case here, then store, views, loader, scale and workers.

Run as ``python -m benchmarks.input``; needs the extra ``bench``. Measures reading and preprocessing one case beside
MONAI, nnunetv2 and a floor, and the error of resampling beside MONAI (`input_case`, `input_accuracy`), writes
``benchmarks/input.json``, then runs the other parts, which write theirs. Tells what each took. Ends with 1 when a
target is missed, one of which is its own time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

from benchmarks.rows import finish, on_one_thread, print_table, value

__all__ = ["OTHER_PARTS", "main"]

RESULT = Path(__file__).with_suffix(".json")
OTHER_PARTS = ("store", "views", "loader", "scale", "workers")
"""Benchmarks of the input pipeline that have a module and a file of their own; training has targets of its own."""
MOST_MINUTES = 20.0
PACKAGES = ("torch", "monai", "nnunetv2", "numpy", "scipy", "isal", "SimpleITK")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per side, at least 5 for figures to report")
    parser.add_argument("--only_case", action="store_true", help="leave out the other parts")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    on_one_thread("benchmarks.input", argv)

    import torch

    from benchmarks.input_accuracy import accuracy_rows
    from benchmarks.input_case import SCANS, case_rows

    torch.set_num_threads(1)
    began = time.perf_counter()
    spent: dict[str, tuple[float, float]] = {}
    rows = []
    for scan in SCANS:
        with _clock(f"case {scan}", spent):
            rows += case_rows(scan, arguments.runs)
    with _clock("accuracy", spent):
        rows += accuracy_rows()
    title = f"one case: medians of {arguments.runs} or more runs in processor time, one thread"
    code = finish(title, rows, arguments.output, PACKAGES, began)
    if arguments.only_case:
        _tell(spent)
        return code
    for part in OTHER_PARTS:
        # A process of its own: what this one has loaded would count as memory of the part.
        with _clock(part, spent):
            code = max(code, subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], check=False).returncode)
    _tell(spent)
    minutes = value("the whole benchmark", [(time.perf_counter() - began) / 60], "min", MOST_MINUTES, "at most")
    print_table("time of the benchmark", [minutes])
    return min(max(code, int(minutes.verdict == "MISSED")), 1)


@contextmanager
def _clock(part: str, spent: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Note how many seconds a part took by the clock and of processors, its children's included."""
    began, before = time.perf_counter(), _processor()
    yield
    spent[part] = time.perf_counter() - began, _processor() - before


def _processor() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def _tell(spent: dict[str, tuple[float, float]]) -> None:
    from headctssl.console import table

    cells = [(part, f"{clock:.0f} s", f"{processor:.0f} s") for part, (clock, processor) in spent.items()]
    table("what the parts took", ("part", "by the clock", "of processors"), cells)


if __name__ == "__main__":
    sys.exit(main())
