"""Pretrain call: what the user asked for, checked and resolved before anything is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from headctssl.contract import Contract, require_same
from headctssl.errors import UsageError
from headctssl.methods import method_class
from headctssl.methods.method import Method
from headctssl.planning.plans import Decision
from headctssl.planning.resolve import Machine, detect_machine, resolve
from headctssl.planning.run_settings import RunSettings
from headctssl.settings import parse_overrides
from headctssl.training.checkpoint import LoadedWeights, load_weights
from headctssl.training.distributed import Process
from headctssl.training.pretrain_data import PretrainData, open_pretrain_data
from headctssl.training.segmented import only_segmented

__all__ = [
    "Opened",
    "PretrainCall",
    "Request",
    "asked_preset",
    "choose_device",
    "name_of_run",
    "open_call",
    "open_request",
    "resolve_request",
    "run_name",
]


@dataclass(frozen=True)
class Request:
    """The arguments of `pretrain` that decide the settings of a run."""

    dataset_ids: tuple[int, ...]
    method: str
    config: str | None
    plans_name: str
    init: Path | str | None
    pretrain_on: Literal["train", "all"]
    num_workers: int | None
    overrides: tuple[str, ...]
    where: str | None = None


@dataclass(frozen=True)
class PretrainCall:
    """A request with everything it names opened."""

    method: type[Method]
    data: PretrainData
    init: LoadedWeights | None
    settings: RunSettings

    def with_settings(self, settings: RunSettings) -> PretrainCall:
        """The same with other settings."""
        return replace(self, settings=settings)


@dataclass(frozen=True)
class Opened:
    """What a request names, opened; the settings are not decided yet."""

    method: type[Method]
    data: PretrainData
    init: LoadedWeights | None


def open_request(request: Request) -> Opened:
    """Open datasets and weights.

    Raises:
        HeadCTSSLError: a name, a dataset or the weights do not fit.
    """
    method = method_class(request.method)
    data = open_pretrain_data(request.dataset_ids, request.plans_name, request.pretrain_on, request.where)
    if "segmentation" in method.requires:
        data = only_segmented(data)
    weights = None if request.init in (None, "scratch") else load_weights(str(request.init))
    return Opened(method, data, weights)


def open_call(
    request: Request, device: torch.device, process: Process, *, settings: RunSettings | None = None
) -> PretrainCall:
    """Open datasets and weights, and resolve the settings.

    Args:
        request: what was asked for.
        device: where the run computes.
        process: this process.
        settings: already resolved by the main process; None resolves here.

    Raises:
        HeadCTSSLError: a name, a setting, a dataset or the weights do not fit.
    """
    opened = open_request(request)
    if settings is None:
        settings = resolve_request(request, opened, detect_machine(str(device)), process.world_size)
    return PretrainCall(opened.method, opened.data, opened.init, settings)


def resolve_request(request: Request, opened: Opened, machine: Machine, world_size: int) -> RunSettings:
    """The settings of a request on a machine.

    Args:
        request: what was asked for.
        opened: from `open_request`.
        machine: what one process has to work with.
        world_size: processes that share the batch.

    Raises:
        HeadCTSSLError: a name, a setting or the weights do not fit.
    """
    method, data, weights = opened.method, opened.data, opened.init
    asked = parse_overrides(request.overrides)
    if request.num_workers is not None:
        if asked.get("training.num_workers", request.num_workers) != request.num_workers:
            raise UsageError(
                "The number of reader processes is given twice.",
                got=f"--num_workers {request.num_workers} and training.num_workers={asked['training.num_workers']}",
                expected="one of them",
                do="Remove one.",
            )
        asked["training.num_workers"] = request.num_workers
    settings = resolve(
        data.plans,
        method_name=request.method,
        method_settings=method.Settings,
        optimizer=method.optimizer_defaults,
        config=asked_preset(request, opened),
        overrides=asked,
        machine=machine,
        num_train_cases=data.num_cases,
        pretrain_on=request.pretrain_on,
        init="scratch" if weights is None else weights.contract.weights_hash,
        max_case_shape=data.max_shape,
        max_head_shape=data.max_head_shape,
        batch_coupled=method.batch_coupled,
        world_size=world_size,
        segmentation_classes=data.classes,
        num_labelled=len(data.labelled),
        why_unlabelled=data.labelled.why_none,
    )
    if weights is not None:
        _require_fit(weights.contract, settings)
    decisions = (*settings.decisions, *_notes(data))
    settings = settings.model_copy(update={"decisions": decisions, "where": data.where})
    # One spelling and order, so that a continued run can be compared.
    typed = tuple(f"{key}={json.dumps(value)}" for key, value in sorted(asked.items()))
    return settings.model_copy(update={"overrides": typed})


def asked_preset(request: Request, opened: Opened) -> str | None:
    """The encoder that a request names, or that its weights are of; None where it is to be chosen."""
    if request.config is None and opened.init is not None:
        return opened.init.contract.preset
    return request.config


def _notes(data: PretrainData) -> list[Decision]:
    """What is to be said of the choice of cases."""
    notes = []
    if data.left_out:
        notes.append(
            Decision(
                what="stored cases left out",
                value="; ".join(data.left_out),
                rule="only cases that splits.json has for training or validation are pretrained on, and by a method"
                " that learns classes only those with a segmentation",
                source="a case without a place may be another scan of a test subject",
                because="of what is stored and of splits.json",
            )
        )
    if data.classes:
        notes.append(
            Decision(
                what="classes",
                value=", ".join(data.classes),
                rule="the classes of all datasets by name; one that a dataset does not name adds no loss there",
                source="SuPreM (arXiv 2501.11253)",
                because="segmentation_classes of dataset.json",
            )
        )
    if data.where is not None:
        notes.append(
            Decision(
                what="cases picked",
                value=f"{data.where.num_cases} of {data.where.of_cases}",
                rule=f"--where {data.where.expression}",
                source="set by the user",
                because="the expression is true of their rows in cases.csv",
            )
        )
    return notes


MOST_RESCALED = 1.25
"""Largest ratio of input spacings between the checkpoint and a run that begins from it. Every dataset is planned with a
spacing of its own, and training views vary in scale by a factor of two anyway; more than this is another input."""

_FREE_OF_ENCODER = ("input_shape", "drop_path")
"""Fields of an encoder that `-w` may change: the grid follows the views, stochastic depth has no weights."""


def _require_fit(contract: Contract, settings: RunSettings) -> None:
    """Refuse weights that were trained as another network or on another input than this run's.

    Most tensors of, say, another patch size have the same shapes and would load, with a meaning they never had.
    At a fixed spacing the shape of the input may differ, and the spacing by a quarter.

    Raises:
        ContractError: a field differs; it is named.
    """
    preset = contract.preset
    planned = (
        f"Copy the configuration of {preset} from the plans the checkpoint was trained with into the plans of this"
        " dataset (or into a copy of them for -p), or start from scratch."
    )
    stretched = contract.input.rule == "stretch_to_shape"
    for field in ("rule", "windows", *(("shape",) if stretched else ())):
        require_same(f"input.{field}", getattr(contract.input, field), getattr(settings.input, field), planned)
    theirs, ours = contract.input.spacing_mm, settings.input.spacing_mm
    if not stretched and any(
        not 1 / MOST_RESCALED <= a / b <= MOST_RESCALED for a, b in zip(theirs, ours, strict=True)
    ):
        require_same("input.spacing_mm", theirs, ours, planned)
    network = f"Choose the encoder of the checkpoint (-c {preset}) without --set encoder.*, or start from scratch."
    one, other = contract.encoder.model_dump(mode="json"), settings.encoder.model_dump(mode="json")
    for field in sorted({*one, *other} - set(_FREE_OF_ENCODER), key=lambda name: (name != "family", name)):
        # The size of a token is the plans', everything else the preset's or the user's.
        do = planned if field in ("patch", "strides", "kernels") and preset == settings.config else network
        require_same(f"encoder.{field}", one.get(field), other.get(field), do)


def choose_device(device: str | None, process: Process) -> torch.device:
    """The device of this process; under torchrun one CUDA device each.

    Args:
        device: as given to ``--device``.
        process: this process.

    Raises:
        UsageError: the name is unknown, or there is no such device.
    """
    cuda = torch.cuda.device_count()
    name = device if device is not None else ("cuda" if cuda else "cpu")
    if name == "cuda":
        name = f"cuda:{process.local_rank}"
    known = ["cpu", *(f"cuda:{i}" for i in range(cuda))]
    if name not in known:
        raise UsageError(
            "The device is not there.",
            got=device or name,
            expected=", ".join(known),
            do="Correct --device, or leave it out.",
        )
    target = torch.device(name)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    return target


def run_name(settings: RunSettings, tag: str | None = None) -> str:
    """The folder name of a run: METHOD__CONFIG__PLANS[__dN+M][__TAG].

    Args:
        settings: the run; the numbers of the datasets appear when there are several.
        tag: letters, digits, ``_ . -``.

    Raises:
        UsageError: the tag cannot be part of a folder name.
    """
    return name_of_run(settings.method_name, settings.config, settings.plans_name, settings.dataset_ids, tag)


def name_of_run(method: str, config: str, plans_name: str, dataset_ids: tuple[int, ...], tag: str | None) -> str:
    """As `run_name`, of the parts of the name."""
    parts = [method, config, plans_name]
    if len(dataset_ids) > 1:
        parts.append("d" + "+".join(str(i) for i in dataset_ids))
    if tag is not None:
        if not tag or not all(c.isascii() and (c.isalnum() or c in "_.-") for c in tag):
            raise UsageError(
                "The tag cannot be part of a folder name.",
                got=f"--tag {tag}",
                expected="letters, digits, '_', '.' or '-'",
                do="Choose another tag.",
            )
        parts.append(tag)
    return "__".join(parts)


def as_ids(dataset_ids: Sequence[int] | int) -> tuple[int, ...]:
    """One dataset number or several, as a tuple."""
    return (dataset_ids,) if isinstance(dataset_ids, int) else tuple(dataset_ids)
