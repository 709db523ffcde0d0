"""Embed: feature vectors of image files, DICOM folders or a dataset."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.common import add_common, positive_int
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-i",
        dest="input",
        metavar="PATH",
        default=None,
        help="an image file, a DICOM folder, or a folder with any number of both below it",
    )
    source.add_argument("-d", dest="dataset_id", metavar="N", type=positive_int, default=None, help="dataset number")
    parser.add_argument(
        "-w", dest="weights", metavar="CHECKPOINT", required=True, help="an encoder's or classifier's file or folder"
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="OUT",
        required=True,
        help="a .csv or .npz file, or a folder for embeddings.csv",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="bf16 is about twice as fast where the device multiplies in it; vectors differ in the third digit "
        "(default: float32)",
    )
    add_common(parser, device=True, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Call `embed`; 1 when some images failed, 2 when all did."""
    from headctssl.inference.embed import embed

    result = embed(
        args.input,
        args.weights,
        args.output,
        dataset_id=args.dataset_id,
        device=args.device,
        num_workers=args.num_workers,
        precision=args.precision,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return result.exit_code


main = functools.partial(run_command, "embed")
