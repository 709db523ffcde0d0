"""Finetune: train a classifier from a pretrained encoder or from scratch."""

from __future__ import annotations

import argparse
import functools
import time
from typing import Literal

from headctssl.cli.common import add_common, add_datasets, add_track, non_negative_int, positive_int
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_datasets(parser)
    parser.add_argument(
        "-w",
        dest="weights",
        metavar="CHECKPOINT",
        required=True,
        help="an encoder's file or run folder, or 'scratch' (then -c says which encoder)",
    )
    parser.add_argument("-c", dest="config", metavar="CONFIG", default=None, help="encoder preset, for -w scratch")
    parser.add_argument(
        "--adapt",
        choices=("full", "lora", "attentive", "linear"),
        default="full",
        help="train the whole network, adapters and head, or only a head on tokens or features",
    )
    parser.add_argument(
        "--few_shots",
        metavar="K",
        type=_shots,
        nargs="+",
        default=None,
        help="patients per class and label to train on, several for a learning curve, 'all' for every training case",
    )
    parser.add_argument(
        "--all_negatives", action="store_true", help="with --few_shots: K positive and all negative patients"
    )
    parser.add_argument(
        "--draws", metavar="N", type=positive_int, default=1, help="few-shot draws of other patients, one run each"
    )
    parser.add_argument(
        "--draw", metavar="D", type=non_negative_int, default=0, help="number of the first few-shot draw, from 0"
    )
    parser.add_argument(
        "-f",
        dest="fold",
        metavar="FOLD",
        nargs="+",
        default=["0"],
        help="folds of splits.json, 'all' for all of them in turn, 'none' to train on every case outside the test set",
    )
    parser.add_argument("--labels", nargs="+", metavar="LABEL", default=None, help="label names; all when not given")
    parser.add_argument("--tag", default=None, help="added to the name of the run")
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on from the run's checkpoint")
    add_track(parser)
    add_common(parser, device=True, num_workers=True, overwrite=True, overrides=True)


def run(args: argparse.Namespace) -> int:
    """Call `finetune`."""
    from headctssl.finetuning.finetune import finetune
    from headctssl.reporting.report import report_at_end, report_series_at_end
    from headctssl.training.distributed import current_process

    began = time.time()
    folder = finetune(
        args.dataset_id,
        args.weights,
        config=args.config,
        adapt=args.adapt,
        few_shots=args.few_shots,
        all_negatives=args.all_negatives,
        draw=args.draw,
        draws=args.draws,
        fold=args.fold,
        labels=args.labels,
        tag=args.tag,
        resume=args.resume,
        overwrite=args.overwrite,
        device=args.device,
        num_workers=args.num_workers,
        overrides=args.overrides,
        track=args.track,
        quiet=args.quiet,
    )
    if current_process().is_main:
        if (folder / "config.json").is_file():
            report_at_end(folder, quiet=args.quiet)
        else:  # several folds, draws or numbers of shots
            report_series_at_end(folder.parent, began, quiet=args.quiet)
    return 0


def _shots(text: str) -> int | Literal["all"]:
    return "all" if text == "all" else positive_int(text)


main = functools.partial(run_command, "finetune")
