"""Pretrain: plans and stored cases in, a run folder with an encoder out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from headctssl.console import name_files, say
from headctssl.contract import Contract
from headctssl.methods.method import Method
from headctssl.paths import results_dataset
from headctssl.planning.resolve import print_decisions
from headctssl.planning.run_settings import RunSettings
from headctssl.settings import write_json
from headctssl.training.checkpoint import WEIGHTS_FILES
from headctssl.training.distributed import (
    Process,
    barrier,
    check_division,
    current_process,
    processes,
    settle,
)
from headctssl.training.environment import data_digest, describe_environment
from headctssl.training.pretrain_call import PretrainCall, Request, as_ids, choose_device, open_call, run_name
from headctssl.training.pretrain_parts import Built, build_learner, make_trainer
from headctssl.training.pretrain_watch import watch, write_encoder
from headctssl.training.room import needing_room
from headctssl.training.run_folder import look_at_run, open_run_folder
from headctssl.training.run_log import RunLog
from headctssl.training.signals import stop_at_once
from headctssl.training.slurm_job import note_job
from headctssl.training.stored_run import (
    continued_settings,
    read_run_settings,
    require_same_cases,
    settings_of_weights,
    write_cases,
)
from headctssl.training.trackers import check_trackers

__all__ = ["pretrain", "run_pretraining"]


def pretrain(
    dataset_ids: Sequence[int] | int,
    method: str,
    *,
    config: str | None = None,
    plans_name: str = "plans",
    init: Path | str | None = None,
    tag: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    pretrain_on: Literal["train", "all"] = "train",
    where: str | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    overrides: Sequence[str] = (),
    track: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Train an encoder without labels; the command is ``headct_pretrain``.

    Under ``torchrun -m headctssl pretrain ...`` every process calls this; the main one writes.

    Args:
        dataset_ids: one or several planned and preprocessed datasets; the first one's plans hold.
        method: name of the objective, see `list_methods`.
        config: encoder preset; chosen for the data and the machine when None.
        plans_name: which plans, ``-p``.
        init: weights to begin from, ``-w``; random when None or ``"scratch"``.
        tag: appended to the name of the run.
        resume: go on from the run's checkpoint, ``--continue``.
        overwrite: replace an existing run.
        pretrain_on: ``all`` uses the test cases of splits.json too.
        where: an expression over the columns of cases.csv; only cases it is true of are taken, ``--where``.
        device: ``cpu``, ``cuda``, ``cuda:1``; CUDA where there is one when None.
        num_workers: reader processes.
        overrides: ``section.key=value`` texts, ``--set``.
        track: trackers that get the lines of metrics.jsonl too, ``wandb``, ``mlflow``; none can stop the run.
        quiet: print errors only.

    Returns:
        The run folder.

    Raises:
        UsageError: the call does not fit: names, settings, an existing run.
        DataError: a dataset was not planned or preprocessed, or a case cannot be read.
        ContractError: the datasets or the weights do not fit each other.
        TrainingError: the loss was not finite ten times in a row.
        StoppedError: a signal came; go on with `resume`.
    """
    request = Request(
        as_ids(dataset_ids), method, config, plans_name, init, pretrain_on, num_workers, tuple(overrides), where
    )
    return run_pretraining(
        request, tag=tag, resume=resume, overwrite=overwrite, device=device, track=track, quiet=quiet
    )


