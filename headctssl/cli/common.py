"""Common: flags that several commands share."""

from __future__ import annotations

import argparse

__all__ = [
    "add_common",
    "add_datasets",
    "add_executors",
    "add_track",
    "begin_workers",
    "non_negative_int",
    "positive_int",
]


def positive_int(text: str) -> int:
    """An argparse type: a whole number of 1 or more."""
    return _whole_number(text, 1)


def non_negative_int(text: str) -> int:
    """An argparse type: a whole number of 0 or more."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is not {least} or more")
    return value


def add_datasets(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add `-d N` (or `-d N [N ...]`) as `args.dataset_ids` or `args.dataset_id`."""
    if several:
        parser.add_argument(
            "-d", dest="dataset_ids", metavar="N", type=positive_int, nargs="+", required=True, help="dataset numbers"
        )
    else:
        parser.add_argument(
            "-d", dest="dataset_id", metavar="N", type=positive_int, required=True, help="dataset number"
        )


def add_track(parser: argparse.ArgumentParser) -> None:
    """Add `--track NAME[,NAME]` as `args.track`."""
    parser.add_argument(
        "--track",
        metavar="NAME[,NAME]",
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        default=(),
        help="also send the numbers of metrics.jsonl to wandb, mlflow",
    )


def add_executors(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say who preprocesses: a part of a job array, a cluster, and how often it is tried."""
    parser.add_argument("--part", type=positive_int, metavar="I", help="only part I of N, as one job of an array")
    parser.add_argument("--parts", type=positive_int, metavar="N", help="how many parts there are")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="use the workers of this dask.distributed scheduler")
    parser.add_argument(
        "--retries",
        type=non_negative_int,
        default=1,
        metavar="N",
        help="tries again after a share failed in passing or a worker died",
    )


def begin_workers(args: argparse.Namespace) -> None:
    """Let the server of the worker processes import what they need while this process does: about a second less."""
    if args.scheduler is None and args.num_workers not in (0, 1):
        from headctssl.dataset.parallel import warm_up

        warm_up("headctssl.preprocessing.case_job")


def add_common(
    parser: argparse.ArgumentParser,
    *,
    device: bool = False,
    num_workers: bool = False,
    overwrite: bool = False,
    overrides: bool = False,
) -> None:
    """Add the common flags; `--quiet` always, the others where they apply.

    Args:
        parser: the parser to add to.
        device: add `--device`.
        num_workers: add `--num_workers`.
        overwrite: add `--overwrite`.
        overrides: add the repeatable `--set section.key=value`, as `args.overrides`.
    """
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    if device:
        parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1; cuda where there is one (default)")
    if num_workers:
        parser.add_argument(
            "--num_workers", type=non_negative_int, default=None, metavar="N", help="worker processes; one per core"
        )
    if overwrite:
        parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    if overrides:
        parser.add_argument(
            "--set",
            dest="overrides",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="change one setting; may be repeated",
        )
