"""Report: make a self-contained HTML page about a run, an evaluation, a comparison or a dataset."""

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
        metavar="RUN|COMPARISON|DATASET",
        help="folder of a pretraining run, of a fine-tuning run or one fold, of an evaluation, comparison or dataset",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=None,
        metavar="FILE",
        help="RUN/report.html (ingest_report.html or dataset_report.html of a dataset) by default",
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from headctssl.reporting.report import report

    report(args.run, output=args.output, quiet=args.quiet)
    return 0


main = partial(run_command, "report")
