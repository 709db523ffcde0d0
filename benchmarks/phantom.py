"""Phantom: processor time of one synthetic scan on one thread, at voxels of 1 mm and as scanners are drawn.

Run as ``python -m benchmarks.phantom``. Prints a table, writes ``benchmarks/phantom.json``, ends with 1 when a target
is missed. Cases are those of the profile `clinical`; at 1 mm each is scanned again over the same field of view.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.rows import finish, on_one_thread, value

RESULT = Path(__file__).with_suffix(".json")
SEED = 7
TARGET = 2.0  # seconds a case


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantom", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=30, help="how many")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    on_one_thread("benchmarks.phantom", argv)
    from headctssl.ingest.phantom.make import make_case

    began = time.perf_counter()
    make_case(SEED, case=arguments.cases + 1)  # loads libraries
    cubes, drawn = [], []
    for case in range(1, arguments.cases + 1):
        start = time.process_time()
        made = make_case(SEED, case=case)
        drawn.append(time.process_time() - start)
        scan = made.acquisition
        depth, width = scan.slices * scan.thickness_mm, scan.matrix * scan.pixel_mm
        at_1_mm = replace(scan, thickness_mm=1.0, pixel_mm=1.0, slices=round(depth), matrix=round(width))
        start = time.process_time()
        make_case(SEED, case=case, acquisition=at_1_mm)
        cubes.append(time.process_time() - start)
    what = f"one clinical case, {arguments.cases} of them"
    rows = [
        value(f"{what}, voxels of 1 mm: the slowest", [max(cubes)], "s", TARGET, "at most"),
        value(f"{what}, voxels of 1 mm: median", cubes, "s"),
        value(f"{what}, as drawn, .4 mm pixels in slices of .6 to 5 mm: the slowest", [max(drawn)], "s"),
        value(f"{what}, as drawn: median", drawn, "s"),
    ]
    return finish("phantom: processor time", rows, arguments.output, ("numpy", "scipy"), began)


if __name__ == "__main__":
    sys.exit(main())
