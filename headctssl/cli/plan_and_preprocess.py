"""Plan and preprocess: fingerprint, plan and preprocess datasets, or preprocess them like a checkpoint needs it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from headctssl.cli.common import add_common, add_datasets, add_executors, begin_workers
from headctssl.cli.main import run_command
from headctssl.cli.plan_experiment import add_planning

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_datasets(parser, several=True)
    add_planning(parser)
    parser.add_argument("--like", type=Path, metavar="CHECKPOINT", help="preprocess as this checkpoint needs it")
    parser.add_argument("--verify", action="store_true", help="check sources and stored cases by their sums")
    add_executors(parser)
    add_common(parser, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 1 when some cases were left out."""
    begin_workers(args)
    from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess

    reports = plan_and_preprocess(
        args.dataset_ids,
        plans_name=args.plans_name,
        like=args.like,
        gpu_memory=args.gpu_memory,
        replan=args.replan,
        verify=args.verify,
        num_workers=args.num_workers,
        scheduler=args.scheduler,
        part=args.part,
        parts=args.parts,
        retries=args.retries,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return int(any(report.failures for report in reports))


main = partial(run_command, "plan_and_preprocess")
