"""Rows: what every benchmark measures with, prints and writes: interleaved medians beside a peer or a floor.

A benchmark makes rows with `faster`, `within` or `value`, and ends with ``return finish(...)``: table, JSON file,
exit code. Sides are timed in turn, so that what else runs on the machine touches both; only ratios of one run count.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

__all__ = [
    "ONE_THREAD",
    "Row",
    "alternate",
    "content",
    "faster",
    "finish",
    "machine",
    "on_one_thread",
    "print_table",
    "seconds",
    "value",
    "within",
    "write_json",
]

T = TypeVar("T")

ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "BLOSC_NTHREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    ),
    "1",
)
"""Environment that holds every library to one thread."""


@dataclass(frozen=True)
class Row:
    """One line of a benchmark."""

    what: str
    ours: float  # median of our runs, in `unit`
    peer_or_floor: float | None  # median of the other side in `unit`, None where ours alone is judged
    ratio: float | None  # judged where there is another side; see `faster` and `within`
    runs: int  # per side
    unit: str = "s"
    other: str = ""  # who or what the other side is
    target: float | None = None
    bound: Literal["at least", "at most"] = "at least"  # how the ratio, or ours alone, must lie to the target
    cause: str = ""  # of a miss, measured; shown only where the target is missed

    @property
    def verdict(self) -> str:
        """Whether the target was reached, empty without one."""
        if self.target is None:
            return ""
        judged = self.ours if self.ratio is None else self.ratio
        reached = judged >= self.target if self.bound == "at least" else judged <= self.target
        return "reached" if reached else "MISSED"

    @property
    def asked(self) -> str:
        """The target as text."""
        if self.target is None:
            return ""
        return f"{self.bound} {self.target:g}" + ("x" if self.ratio is not None else f" {self.unit}")


def faster(
    what: str, ours: Sequence[float], peer: Sequence[float], other: str, target: float | None = None, cause: str = ""
) -> Row:
    """A row whose ratio is peer / ours, at least the target.

    Args:
        what: what both sides did.
        ours: seconds per run.
        peer: seconds per run of the other side.
        other: its name.
        target: smallest ratio.
        cause: of a miss.
    """
    a, b = median(ours), median(peer)
    return Row(what, _short(a), _short(b), _short(b / a), len(ours), "s", other, target, "at least", cause)


def within(
    what: str,
    ours: Sequence[float],
    floor: Sequence[float],
    other: str,
    target: float | None = None,
    cause: str = "",
    unit: str = "s",
) -> Row:
    """A row whose ratio is ours / floor, at most the target; arguments as `faster`."""
    a, b = median(ours), median(floor)
    return Row(what, _short(a), _short(b), _short(a / b), len(ours), unit, other, target, "at most", cause)


def value(
    what: str,
    ours: Sequence[float],
    unit: str,
    target: float | None = None,
    bound: Literal["at least", "at most"] = "at least",
    cause: str = "",
) -> Row:
    """A row without another side: the median itself is judged.

    Args:
        what: what was measured.
        ours: one figure per run.
        unit: of the figure, as "crops/s".
        target: in the same unit.
        bound: which side of the target is right.
        cause: of a miss.
    """
    return Row(what, _short(median(ours)), None, None, len(ours), unit, "", target, bound, cause)


def alternate(runs: int, *sides: Callable[[], T]) -> list[list[T]]:
    """Run the sides in turn; their results, one list per side. What the first run loads hardly moves a median."""
    results: list[list[T]] = [[] for _ in sides]
    for _ in range(runs):
        for side, kept in zip(sides, results, strict=True):
            kept.append(side())
    return results


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A side for `alternate` that returns how long `work` took.

    Args:
        work: what is measured.
        clock: ``time.process_time`` where other work on the machine must not count and nothing waits for a disk.
    """

    def timed() -> float:
        began = clock()
        work()
        return clock() - began

    return timed


def on_one_thread(module: str, argv: Sequence[str] | None) -> None:
    """Start this program again with every library held to one thread, unless it is so already.

    Thread pools take their size when a library is loaded, so the environment must be set before.

    Args:
        module: as ``python -m`` takes it.
        argv: as ``main`` got it.
    """
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        command = [sys.executable, "-m", module, *(sys.argv[1:] if argv is None else argv)]
        os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})


def finish(
    title: str, rows: Sequence[Row], path: Path, packages: Sequence[str], began: float, *, threads: int = 1
) -> int:
    """Print the rows, write them, renew documentation/benchmarks.md, and say with the exit code what was missed.

    Args:
        title: above the table.
        rows: what was measured.
        path: the JSON file.
        packages: whose versions matter, besides headctssl.
        began: ``time.perf_counter()`` at the start.
        threads: of each side.

    Returns:
        1 when a target was missed, else 0.
    """
    from headctssl.console import name_files

    print_table(title, rows)
    write_json(path, rows, packages, time.perf_counter() - began, threads=threads)
    name_files([path])
    if path.parent.resolve() == Path(__file__).parent.resolve():  # not elsewhere: the page is of the files kept here
        from benchmarks.page import write_page

        write_page()
    return 1 if any(row.verdict == "MISSED" for row in rows) else 0


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print one line per row, and the cause of every miss."""
    from headctssl.console import say, table

    columns = ("what", "ours", "beside", "", "ratio", "target", "runs", "")
    cells = [
        (
            row.what,
            f"{row.ours:.4g} {row.unit}",
            "" if row.peer_or_floor is None else f"{row.peer_or_floor:.4g} {row.unit}",
            row.other,
            "" if row.ratio is None else f"{row.ratio:.3g}x",
            row.asked,
            row.runs,
            row.verdict,
        )
        for row in rows
    ]
    table(title, columns, cells)
    for row in rows:
        if row.verdict == "MISSED":
            say(f"missed: {row.what}: {row.cause or 'no cause is known'}")


def write_json(path: Path, rows: Sequence[Row], packages: Sequence[str], seconds: float, *, threads: int = 1) -> None:
    """Write the rows with the machine and the versions they were measured on; arguments as `finish`."""
    path.write_text(json.dumps(content(rows, packages, seconds, threads=threads), indent=2) + "\n", encoding="utf-8")


def content(rows: Sequence[Row], packages: Sequence[str], seconds: float, *, threads: int = 1) -> dict[str, Any]:
    """What `write_json` writes."""
    return {
        "format": 1,
        "machine": machine(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in sorted({*packages, "headctssl"})},
        "seconds": round(seconds, 1),
        "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
    }


def machine() -> dict[str, str | int]:
    """Processor, cores, memory and system; no name of the machine."""
    information = Path("/proc/cpuinfo")
    told = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(pages / 2**30),
        "system": platform.system(),
    }


def _short(number: float) -> float:
    """Four significant digits."""
    return float(f"{number:.4g}")
