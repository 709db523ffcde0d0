"""Preprocess: the cases of planned datasets stored as int16 Hounsfield units at the plan's spacing."""

from __future__ import annotations

import argparse
from functools import partial

from headctssl.cli.common import add_common, add_datasets, add_executors, begin_workers
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_datasets(parser, several=True)
    parser.add_argument("-p", dest="plans_name", default="plans", metavar="NAME", help="name of the plans")
    parser.add_argument("--verify", action="store_true", help="check sources and stored cases by their sums")
    add_executors(parser)
    add_common(parser, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 1 when some cases were left out."""
    begin_workers(args)
    from headctssl.planning.plans import load_plans
    from headctssl.preprocessing.preprocess import preprocess

    plans = [load_plans(dataset_id, args.plans_name) for dataset_id in args.dataset_ids]
    reports = [
        preprocess(
            dataset_id,
            rule=plan.storage,
            layout=plan.layout,
            num_workers=args.num_workers,
            scheduler=args.scheduler,
            part=args.part,
            parts=args.parts,
            retries=args.retries,
            quiet=args.quiet,
            verify=args.verify,
            overwrite=args.overwrite,
        )
        for dataset_id, plan in zip(args.dataset_ids, plans, strict=True)
    ]
    return int(any(report.failures for report in reports))


main = partial(run_command, "preprocess")
