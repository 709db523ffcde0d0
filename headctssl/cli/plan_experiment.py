"""Plan experiment: plans.json and splits.json of a fingerprinted dataset, every decision with its reason."""

from __future__ import annotations

import argparse
from functools import partial

from headctssl.cli.common import add_common, add_datasets
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "add_planning", "main", "run"]


def add_planning(parser: argparse.ArgumentParser) -> None:
    """Add the flags that planning has, here and in plan_and_preprocess."""
    parser.add_argument("-p", dest="plans_name", default="plans", metavar="NAME", help="name of the plans")
    parser.add_argument(
        "--gpu_memory", type=float, default=None, metavar="GB", help="memory a training step of two scans must fit"
    )
    parser.add_argument("--replan", action="store_true", help="plan again although plans exist")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_datasets(parser, several=True)
    add_planning(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from headctssl.planning.planner import plan_experiment

    for dataset_id in args.dataset_ids:
        plan_experiment(dataset_id, args.plans_name, gpu_memory=args.gpu_memory, replan=args.replan, quiet=args.quiet)
    return 0


main = partial(run_command, "plan_experiment")
