"""Replay: one step of a pretraining run again, as it was, to see what made its loss or gradient not finite."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headctssl.errors import DataError, TrainingError, UsageError
from headctssl.methods import method_class
from headctssl.planning.run_settings import RunSettings
from headctssl.training.distributed import Process
from headctssl.training.pretrain_call import PretrainCall, Request, choose_device, open_call
from headctssl.training.pretrain_parts import build_learner, make_batches, make_trainer
from headctssl.training.reproduce import find_weights_of
from headctssl.training.run_log import RunLog
from headctssl.training.run_state import CHECKPOINT_FILE, REWIND_FILE, load_checkpoint
from headctssl.training.stored_run import read_run_settings, require_same_cases
from headctssl.types import PretrainBatch

__all__ = ["Replay", "replay"]


@dataclass(frozen=True)
class Replay:
    """A step of a run, taken again."""

    step: int  # counted from 0, as in train.log
    began_at: int  # the step of the checkpoint that the steps before it were repeated from; 0: the first weights
    losses: tuple[float, ...]  # per forward pass
    gradient_norm: float  # before clipping
    case_ids: tuple[str, ...]  # in the order of the batch
    batches: tuple[PretrainBatch, ...]  # as read, one per forward pass

    @property
    def finite(self) -> bool:
        """Whether the step was one that a run takes."""
        return all(math.isfinite(number) for number in (*self.losses, self.gradient_norm))


def replay(run: Path | str, step: int, *, device: str | None = None) -> Replay:
    """Repeat a step of a pretraining run with the weights, views and random numbers it had.

    The steps from the run's checkpoint on (from the beginning where that lies later) are taken again on a copy, so the
    run folder is not changed. On a CPU with as many threads the numbers are bit for bit those of the run in one
    process.

    Args:
        run: the run folder.
        step: the step, from 0, as train.log names it.
        device: 'cpu', 'cuda', 'cuda:1'; found when None.

    Raises:
        UsageError: the run has no such step, its cases are not what they were, or the weights it began from are not
            found.
        DataError: a file of the run cannot be read.
        TrainingError: the run did not get as far as this step.
    """
    folder = Path(run)
    call = _open(folder)
    if not 0 <= step < call.settings.training.num_steps:
        raise UsageError(
            f"The run {folder.name} has no such step.",
            got=step,
            expected=f"0 to {call.settings.training.num_steps - 1}",
            do="Take the number from train.log.",
        )
    shown: list[PretrainBatch] = []
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        trainer = make_trainer(
            call, build_learner(call)[0], copy, RunLog(copy, enabled=False), choose_device(device, Process()), Process()
        )

        def batches(start: int) -> Iterator[PretrainBatch]:
            for batch in make_batches(call, Process(), start):
                shown.append(batch)
                del shown[: -call.settings.training.accumulation]
                yield batch

        trainer.make_batches = batches
        trainer.monitor = None
        latest = folder / CHECKPOINT_FILE
        if latest.exists() and load_checkpoint(latest)["step"] <= step:
            for file in (latest, folder / REWIND_FILE):
                if file.exists():
                    shutil.copyfile(file, copy / file.name)
            trainer.resume()
        began_at = trainer.step
        try:
            trainer.run(until=step + 1)
        except TrainingError:
            if trainer.step != step + 1:
                raise
    losses, norm = trainer.last
    indexes = [index for batch in shown for index in batch.case_index.tolist()]
    case_ids = [case_id for index in call.data.indexes for case_id in index.case_ids]
    return Replay(
        step, began_at, tuple(losses.tolist()), float(norm), tuple(case_ids[i] for i in indexes), tuple(shown)
    )


def _open(folder: Path) -> PretrainCall:
    """The call of a run, from its own files."""
    try:
        method = method_class(str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["method_name"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder.name} is not the folder of a pretraining run.",
            got=f"{type(error).__name__} for config.json",
            expected="a folder that headct_pretrain wrote",
            do="Name the run folder.",
        ) from None
    settings = read_run_settings(folder / "config.json", method.Settings)
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"num_workers": 0})})
    call = open_call(_request(settings), choose_device("cpu", Process()), Process(), settings=settings)
    require_same_cases(folder, call.data)
    return call


def _request(settings: RunSettings) -> Request:
    return Request(
        dataset_ids=settings.dataset_ids,
        method=settings.method_name,
        config=settings.config,
        plans_name=settings.plans_name,
        init=find_weights_of(settings.init, None),
        pretrain_on=settings.pretrain_on,
        num_workers=None,
        overrides=settings.overrides,
        where=None if settings.where is None else settings.where.expression,
    )
