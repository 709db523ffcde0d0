"""Prepare: check the call, find the weights, preprocess what is missing, choose cases, derive the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from headctssl.console import say
from headctssl.contract import LabelSpec
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import DataError, UsageError
from headctssl.finetuning.cohort import Cohort, choose_labels, make_cohort
from headctssl.finetuning.derive import Situation, derive_settings
from headctssl.finetuning.settings import Adaptation, FinetuneSettings
from headctssl.finetuning.start import Start, resolve_start
from headctssl.paths import preprocessed_dataset, results_dataset
from headctssl.planning.machine import Machine, detect_machine
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.seeding import derive_seed
from headctssl.settings import parse_overrides, read_json
from headctssl.training.run_folder import first_difference, look_at_run, require_same_settings

__all__ = ["Call", "Job", "prepare"]


@dataclass(frozen=True)
class Call:
    """The arguments of `finetune`; it explains them."""

    dataset_id: int
    weights: str | Path
    config: str | None
    adapt: Adaptation
    few_shots: int | None
    fold: str
    labels: tuple[str, ...] | None
    tag: str | None
    resume: bool
    overwrite: bool
    device: str | None
    num_workers: int | None
    overrides: tuple[str, ...]
    quiet: bool
    repeats: FinetuneSettings | None = None  # what another run was, and this one must be


@dataclass(frozen=True)
class Job:
    """One fine-tuning run, everything decided."""

    raw: RawDataset
    start: Start
    index: CaseIndex
    cohort: Cohort
    settings: FinetuneSettings
    folder: Path
    device: torch.device
    stored: FinetuneSettings | None  # of the run that is continued or repeated


def prepare(call: Call) -> Job:
    """Settle everything of a fine-tuning run before its folder is written.

    Raises:
        HeadCTSSLError: see `finetune`.
    """
    _check(call)
    changes = parse_overrides(call.overrides)
    raw = load_raw_dataset(call.dataset_id)
    specs, left_out = choose_labels(raw.info.labels, call.labels)
    encoder_changes = {k.removeprefix("encoder."): v for k, v in changes.items() if k.startswith("encoder.")}
    start = resolve_start(call.dataset_id, call.weights, call.config, encoder_changes)
    folder = _folder(call, start, specs)
    # Refuse before the work begins.
    look_at_run(folder, resume=call.resume, overwrite=call.overwrite)
    again = "Start the run again with --overwrite."
    # Also without a checkpoint: what was measured of the machine then must not be measured anew.
    known = call.resume and (folder / "config.json").exists()
    stored = read_json(folder / "config.json", FinetuneSettings, do=again) if known else call.repeats
    raw.labels()  # a missing column or a wrong value is told before the work begins
    machine = detect_machine(call.device)
    workers = min(4, max(1, machine.cores - 1)) if call.num_workers is None else call.num_workers
    index = ensure_preprocessed(call.dataset_id, start.storage, quiet=call.quiet, num_workers=call.num_workers)
    splits = load_splits(preprocessed_dataset(call.dataset_id))
    seed = changes.get("training.seed", 0)
    cohort = make_cohort(
        raw,
        splits,
        index.case_ids,
        specs,
        fold=call.fold,
        few_shots=call.few_shots,
        seed=seed if isinstance(seed, int) else 0,
    )
    for sentence in left_out:
        say(sentence, quiet=call.quiet)
    shape = index.subset(cohort.train).shapes.max(axis=0)
    base: dict[str, object] = {
        "dataset_ids": (call.dataset_id,),
        "dataset_name": raw.folder.name,
        "labels": specs,
        "adapt": call.adapt,
        "few_shots": call.few_shots,
        "fold": call.fold,
        "config": start.config,
        "method": start.method,
        "init": start.init,
        "storage": start.storage,
        "input": start.input,
        "encoder": start.encoder,
        "read_shape": tuple(int(n) for n in shape),
        "cases_digest": cohort.digest(index),
        "overrides": tuple(f"{key}={json.dumps(value)}" for key, value in sorted(changes.items())),
    }
    situation = Situation(
        num_train=len(cohort.train),
        num_validation=len(cohort.validation),
        adapt=call.adapt,
        encoder=start.encoder,
        pretrained=start.pretrained,
        small_profile=raw.info.profile != "real",
        precision="float32" if call.adapt == "linear" else _precision(machine, stored),
        num_workers=workers,
    )
    settings = derive_settings(base, situation, changes)
    if call.repeats is not None:
        _require_repeated(call.repeats, settings)
    elif stored is not None:
        _require_same(folder, stored, settings)
    return Job(raw, start, index, cohort, settings, folder, torch.device(machine.device), stored)


def _precision(machine: Machine, stored: FinetuneSettings | None) -> Literal["bf16", "fp16", "float32"]:
    """The machine's; a continued run keeps its own, since the machine may be another one now."""
    if stored is not None:
        return stored.training.precision
    return "bf16" if machine.bf16 else "float32"


