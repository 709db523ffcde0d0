"""Input: all targets of the input pipeline: one case here, then store, views, loader, scale and workers.

Run as ``python -m benchmarks.input``; needs the extra ``bench``. Measures reading and preprocessing one case beside
MONAI, nnunetv2 and a floor, and the error of resampling beside MONAI (`input_case`, `input_accuracy`), writes
``benchmarks/input.json``, then runs the other parts, which write theirs. Ends with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import finish, on_one_thread

__all__ = ["main"]

RESULT = Path(__file__).with_suffix(".json")
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

    from benchmarks import page
    from benchmarks.input_accuracy import accuracy_rows
    from benchmarks.input_case import case_rows

    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [*case_rows(arguments.runs), *accuracy_rows()]
    title = f"one case: medians of {arguments.runs} or more runs in processor time, one thread"
    code = finish(title, rows, arguments.output, PACKAGES, began)
    for part in () if arguments.only_case else page.PARTS[1:]:
        # A process of its own: what this one has loaded would count as memory of the part.
        code = max(code, subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], check=False).returncode)
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
