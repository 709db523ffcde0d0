"""Estimate: what a pretraining run would decide, need and take, and what would have to change for it to fit."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from headctssl.cli.common import positive_int
from headctssl.cli.main import run_command
from headctssl.cli.pretrain import add_run_arguments

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of headct_estimate: those that say what a run of headct_pretrain is, and of the device."""
    add_run_arguments(parser)
    parser.add_argument("--gpu_memory", type=float, metavar="GB", help="memory of the GPUs the run is meant for")
    parser.add_argument("--gpus", type=positive_int, metavar="N", help="how many GPUs the run is meant for")
    parser.add_argument(
        "--gpu_tflops", type=float, metavar="T", help="their dense bfloat16 peak; assumed from the memory if left out"
    )
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Carry out headct_estimate."""
    from headctssl.training.estimate import estimate

    estimate(**vars(args))
    return 0


main = functools.partial(run_command, "estimate")
