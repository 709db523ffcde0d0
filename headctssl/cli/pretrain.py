"""Pretrain: train an encoder without labels on planned and preprocessed datasets."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from headctssl.cli.common import add_common, add_datasets, add_track
from headctssl.cli.main import exit_code_of, run_command
from headctssl.console import say
from headctssl.paths import results_dataset

__all__ = ["add_arguments", "add_run_arguments", "main", "run"]


class _List(argparse.Action):
    """Print the methods, the encoders and the pairs that train, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from headctssl.reporting.methods_page import print_methods_and_encoders

        print_methods_and_encoders()
        parser.exit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of headct_pretrain."""
    add_run_arguments(parser)
    add_track(parser)
    parser.add_argument(
        "--slurm",
        metavar="KEY=VALUE,...",
        help="submit the run to Slurm, such as partition=gpu,gpus=4,hours=24; it is requeued when its time is up",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that headct_pretrain and headct_estimate share."""
    add_datasets(parser, several=True)
    parser.add_argument("-m", dest="method", metavar="METHOD", required=True, help="objective, see --list")
    parser.add_argument(
        "-c", dest="config", metavar="CONFIG", help="encoder, see --list; chosen for data and machine when left out"
    )
    parser.add_argument("-p", dest="plans_name", metavar="NAME", default="plans", help="name of the plans")
    parser.add_argument(
        "-w", dest="init", metavar="INIT", default="scratch", help="weights or run folder to begin from"
    )
    parser.add_argument("--tag", metavar="TAG", help="appended to the name of the run")
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="go on from the checkpoint of the run, if it has one"
    )
    parser.add_argument(
        "--pretrain_on", choices=("train", "all"), default="train", help="'all' uses the test cases of splits.json too"
    )
    parser.add_argument(
        "--where", metavar="EXPR", help='train only on cases of which this is true, such as "kvp >= 100"'
    )
    parser.add_argument(
        "--list", action=_List, nargs=0, default=argparse.SUPPRESS, help="list methods, encoders and pairs, and end"
    )
    add_common(parser, device=True, num_workers=True, overwrite=True, overrides=True)


def run(args: argparse.Namespace) -> int:
    """Carry out headct_pretrain."""
    call = vars(args)
    slurm = call.pop("slurm")
    if slurm is None:
        return _train(call)
    from headctssl.training.slurm import check_before_queueing, parse_slurm, submit

    options = parse_slurm(slurm)
    check_before_queueing(**call)
    folder = results_dataset(args.dataset_ids[0]) / "slurm"
    number, log = submit(functools.partial(_in_job, call), options, folder, f"pretrain_{args.method}")
    shape = f"{options.nodes} node(s) with {options.processes_per_node} process(es)"
    say(f"submitted as Slurm job {number}, {shape}; its log:", quiet=args.quiet)
    say(f"  {log}", quiet=args.quiet)
    return 0


def _in_job(call: dict[str, Any], again: bool) -> int:
    """The same call in a process of a Slurm job, which may have been started before."""
    return exit_code_of("pretrain", lambda: _train(_call_of_start(call, again)))


def _call_of_start(call: dict[str, Any], again: bool) -> dict[str, Any]:
    """What a start of a job does: it goes on from the checkpoint when an earlier start has begun the run.

    A job that was stopped before that keeps its flags: with --continue it would take an older run for its own. The
    flags of the main process count.
    """
    from headctssl.training.slurm_job import has_begun

    if again and has_begun(results_dataset(call["dataset_ids"][0]) / "pretrain"):
        return {**call, "resume": True, "overwrite": False}
    return call


def _train(call: dict[str, Any]) -> int:
    from headctssl.reporting.report import report_at_end
    from headctssl.training.distributed import current_process
    from headctssl.training.pretrain import pretrain

    folder = pretrain(**call)
    if current_process().is_main:
        report_at_end(folder, quiet=call["quiet"])
    return 0


main = functools.partial(run_command, "pretrain")
