"""Demo: the whole pipeline on synthetic head CTs at laptop size, ending in report.html."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from headctssl.cli.common import add_common, positive_int
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "-o", dest="output", type=Path, default=Path("headctssl_demo"), metavar="FOLDER", help="where everything goes"
    )
    parser.add_argument("-n", type=positive_int, default=240, help="number of synthetic scans")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scans and of the training")
    parser.add_argument("--minutes", type=float, default=2.5, help="about how long pretraining may take")
    add_common(parser, device=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from headctssl.reporting.demo import demo

    demo(
        args.output,
        n=args.n,
        seed=args.seed,
        minutes=args.minutes,
        device=args.device,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return 0


main = partial(run_command, "demo")
