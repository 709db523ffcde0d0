"""Verify dataset: list every fault of a raw dataset at once, by case."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.common import add_common, add_datasets
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `headct_verify_dataset`."""
    add_datasets(parser)
    add_common(parser, num_workers=True)


def run(args: argparse.Namespace) -> int:
    """Verify; 0 without faults, 1 when some cases are faulty, 2 when all are or the dataset is."""
    from headctssl.dataset.verify import verify_dataset

    return verify_dataset(args.dataset_id, num_workers=args.num_workers, quiet=args.quiet).exit_code


main = functools.partial(run_command, "verify_dataset")
