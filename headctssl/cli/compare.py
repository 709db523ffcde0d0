"""Compare: objectives, encoders and adaptations on the same test cases, beside baselines, in one table."""

from __future__ import annotations

import argparse
import functools

from headctssl.cli.common import add_common, add_datasets, positive_int
from headctssl.cli.main import run_command

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_datasets(parser, several=True)
    parser.add_argument("--encoders", nargs="+", metavar="CONFIG", default=(), help="encoder presets")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=(),
        help="objectives to pretrain with; scratch, random and histogram are in the table anyway",
    )
    parser.add_argument(
        "-w",
        "--weights",
        dest="weights",
        nargs="+",
        metavar="NAME=PATH",
        type=_named,
        default=(),
        help="encoders' files or run folders to compare beside the methods",
    )
    parser.add_argument(
        "--embeddings",
        nargs="+",
        metavar="NAME=FILE",
        type=_named,
        default=(),
        help=".csv or .npz with vectors by case id, made by any other model",
    )
    parser.add_argument(
        "--adapt", nargs="+", metavar="ADAPT", default=("linear", "full"), help="ways of adaptation of headct_finetune"
    )
    parser.add_argument(
        "--few_shots",
        nargs="+",
        metavar="K",
        type=_shots,
        default=(8, "all"),
        help="patients per class and label to learn from, 'all' for every training case",
    )
    parser.add_argument("--seeds", type=positive_int, metavar="N", default=3, help="seeds 0 to N-1")
    parser.add_argument("--draws", type=positive_int, metavar="N", default=1, help="few-shot draws per seed")
    parser.add_argument(
        "--pretrain_on",
        nargs="+",
        metavar="N",
        type=positive_int,
        default=None,
        help="datasets to pretrain on, together; those of -d when not given",
    )
    parser.add_argument(
        "-f", dest="fold", metavar="FOLD", default="0", help="fold of splits.json, or 'none' for no validation cases"
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", default=None, help="label names; all binary ones when not given"
    )
    parser.add_argument("--name", default="comparison", help="folder of the comparison")
    parser.add_argument(
        "--allow_overlap", action="store_true", help="go on when test cases were pretrained on, and mark the results"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be run and how long it takes")
    parser.add_argument(
        "--num_jobs", type=positive_int, metavar="N", default=None, help="runs at a time; one per core, one on a GPU"
    )
    add_common(parser, device=True, num_workers=True, overrides=True)


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=PATH")
    return name, path


def _shots(text: str) -> int | str:
    return "all" if text == "all" else positive_int(text)


def run(args: argparse.Namespace) -> int:
    """Call `compare`; 1 when a run failed."""
    from headctssl.errors import UsageError
    from headctssl.evaluation.compare import compare
    from headctssl.reporting.report import report_at_end

    for flag, given in (("--weights", args.weights), ("--embeddings", args.embeddings)):
        if len(dict(given)) < len(given):
            names = " ".join(name for name, _ in given)
            raise UsageError(f"{flag} gives one name twice.", got=names, expected="each once", do="Rename one.")
    result = compare(
        args.dataset_ids,
        encoders=args.encoders,
        methods=args.methods,
        weights=dict(args.weights),
        embeddings=dict(args.embeddings),
        adapt=args.adapt,
        few_shots=args.few_shots,
        seeds=args.seeds,
        draws=args.draws,
        pretrain_on=args.pretrain_on,
        fold=args.fold,
        labels=args.labels,
        name=args.name,
        allow_overlap=args.allow_overlap,
        dry_run=args.dry_run,
        num_jobs=args.num_jobs,
        device=args.device,
        num_workers=args.num_workers,
        overrides=args.overrides,
        quiet=args.quiet,
    )
    if result.comparison is not None:
        report_at_end(result.folder, quiet=args.quiet)
    return result.exit_code


main = functools.partial(run_command, "compare")
