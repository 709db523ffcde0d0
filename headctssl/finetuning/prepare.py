"""Prepare: check the call, find the weights, preprocess what is missing, choose cases, derive the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from headctssl.contract import LabelSpec
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import DataError, UsageError, unknown_name
from headctssl.finetuning.asked import by_study, check_studies
from headctssl.finetuning.balance import sampling_weights
from headctssl.finetuning.cohort import NO_FOLD, Cohort, choose_labels, make_cohort
from headctssl.finetuning.derive import Situation, derive_settings
from headctssl.finetuning.few_shot import FewShots, Negatives
from headctssl.finetuning.label_loss import standardised
from headctssl.finetuning.labelled import Labelled, labelled_scans, labelled_studies
from headctssl.finetuning.settings import Adaptation, FinetuneSettings
from headctssl.finetuning.start import Start, resolve_start
from headctssl.paths import preprocessed_dataset, results_dataset
from headctssl.planning.machine import Machine, detect_machine
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.seeding import derive_seed
from headctssl.settings import parse_overrides, read_json
from headctssl.training.run_folder import first_difference, is_finished, look_at_run, require_same_settings

__all__ = ["Call", "Job", "Place", "locate", "prepare", "run_folder", "task_folder"]


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
    negatives: Negatives = "same"
    draw: int = 0
    reuse: bool = False  # a finished run of the same settings is the answer, an unfinished one is gone on with
    repeats: FinetuneSettings | None = None  # what another run was, and this one must be

    @property
    def few(self) -> FewShots | None:
        """How few patients are learnt from; None: all."""
        return None if self.few_shots is None else FewShots(self.few_shots, self.draw, self.negatives)


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

    @property
    def by_study(self) -> bool:
        """Whether the scans of a study are learnt from and judged together."""
        return self.settings.head.scans == "attention"

    def labelled(self, case_ids: Sequence[str]) -> Labelled:
        """Cases as they are learnt from or judged, scan by scan or by study."""
        label = labelled_studies if self.by_study else labelled_scans
        return label(self.cohort, self.index.subset(case_ids))


@dataclass(frozen=True)
class Place:
    """What the arguments alone decide."""

    raw: RawDataset
    specs: tuple[LabelSpec, ...]
    start: Start
    folder: Path


def locate(call: Call) -> Place:
    """Open the dataset and the weights, and name the folder of the run.

    Raises:
        HeadCTSSLError: see `finetune`.
    """
    _check(call)
    raw = load_raw_dataset(call.dataset_id)
    specs = choose_labels(raw.info.labels, call.labels)
    changes = parse_overrides(call.overrides)
    encoder_changes = {k.removeprefix("encoder."): v for k, v in changes.items() if k.startswith("encoder.")}
    start = resolve_start(call.dataset_id, call.weights, call.config, encoder_changes)
    return Place(raw, specs, start, run_folder(call, start, specs))


def prepare(call: Call) -> Job:
    """Settle everything of a fine-tuning run before its folder is written.

    Raises:
        HeadCTSSLError: see `finetune`.
    """
    _check(call)
    changes = parse_overrides(call.overrides)
    if by_study(changes) and call.few_shots is not None:
        raise UsageError(
            "A few-shot draw takes one scan of each patient: there are no scans of a study to weigh.",
            got=f"--few_shots {call.few_shots} with head.scans=attention",
            expected="one of them",
            do="Remove --few_shots, or remove head.scans and bring scans together with --aggregate mean or max.",
        )
    place = locate(call)
    raw, specs, start, folder = place.raw, place.specs, place.start, place.folder
    # Refuse before the work begins.
    if not (call.reuse and is_finished(folder)):
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
    studies = by_study(changes)
    cohort = make_cohort(raw, splits, index.case_ids, specs, fold=call.fold, few_shots=call.few, by_study=studies)
    learnt = _labelled(cohort, index, studies)
    specs = standardised(specs, cohort.labels(cohort.train) if learnt.studies is None else learnt.labels)
    shape = index.subset(cohort.train).shapes.max(axis=0)
    base: dict[str, object] = {
        "dataset_ids": (call.dataset_id,),
        "dataset_name": raw.folder.name,
        "labels": specs,
        "adapt": call.adapt,
        "few_shots": call.few_shots,
        "few_shot_negatives": call.negatives,
        "draw": call.draw,
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
        small_profile=raw.info.synthetic,
        precision="float32" if call.adapt in ("linear", "attentive") else _precision(machine, stored),
        num_workers=workers,
        num_studies=len(learnt) if studies else None,
    )
    settings = derive_settings(base, situation, changes)
    _check_balance(settings, cohort, learnt)
    if call.repeats is not None:
        _require_repeated(call.repeats, settings)
    elif stored is not None:
        _require_same(folder, stored, settings)
    return Job(raw, start, index, cohort, settings, folder, torch.device(machine.device), stored)


def _labelled(cohort: Cohort, index: CaseIndex, studies: bool) -> Labelled:
    """What is learnt from."""
    train = index.subset(cohort.train)
    if not studies:
        return labelled_scans(cohort, train)
    found = labelled_studies(cohort, train)
    check_studies([len(rows) for rows in found.studies or ()])
    return found


def _check_balance(settings: FinetuneSettings, cohort: Cohort, learnt: Labelled) -> None:
    """Refuse to balance by sampling where there is nothing to balance."""
    if settings.task.balance != "sampling":
        return
    if sampling_weights(learnt.labels, cohort.specs, cohort.subjects(learnt.first_scans)) is None:
        raise UsageError(
            "There is no label whose classes could be drawn equally often.",
            got="task.balance=sampling with " + ", ".join(f"{s.name} ({s.type})" for s in cohort.specs),
            expected="a label with classes, two of them among the training cases",
            do="Leave out task.balance, or choose other labels with --labels.",
        )


def _precision(machine: Machine, stored: FinetuneSettings | None) -> Literal["bf16", "fp16", "float32"]:
    """The machine's; a continued run keeps its own, since the machine may be another one now."""
    if stored is not None:
        return stored.training.precision
    return "bf16" if machine.bf16 else "float32"


