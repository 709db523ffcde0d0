"""Finetune: a classifier from a pretrained encoder or from scratch, with its predictions and metrics."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headctssl.console import name_files, say, table
from headctssl.finetuning.asked import check_processes
from headctssl.finetuning.cohort import value_counts
from headctssl.finetuning.leakage import write_used_cases
from headctssl.finetuning.prepare import Call, Job, prepare
from headctssl.finetuning.series import Asked, Shots, expand, is_done, number_of
from headctssl.finetuning.settings import Adaptation
from headctssl.finetuning.sum_up import sum_up
from headctssl.finetuning.tasks import Classifier
from headctssl.finetuning.train import build_classifier, train
from headctssl.settings import write_json
from headctssl.training.deterministic import deterministic_mode
from headctssl.training.distributed import (
    Process,
    barrier,
    check_division,
    current_process,
    processes,
    settle,
)
from headctssl.training.environment import data_digest, describe_environment
from headctssl.training.pretrain_call import choose_device
from headctssl.training.run_folder import open_run_folder
from headctssl.training.run_log import RunLog
from headctssl.training.signals import stop_at_once
from headctssl.training.trackers import check_trackers

__all__ = ["finetune", "run_finetuning", "run_series"]


def finetune(
    dataset_id: int,
    weights: str | Path,
    *,
    config: str | None = None,
    adapt: Adaptation = "full",
    few_shots: Shots | Sequence[Shots] = None,
    all_negatives: bool = False,
    draw: int = 0,
    draws: int = 1,
    fold: str | int | Sequence[str | int] = "0",
    labels: Sequence[str] | None = None,
    tag: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    num_workers: int | None = None,
    overrides: Sequence[str] = (),
    track: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Train a classifier of the dataset's labels.

    The checkpoint's contract decides how the dataset is preprocessed and fed; where that is missing it is
    made first. Unknown labels are left out of the loss. The epoch with the best mean validation score is kept;
    the test cases are predicted once, at the end. Under ``torchrun -m headctssl finetune ...`` the processes share
    out every batch and the cases that are judged; the main one writes.

    Several folds, draws or numbers of shots are run one after the other; finished ones are kept with `resume`.

    Args:
        dataset_id: the number of the raw dataset.
        weights: an encoder's weights file or run folder, or 'scratch'.
        config: the encoder preset, for 'scratch'.
        adapt: 'full' trains the whole network, 'lora' low-rank adapters and a head, 'linear' a linear head on features
            of the frozen encoder, 'attentive' attentive pooling of its tokens.
        few_shots: K patients per class of every label, or several K; all training cases when None or 'all'.
        all_negatives: with `few_shots`, K positive and all negative patients.
        draw: number of the first few-shot draw; the same patients whatever encoder, adaptation or seed.
        draws: how many draws.
        fold: folds of splits.json, 'all' for all of them in turn, or 'none' for one classifier of every case outside
            the test set, without validation.
        labels: label names; all labels when None.
        tag: added to the name of the run.
        resume: go on from the run's checkpoint (`--continue`).
        overwrite: replace an existing run.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.
        num_workers: reader processes; found when None.
        overrides: ``section.key=value`` of `FinetuneSettings` (`--set`).
        track: trackers that get the lines of metrics.jsonl too, ``wandb``, ``mlflow``; none can stop the run.
        quiet: print nothing.

    Returns:
        Of one run the folder of its fold, with classifier.safetensors, predictions.csv and metrics.json. Of several
        the folder of the task; of several numbers of shots that of the learning curve.

    Raises:
        HeadCTSSLError: the call, the dataset, the checkpoint or the run cannot be used; the message says why.
    """
    call = Call(
        dataset_id=dataset_id,
        weights=weights,
        config=config,
        adapt=adapt,
        few_shots=None,
        fold="0",
        labels=None if labels is None else tuple(labels),
        tag=tag,
        resume=resume,
        overwrite=overwrite,
        device=device,
        num_workers=num_workers,
        overrides=tuple(overrides),
        quiet=quiet,
        negatives="all" if all_negatives else "same",
        draw=draw,
    )
    shots = (few_shots,) if few_shots is None or isinstance(few_shots, int | str) else tuple(few_shots)
    folds = (str(fold),) if isinstance(fold, int | str) else tuple(str(one) for one in fold)
    asked = Asked(shots, draws, folds)
    if asked.single:
        return run_finetuning(replace(call, few_shots=number_of(shots[0]), fold=folds[0]), track)
    return run_series(call, asked, track)


