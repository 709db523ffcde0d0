"""Reproduce: start a pretraining run again as its folder says it was, and compare the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from headctssl.console import say
from headctssl.contract import Contract
from headctssl.errors import DataError, HeadCTSSLError, UsageError
from headctssl.methods import method_class
from headctssl.paths import data_root
from headctssl.planning.run_settings import RunSettings
from headctssl.settings import read_json
from headctssl.training.checkpoint import WEIGHTS_FILES, load_weights
from headctssl.training.distributed import current_process
from headctssl.training.environment import Environment, describe_environment, differences
from headctssl.training.pretrain import run_pretraining
from headctssl.training.pretrain_call import Request, choose_device, open_call, run_name
from headctssl.training.stored_run import read_run_settings, require_same_cases

__all__ = [
    "Again",
    "Original",
    "Reproduction",
    "find_weights_of",
    "next_tag",
    "open_original",
    "repeat",
    "reproduce_pretraining",
]

DEFAULT_TAG = "reproduced"


@dataclass(frozen=True)
class Again:
    """How a run is started again; what may differ from the first time."""

    init: Path | str | None = None
    tag: str | None = None
    check: bool = False
    resume: bool = False
    overwrite: bool = False
    device: str | None = None
    num_workers: int | None = None
    track: tuple[str, ...] = ()
    quiet: bool = False


@dataclass(frozen=True)
class Original:
    """A run that is to be repeated."""

    folder: Path
    stage: Literal["pretrain", "finetune"]
    environment: Environment
    weights_hash: str | None  # None: it was not finished


@dataclass(frozen=True)
class Reproduction:
    """What came of repeating a run."""

    folder: Path
    differences: tuple[str, ...]  # of versions and hardware, known before the start
    identical: bool | None  # whether the weights are; None: not compared


def open_original(run: Path | str) -> Original:
    """Read what a run folder says of the run.

    Raises:
        UsageError: it is no run folder.
        DataError: a file of it cannot be read.
    """
    folder = Path(run)
    try:
        stage = json.loads((folder / "config.json").read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        stage = None
    if stage not in ("pretrain", "finetune"):
        raise UsageError(
            f"{folder.name} is not the folder of a run.",
            got=folder,
            expected="a folder with the config.json of headct_pretrain, or of headct_finetune (its fold_K)",
            do="Name the folder that the run wrote.",
        )
    contract = folder / "contract.json"
    found = read_json(contract, Contract).weights_hash if contract.is_file() else None
    return Original(folder, stage, read_json(folder / "environment.json", Environment), found)


def repeat(original: Original, again: Again, run: Callable[[str | None], Path]) -> Reproduction:
    """Say what differs, run, and compare the weights where that is asked for.

    Args:
        original: the run that is repeated; its data were found to be the same.
        again: how.
        run: starts it on a device; gives the new folder.

    Raises:
        UsageError: the weights are to be compared, but the original has none.
        HeadCTSSLError: as the run itself.
    """
    if again.check and original.weights_hash is None:
        raise UsageError(
            f"The run {original.folder.name} has no weights to compare with.",
            got="no contract.json",
            expected="a run that reached its end",
            do="Leave out --check, or finish the run with --continue.",
        )
    # On a machine with a GPU a run of the CPU is repeated on the CPU.
    name = again.device or ("cpu" if original.environment.device == "cpu" else None)
    process = current_process()
    quiet = again.quiet or not process.is_main
    now = describe_environment(choose_device(name, process), processes=process.world_size)
    found = differences(original.environment, now)
    for sentence in found:
        say(f"differs: {sentence}", quiet=quiet)
    if not found:
        say("versions and hardware are as they were", quiet=quiet)
    folder = run(name)
    if not again.check or not process.is_main:
        return Reproduction(folder, tuple(found), None)
    weights = read_json(folder / "contract.json", Contract).weights_hash
    same = weights == original.weights_hash
    said = "are bit for bit those of" if same else "differ from those of"
    say(
        f"the weights {said} {original.folder.name}: {weights[:16]} and {(original.weights_hash or '')[:16]}",
        quiet=quiet,
    )
    return Reproduction(folder, tuple(found), same)


def reproduce_pretraining(original: Original, again: Again) -> Reproduction:
    """Repeat a pretraining run under its stored settings.

    Raises:
        DataError: the cases or how they are stored are not what they were.
        HeadCTSSLError: as `pretrain`.
    """
    content = json.loads((original.folder / "config.json").read_text(encoding="utf-8"))
    method = method_class(str(content.get("method_name")))
    settings = read_run_settings(original.folder / "config.json", method.Settings)
    if again.num_workers is not None:
        training = settings.training.model_copy(update={"num_workers": again.num_workers})
        settings = settings.model_copy(update={"training": training})
    request = Request(
        settings.dataset_ids,
        settings.method_name,
        settings.config,
        settings.plans_name,
        find_weights_of(settings.init, again.init),
        settings.pretrain_on,
        None,
        settings.overrides,
        None if settings.where is None else settings.where.expression,
    )
    _require_same_data(original, request, settings)
    tag = again.tag or next_tag(original.folder.name.removeprefix(run_name(settings)))

    def run(device: str | None) -> Path:
        return run_pretraining(
            request,
            tag=tag,
            resume=again.resume,
            overwrite=again.overwrite,
            device=device,
            track=again.track,
            quiet=again.quiet,
            settings=settings,
        )

    return repeat(original, again, run)


def next_tag(old: str) -> str:
    """The tag of a repeated run: ``reproduced``, after the tag that the run had.

    Args:
        old: what stands behind the name of the run without a tag, such as ``__thin``, or nothing.
    """
    return f"{old.removeprefix('__')}-{DEFAULT_TAG}".removeprefix("-")


def find_weights_of(init: str, given: Path | str | None) -> Path | str | None:
    """The weights that a run began from, by their hash: the file that is given, else a run in the results root.

    Args:
        init: the hash in the settings of the run, or ``scratch``.
        given: a weights file or run folder, or None. Its hash is compared.

    Raises:
        UsageError: the run began from random weights and some are given, the hash differs, or no run has it.
    """
    if init == "scratch":
        if given not in (None, "scratch"):
            raise UsageError(
                "The run began from random weights.", got=f"-w {given}", expected="no -w", do="Leave out -w."
            )
        return None
    if given is not None:
        if load_weights(str(given)).contract.weights_hash == init:
            return given
    else:
        for contract in sorted(data_root("results").glob("*/pretrain/*/contract.json")):
            has_weights = (contract.parent / WEIGHTS_FILES["encoder"]).is_file()
            if has_weights and read_json(contract, Contract).weights_hash == init:
                return contract.parent
    raise UsageError(
        "The weights that the run began from were not found.",
        got="no run in the results root has them" if given is None else f"-w {given} has others",
        expected=f"weights with the hash {init[:16]}",
        do="Name their file or run folder with -w.",
    )


def _require_same_data(original: Original, request: Request, settings: RunSettings) -> None:
    process = current_process()
    call = open_call(request, torch.device("cpu"), process, settings=settings)
    stored = call.data.plans[0].storage
    try:
        require_same_cases(original.folder, call.data)
    except HeadCTSSLError as error:
        raise _other_data(original, error.got, error.expected) from None
    if settings.storage.with_masks(()).digest() != stored.with_masks(()).digest():
        raise _other_data(original, f"cases stored as {stored.storage_id}", settings.storage.storage_id)


def _other_data(original: Original, got: object, expected: object) -> DataError:
    """The error of a run whose data are not there any more as they were."""
    return DataError(
        f"The data of the run {original.folder.name} are not what they were, so it cannot be repeated.",
        got=got,
        expected=expected,
        do="Bring the datasets back to that state, or start a new run with headct_pretrain or headct_finetune.",
    )
