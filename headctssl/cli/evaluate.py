"""Evaluate: metrics of a classifier on a dataset, with 95 % intervals over patients."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.common import add_common, add_datasets
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_datasets(parser)
    parser.add_argument(
        "-w",
        dest="weights",
        metavar="MODEL",
        required=True,
        help="a classifier's file or fine-tuning folder; of a task with several folds the mean of all is evaluated",
    )
    parser.add_argument(
        "--split", choices=("test", "all"), default="test", help="the test cases of splits.json, or every case"
    )
    parser.add_argument(
        "--aggregate",
        choices=("mean", "max", "attention"),
        default=None,
        help="how scans of one session of a subject become one prediction, measured beside the scans; attention where"
        " the classifier has learnt it, else mean, when left out",
    )
    add_common(parser, device=True, num_workers=True)


def run(args: argparse.Namespace) -> int:
    """Call `evaluate`; 1 when cases could not be preprocessed."""
    from headctssl.evaluation.evaluate import evaluate, evaluation_folder
    from headctssl.finetuning.ensemble import open_ensemble
    from headctssl.reporting.report import report_at_end
    from headctssl.training.distributed import current_process

    metrics = evaluate(
        args.dataset_id,
        args.weights,
        split=args.split,
        aggregate=args.aggregate,
        device=args.device,
        num_workers=args.num_workers,
        quiet=args.quiet,
    )
    if current_process().is_main:
        contract = open_ensemble(args.weights).as_one()
        report_at_end(evaluation_folder(args.dataset_id, contract, args.split), quiet=args.quiet)
    return 1 if metrics.num_failed else 0


main = functools.partial(run_command, "evaluate")