def _require_same(folder: Path, stored: FinetuneSettings, settings: FinetuneSettings) -> None:
    """Refuse to go on with other settings or cases."""
    if stored.cases_digest != settings.cases_digest:
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
    if call.adapt not in get_args(Adaptation):
        raise unknown_name("adaptation", call.adapt, get_args(Adaptation))
    if call.few_shots is not None and call.few_shots < 1:
        raise UsageError(
            "Few shots needs a number of patients.", got=call.few_shots, expected="1 or more", do="Correct --few_shots."
        )
    if call.few_shots is None and (call.draw or call.negatives != "same"):
        raise UsageError(
            "Draws and negatives belong to few shots.",
            got=f"draw {call.draw}, negatives '{call.negatives}', without --few_shots",
            expected="--few_shots K",
            do="Add --few_shots, or remove --draw, --draws and --all_negatives.",
        )
    if call.draw < 0:
        raise UsageError("There is no such draw.", got=call.draw, expected="0 or more", do="Correct --draw.")
    if call.num_workers is not None and call.num_workers < 0:
        raise UsageError(
            "There cannot be fewer than no reader processes.",
            got=call.num_workers,
            expected="0 or more",
            do="Correct --num_workers.",
        )
    if call.fold != NO_FOLD and not call.fold.isdecimal():
        raise UsageError("The fold is unknown.", got=call.fold, expected=f"a number or '{NO_FOLD}'", do="Correct -f.")
    if call.tag is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", call.tag):
        raise UsageError(
            "The tag cannot be part of a folder name.",
            got=call.tag,
            expected="letters, digits, '_', '.', '-'",
            do="Choose another --tag.",
        )


def task_folder(call: Call, start: Start, specs: Sequence[LabelSpec]) -> Path:
    """``finetune/TASK__ADAPT__INIT[__TAG]``."""
    task = "all-labels" if call.labels is None else _joined([spec.name for spec in specs])
    if call.few is not None:
        task += f"-{call.few.name}"
    name = "__".join([task, call.adapt, start.name, *([call.tag] if call.tag else [])])
    return results_dataset(call.dataset_id) / "finetune" / name


def run_folder(call: Call, start: Start, specs: Sequence[LabelSpec]) -> Path:
    """``TASK_FOLDER/fold_K``; draws after the first lie in ``TASK_FOLDER/draw_D/fold_K``."""
    task = task_folder(call, start, specs)
    return (task / f"draw_{call.draw}" if call.draw else task) / f"fold_{call.fold}"


def _joined(names: Sequence[str]) -> str:
    """Label names as part of a folder name; long lists are cut and told apart by a hash."""
    text = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", name) for name in names)
    if len(text) <= 40:
        return text
    return f"{text[:28].rstrip('-')}-and-more-{derive_seed(*names) % 16**6:06x}"
