"""Reproduce: start a run again with the same data, settings and seed, and compare the weights."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from headctssl.cli.common import add_common, add_track
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run; of a fine-tuning run its fold_K")
    parser.add_argument(
        "-w", dest="init", metavar="INIT", help="weights it began from; found by their hash when left out"
    )
    parser.add_argument("--tag", metavar="TAG", help="of the new run; 'reproduced' when left out")
    parser.add_argument("--check", action="store_true", help="compare the weights at the end; 1 when they differ")
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="go on with a repetition that was stopped"
    )
    add_track(parser)
    add_common(parser, device=True, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Carry out headct_reproduce."""
    from headctssl.finetuning.reproduce import reproduce
    from headctssl.reporting.report import report_at_end
    from headctssl.training.distributed import current_process

    done = reproduce(**vars(args))
    if current_process().is_main:
        report_at_end(done.folder, quiet=args.quiet)
    return 1 if done.identical is False else 0


main = functools.partial(run_command, "reproduce")
