"""Make phantom: write a raw dataset of synthetic labelled head CTs."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from headctssl.cli.common import add_common, add_datasets, positive_int
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_datasets(parser)
    parser.add_argument("-n", type=positive_int, default=60, metavar="N", help="number of scans")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of everything")
    parser.add_argument(
        "--profile",
        default="clinical",
        metavar="NAME",
        help="clinical: sizes and slice thickness of practice; laptop: coarse, small, quick",
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=None,
        metavar="IMAGE",
        help="a real head CT that every subject is a variation of, instead of a parametric head",
    )
    parser.add_argument("--name", default=None, help="name of the dataset; Phantom when not given")
    add_common(parser, num_workers=True, overwrite=True)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    from headctssl.ingest.phantom.make import make_phantom

    make_phantom(
        args.dataset_id,
        n=args.n,
        seed=args.seed,
        profile=args.profile,
        name=args.name,
        num_workers=args.num_workers,
        quiet=args.quiet,
        overwrite=args.overwrite,
        base=args.base,
    )
    return 0


main = functools.partial(run_command, "make_phantom")
