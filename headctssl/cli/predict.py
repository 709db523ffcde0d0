"""Predict: probabilities for image files and DICOM folders that no dataset knows."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.common import add_common
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "-i",
        dest="input",
        metavar="PATH",
        required=True,
        help="an image file, a DICOM folder, or a folder with any number of both below it",
    )
    parser.add_argument(
        "-w",
        dest="weights",
        metavar="MODEL",
        required=True,
        help="a classifier's file or folder; a task: mean of folds",
    )
    parser.add_argument(
        "-o", dest="output", metavar="OUT", required=True, help="a .csv or .json file, or a folder for predictions.csv"
    )
    parser.add_argument(
        "--aggregate",
        choices=("mean", "max", "attention"),
        default=None,
        help="also one prediction per study, over the DICOM series of one patient and study; attention where the"
        " classifier has learnt it, when left out",
    )
    add_common(parser, device=True, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Call `predict`; 1 when some images failed, 2 when all did."""
    from headctssl.inference.predict import predict

    result = predict(
        args.input,
        args.weights,
        args.output,
        aggregate=args.aggregate,
        device=args.device,
        num_workers=args.num_workers,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return result.exit_code


main = functools.partial(run_command, "predict")
