"""Report: make a self-contained HTML page about a run or a converted dataset."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from headctssl.cli.common import add_common
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="folder of a pretraining run, of one fine-tuning fold, or of a dataset that headct_convert made",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=None,
        metavar="FILE",
        help="RUN/report.html (ingest_report.html of a dataset) by default",
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from headctssl.reporting.report import report

    report(args.run, output=args.output, quiet=args.quiet)
    return 0


main = partial(run_command, "report")
