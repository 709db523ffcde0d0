"""Extract fingerprint: sizes, spacings, head extents and HU of a raw dataset, from headers and 25 volumes."""

from __future__ import annotations

import argparse
from functools import partial

from headctssl.cli.common import add_common, add_datasets
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_datasets(parser, several=True)
    add_common(parser, num_workers=True)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 1 when some cases were left out."""
    from headctssl.planning.fingerprint import extract_fingerprint

    fingerprints = [extract_fingerprint(n, num_workers=args.num_workers, quiet=args.quiet) for n in args.dataset_ids]
    return int(any(f.num_unreadable for f in fingerprints))


main = partial(run_command, "extract_fingerprint")
