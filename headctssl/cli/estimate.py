"""Estimate: what a pretraining run would decide, need and take, before it starts."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.main import run_command
from headctssl.cli.pretrain import add_run_arguments

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of headct_estimate: those of headct_pretrain."""
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out headct_estimate."""
    from headctssl.training.estimate import estimate

    estimate(**vars(args))
    return 0


main = functools.partial(run_command, "estimate")