def run_series(call: Call, asked: Asked, track: Sequence[str]) -> Path:
    """Carry out several runs of one call in turn.

    Returns:
        The folder of what they are together.

    Raises:
        HeadCTSSLError: as `finetune`.
    """
    target = choose_device(call.device, current_process())
    with processes(target) as process, stop_at_once() as advice:
        call = replace(call, quiet=call.quiet or not process.is_main)
        calls = settle(lambda: expand(call, asked), process)
        if not call.overwrite:  # else --continue would take the old runs that have not had their turn for new ones
            advice.begun()
        for number, one in enumerate(calls, start=1):
            what = f"fold {one.fold}" + (f", {one.few.name}, draw {one.draw}" if one.few else "")
            done = settle(functools.partial(is_done, one), process)
            say(f"run {number} of {len(calls)}: {what}{' is done' if done else ''}", quiet=call.quiet)
            run_finetuning(one, track)
        barrier(process)
        return settle(lambda: sum_up(calls, quiet=call.quiet), process)


def run_finetuning(call: Call, track: Sequence[str]) -> Path:
    """Carry out a call of `finetune`.

    Raises:
        HeadCTSSLError: as `finetune`.
    """
    check_trackers(track)
    target = choose_device(call.device, current_process())
    with processes(target) as process, stop_at_once() as advice:
        call = replace(call, device=str(target), quiet=call.quiet or not process.is_main)
        begun: list[tuple[Classifier, str]] = []

        def begin() -> tuple[Job, bool]:
            job = prepare(call)
            # Everything that can be wrong with the call shows before an old run is removed.
            check_division(job.settings.training, target, process, coupled=False)
            check_processes(job.settings, process.world_size)
            begun.append(build_classifier(job))
            going_on = open_run_folder(job.folder, resume=call.resume, overwrite=call.overwrite)
            advice.begun()
            _begin(call, job, process)
            return job, going_on

        if call.reuse and settle(functools.partial(is_done, call), process):
            return settle(lambda: prepare(call), process).folder  # what it was decided to be is compared
        job, going_on = settle(begin, process)
        advice.begun()
        classifier, loaded = begun[0] if process.is_main else build_classifier(job)
        log = RunLog(
            job.folder, enabled=process.is_main, quiet=call.quiet, track=track, settings=job.settings.shareable()
        )
        try:
            if call.resume and not going_on:
                log.say("there is no checkpoint to go on from: starting from the beginning")
            _tell(job, log)
            log.say(loaded)
            with deterministic_mode(job.settings.training.deterministic):
                train(replace(job, device=target), classifier, log, process, going_on=going_on)
        finally:
            log.close()
        barrier(process)
    name_files(sorted(path for path in job.folder.iterdir() if path.is_file()), quiet=call.quiet)
    return job.folder


def _begin(call: Call, job: Job, process: Process) -> None:
    """Write what is known before the first step."""
    write_json(job.folder / "config.json", job.settings)
    data = data_digest(job.settings.storage, job.settings.cases_digest)
    environment = describe_environment(job.device, data=data, processes=process.world_size)
    write_json(job.folder / "environment.json", environment)
    parts = {"train": job.cohort.train, "val": job.cohort.validation}
    write_used_cases(job.folder, call.dataset_id, parts, job.index)


def _tell(job: Job, log: RunLog) -> None:
    """Print and log what was decided and what is learnt from."""
    settings, cohort = job.settings, job.cohort
    log.say(f"fine-tuning ({settings.adapt}) {settings.config} from {job.start.name}, fold {settings.fold}")
    for number, decision in enumerate(settings.decisions, start=1):
        because = f"; {decision.because}" if decision.because else ""
        log.say(f"{number}. {decision.what}: {decision.value}  [{decision.rule}; {decision.source}{because}]")
    parts = {"training": cohort.train, "validation": cohort.validation, "test": cohort.test}
    rows = [
        (spec.name, *(value_counts(spec, cohort.labels(case_ids)[:, column]) for case_ids in parts.values()))
        for column, spec in enumerate(cohort.specs)
    ]
    heads = [f"{name} ({len(ids)})" for name, ids in parts.items()]
    others = any(spec.type != "binary" for spec in cohort.specs)
    what = ", or of each class, or mean ± deviation" if others else ""
    table(f"cases with the label positive/negative/unknown{what}", ["label", *heads], rows, quiet=log.quiet)
    for note in cohort.notes:
        log.say(f"note: {note}")