def run_pretraining(
    request: Request,
    *,
    tag: str | None,
    resume: bool,
    overwrite: bool,
    device: str | None,
    track: Sequence[str],
    quiet: bool,
    settings: RunSettings | None = None,
) -> Path:
    """Carry out a request; the other arguments are those of `pretrain`.

    Args:
        settings: those of the run that is to be repeated; resolved from the request when None.

    Raises:
        HeadCTSSLError: as `pretrain`.
    """
    check_trackers(track)
    target = choose_device(device, current_process())
    with processes(target) as process, stop_at_once() as advice:
        quiet = quiet or not process.is_main
        begun: list[tuple[PretrainCall, Built]] = []

        def begin() -> tuple[RunSettings, Path, bool]:
            call = open_call(request, target, process, settings=settings)
            call, folder, going_on = _choose_run(call, tag, resume=resume, overwrite=overwrite)
            # Everything that can be wrong with the call shows before an old run is removed.
            check_division(call.settings.training, target, process, coupled=call.method.batch_coupled)
            begun.append((call, build_learner(call)))
            open_run_folder(folder, resume=resume, overwrite=overwrite)
            advice.begun()
            if resume and not going_on:
                say(f"--continue: the run {folder.name} has no checkpoint yet, so it starts fresh", quiet=quiet)
            _begin(call, folder, quiet=quiet)
            return call.settings, folder, going_on

        agreed, folder, going_on = settle(begin, process)
        advice.begun()
        if not process.is_main:
            call = open_call(request, target, process, settings=agreed)
            begun.append((call, build_learner(call)))
        call, built = begun[0]
        _train(call, built, folder, going_on=going_on, device=target, process=process, quiet=quiet, track=track)
        barrier(process)
    name_files(sorted(path for path in folder.iterdir() if path.is_file()), quiet=quiet)
    return Path(folder)


def _choose_run(
    call: PretrainCall, tag: str | None, *, resume: bool, overwrite: bool
) -> tuple[PretrainCall, Path, bool]:
    """The call with the settings that hold, the run folder, and whether there is a checkpoint to go on from."""
    folder = results_dataset(call.settings.dataset_ids[0]) / "pretrain" / run_name(call.settings, tag)
    going_on = look_at_run(folder, resume=resume, overwrite=overwrite)
    if resume and (folder / "config.json").exists():
        # Also without a checkpoint: what was measured of the machine then must not be measured anew.
        stored = read_run_settings(folder / "config.json", call.method.Settings)
        call = call.with_settings(continued_settings(folder, stored, call.settings))
        require_same_cases(folder, call.data)
    return call, folder, going_on


def _begin(call: PretrainCall, folder: Path, *, quiet: bool) -> None:
    """Write what is known before the first step, and say what was decided."""
    with needing_room(f"What is known of the run {folder.name} before its first step", folder):
        note_job(folder)
        write_cases(folder, call.data)
        write_json(folder / "config.json", call.settings)
    print_decisions(call.settings, quiet=quiet)


def _train(
    call: PretrainCall,
    built: Built,
    folder: Path,
    *,
    going_on: bool,
    device: torch.device,
    process: Process,
    quiet: bool,
    track: Sequence[str],
) -> None:
    settings, training = call.settings, call.settings.training
    learner, report = built
    shared = json.loads(settings_of_weights(settings))
    log = RunLog(folder, enabled=process.is_main, quiet=quiet, track=track, settings=shared)
    trainer = make_trainer(call, learner, folder, log, device, process)
    if going_on:
        trainer.resume()
    if process.is_main and trainer.step < training.num_steps:  # else no step is taken here
        data = data_digest(settings.storage, call.data.digest)
        environment = describe_environment(device, data=data, processes=process.world_size)
        with needing_room(f"environment.json of the run {folder.name}", folder):
            write_json(folder / "environment.json", environment)
    log.open(trainer.step)
    watch(trainer, call, folder, learner, log)
    try:
        log.say(
            f"{settings.method_name} with {settings.config}: {call.data.num_cases} scans, step {trainer.step} of "
            f"{training.num_steps}, batch {training.batch_size}, {training.precision} on {device}"
        )
        if report is not None and not going_on:
            log.say(report.summary)
        trainer.run()
        if process.is_main:
            contract = _export(call, folder, learner)
            log.say(f"exported {WEIGHTS_FILES['encoder']}, hash {contract.weights_hash[:16]}")
    finally:
        log.close()


def _export(call: PretrainCall, folder: Path, learner: Method) -> Contract:
    """Write encoder.safetensors (the last step) and contract.json."""
    written = write_encoder(call, folder / WEIGHTS_FILES["encoder"], learner)
    with needing_room(f"contract.json of the run {folder.name}", folder):
        write_json(folder / "contract.json", written)
    return written
