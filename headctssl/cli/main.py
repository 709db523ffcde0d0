"""Main: the `headct` command, its table of subcommands, and the exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence

from headctssl.errors import HeadCTSSLError

__all__ = ["COMMANDS", "exit_code_of", "main", "run_command"]

COMMANDS: dict[str, str] = {
    "demo": "the whole pipeline on synthetic scans, ending in a report",
    "convert": "make or add to a raw dataset from files or DICOM folders",
    "make_phantom": "make a raw dataset of synthetic labelled head CTs",
    "verify_dataset": "list every fault of a raw dataset at once",
    "plan_and_preprocess": "fingerprint, plan and preprocess datasets",
    "extract_fingerprint": "only the fingerprint",
    "plan_experiment": "only the plans",
    "preprocess": "only the preprocessing",
    "estimate": "memory, speed and hours of a pretraining run before it starts",
    "pretrain": "self-supervised pretraining",
    "finetune": "train a classifier from a pretrained encoder or from scratch",
    "evaluate": "metrics of a classifier on a dataset, with intervals",
    "compare": "objectives, encoders and adaptations on the same test cases, beside baselines",
    "predict": "probabilities for files and DICOM folders",
    "embed": "feature vectors for files, DICOM folders or a dataset",
    "reproduce": "start a run again with the same data, settings and seed",
    "report": "a self-contained HTML page about a run, an evaluation, a comparison or a dataset",
}
"""Every subcommand; `headctssl.cli.NAME` parses it and is also the script `headct_NAME`."""

_INTERNAL = 70
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headct NAME ...`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(
        prog="headct",
        description="Self-supervised pretraining on 3D head CT and fine-tuning of classifiers from it.",
        epilog="headct NAME --help explains one command; each is also a script headct_NAME.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from headctssl import __version__

    parser.add_argument("--version", action="version", version=f"headctssl {__version__}")
    names = parser.add_subparsers(title="commands", metavar="NAME", dest="command", required=True)
    for name, description in COMMANDS.items():
        names.add_parser(name, help=description, add_help=False)
    parser.parse_args(arguments)
    return 2


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Parse and run one subcommand.

    Args:
        name: a key of `COMMANDS`.
        argv: arguments without the program name; the process's own when None.

    Returns:
        0 done, 1 done but some cases failed, 2 cannot be carried out, 70 internal error,
        75 stopped by a signal after a checkpoint.
    """
    module = importlib.import_module(f"headctssl.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"headct_{name}",
        description=module.__doc__.partition(":")[2].strip() if module.__doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)

    def parse_and_run() -> int:
        # Some flags do work of their own while they are parsed, such as --list.
        args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
        return int(module.run(args))

    return exit_code_of(name, parse_and_run)


def exit_code_of(name: str, work: Callable[[], int]) -> int:
    """Do the work of a subcommand; print what fails.

    Args:
        name: a key of `COMMANDS`, for messages.
        work: gives the exit code.

    Returns:
        As `run_command`.
    """
    try:
        with warnings.catch_warnings():
            # timm decorates a model with what torch 2.14 calls deprecated: no user can do anything about it.
            warnings.filterwarnings("ignore", r"`torch\.jit\.interface` is deprecated", FutureWarning)
            return work()
    except HeadCTSSLError as error:
        print(f"headct_{name}: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"headct_{name}: stopped by the user.", file=sys.stderr)
        return _INTERRUPTED
    except Exception:
        import traceback

        traceback.print_exc()
        print(
            f"headct_{name}: internal error. This is a fault of headctssl: please report it with the lines above "
            "(remove patient names and paths first).",
            file=sys.stderr,
        )
        return _INTERNAL