def _require_same(folder: Path, stored: FinetuneSettings, settings: FinetuneSettings) -> None:
    """Refuse to go on with other settings or cases. The seed draws few shots, so it is named before the cases."""
    if stored.cases_digest != settings.cases_digest and stored.training.seed == settings.training.seed:
        raise UsageError(
            f"The run {folder.parent.name}/{folder.name} was started with other cases, labels or splits.",
            got=f"{settings.num_train} training and {settings.num_validation} validation cases",
            expected=f"{stored.num_train} and {stored.num_validation}, with the sources and labels they had",
            do="Start a new run with --tag, or replace it with --overwrite.",
        )
    require_same_settings(folder, stored.of_run(), settings.of_run())


def _require_repeated(wanted: FinetuneSettings, settings: FinetuneSettings) -> None:
    """Refuse to repeat a run where the same call gives other settings now, since the data are others."""
    found = first_difference(wanted.of_run(), settings.of_run())
    if found is not None:
        field, expected, got = found
        raise DataError(
            f"The run cannot be repeated: '{field}' would not be what it was.",
            got=got,
            expected=expected,
            do="Bring the dataset, its labels and splits back to that state, or start a new run with headct_finetune.",
        )


def _check(call: Call) -> None:
    if call.adapt not in ("full", "linear"):
        raise UsageError("The adaptation is unknown.", got=call.adapt, expected="full or linear", do="Correct --adapt.")
    if call.few_shots is not None and call.few_shots < 1:
        raise UsageError(
            "Few shots needs a number of patients.", got=call.few_shots, expected="1 or more", do="Correct --few_shots."
        )
    if call.num_workers is not None and call.num_workers < 0:
        raise UsageError(
            "There cannot be fewer than no reader processes.",
            got=call.num_workers,
            expected="0 or more",
            do="Correct --num_workers.",
        )
    if call.fold != "all" and not call.fold.isdecimal():
        raise UsageError("The fold is unknown.", got=call.fold, expected="a number or 'all'", do="Correct -f.")
    if call.tag is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", call.tag):
        raise UsageError(
            "The tag cannot be part of a folder name.",
            got=call.tag,
            expected="letters, digits, '_', '.', '-'",
            do="Choose another --tag.",
        )


def _folder(call: Call, start: Start, specs: Sequence[LabelSpec]) -> Path:
    """``finetune/TASK__ADAPT__INIT[__TAG]/fold_K``."""
    task = "all-labels" if call.labels is None else _joined([spec.name for spec in specs])
    if call.few_shots is not None:
        task += f"-{call.few_shots}shots"
    name = "__".join([task, call.adapt, start.name, *([call.tag] if call.tag else [])])
    return results_dataset(call.dataset_id) / "finetune" / name / f"fold_{call.fold}"


def _joined(names: Sequence[str]) -> str:
    """Label names as part of a folder name; long lists are cut and told apart by a hash."""
    text = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", name) for name in names)
    if len(text) <= 40:
        return text
    return f"{text[:28].rstrip('-')}-and-more-{derive_seed(*names) % 16**6:06x}"
