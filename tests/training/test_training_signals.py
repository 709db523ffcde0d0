"""Signals: one that comes outside of the training steps ends the run there, whatever the code there catches."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from together import command as run_command
from together import together
from training_helpers import TINY, make_labels

from headctssl.errors import StoppedError, TrainingError
from headctssl.plugins import Plugin, left_out_when_broken
from headctssl.training import tracking
from headctssl.training.distributed import processes, settle
from headctssl.training.run_state import CHECKPOINT_FILE
from headctssl.training.signals import hold_signals, stop_at_once

Command = Callable[..., tuple[int, str, str]]
CALL = ("pretrain", "-d", 1, "-m", "dino", "-c", "vit_test", "--device", "cpu", "--quiet")
SETS = tuple(word for text in TINY for word in ("--set", text))


def signalled(work: Callable[..., object], number: signal.Signals = signal.SIGTERM) -> Callable[..., object]:
    """The work, with a signal to this process at its beginning."""

    def run(*arguments: object, **named: object) -> object:
        signal.raise_signal(number)
        return work(*arguments, **named)

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_passes_what_catches_errors(number: signal.Signals) -> None:
    before, passed = signal.getsignal(number), []

    def work() -> None:
        with stop_at_once(), left_out_when_broken(Plugin("name", "package:Name", "package")):
            try:
                signal.raise_signal(number)
            except Exception as error:
                passed.append(error)
            passed.append("the block went on")

    with pytest.raises(StoppedError, match=f"stopped by {number.name} outside of its training steps"):
        work()
    assert passed == []
    assert signal.getsignal(number) is before


def test_a_signal_that_is_held_counts_after_the_block() -> None:
    done: list[str] = []

    def work() -> None:
        with stop_at_once():
            with hold_signals():
                signal.raise_signal(signal.SIGTERM)
                done.append("the block to its end")
            done.append("what comes after it")

    with pytest.raises(StoppedError, match="SIGTERM"):
        work()
    assert done == ["the block to its end"]


@pytest.mark.parametrize("place", ["the checkpoint is read", "labels are read"])
def test_a_signal_before_the_steps_is_no_fault_of_what_is_read(
    place: str, dataset: Path, roots: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_labels(roots / "raw")
    more: tuple[str, ...] = ()
    if place == "the checkpoint is read":
        code, _, err = command(*CALL, *SETS)
        assert code == 0, err
        more = ("--continue",)
        monkeypatch.setattr(torch, "load", signalled(torch.load))
    else:
        name = "headctssl.training.probe_cases.load_raw_dataset"
        monkeypatch.setattr(name, signalled(lambda dataset_id: None))
    code, _, err = command(*CALL, *SETS, *more)
    assert code == 75, err
    assert "stopped by SIGTERM" in err
    assert "cannot be read" not in err


def test_what_to_do_after_a_stop_depends_on_whether_the_old_run_is_still_there(
    dataset: Path, roots: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --continue the old run would be gone on with, as if it were the new one."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    folder = roots / "results" / dataset.name / "pretrain" / "dino__vit_test__plans"
    folder.mkdir(parents=True)
    (folder / "old.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr("headctssl.training.pretrain.build_learner", signalled(lambda call: None))
        code, _, err = command(*CALL, *SETS, "--overwrite")
    assert (code, [path.name for path in folder.iterdir()]) == (75, ["old.txt"])
    assert "do:       Start the same command again.\n" in err
    monkeypatch.setattr("headctssl.training.pretrain.make_trainer", signalled(lambda *_: None))
    code, _, err = command(*CALL, *SETS, "--overwrite")
    assert code == 75
    assert "with --continue (instead of --overwrite, where that was given)" in err
    assert (folder / "slurm_job.txt").read_text() == "12\n"
    assert not (folder / "old.txt").exists()


def test_a_signal_while_a_tracker_is_loaded_is_no_fault_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def load(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(tracking, "open_tracker", lambda name: Slow())
    with pytest.raises(StoppedError), stop_at_once():
        tracking.Tracking(["slow"], tmp_path, {})


def told_of_a_stop(to_all: bool) -> list[str]:
    """What a process hears when the main one is stopped in what it does alone, and whether all can still talk."""
    heard = []
    with processes(torch.device("cpu")) as process:

        def work() -> None:
            time.sleep(1)
            signal.raise_signal(signal.SIGUSR1)

        if to_all and not process.is_main:  # while it waits for the main one
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        try:
            with stop_at_once():
                settle(work, process)
        except StoppedError as error:
            heard.append(error.what)
        heard.append(settle(lambda: "together", process))
    return heard


@pytest.mark.parametrize("to_all", [False, True])
def test_every_process_leaves_what_the_main_one_was_stopped_in(to_all: bool) -> None:
    what = "The run was stopped by SIGUSR1 outside of its training steps."
    assert together(told_of_a_stop, to_all) == [[what, "together"]] * 2


def stopped_in_a_step(checkpoint: str, fails: bool) -> tuple[int, str, bool]:
    """Train in this process and others until a signal to all; code, stderr, and whether the checkpoint was there then.

    Writing the checkpoint takes long.
    """
    from headctssl.methods.dino.dino import Dino
    from headctssl.training import run_state

    write = run_state.save_checkpoint

    def write_slowly(path: Path, state: Mapping[str, object]) -> None:
        time.sleep(2)
        if fails:
            raise TrainingError("The checkpoint cannot be written.")
        write(path, state)

    run_state.save_checkpoint = write_slowly
    Dino.after_step = signalled(Dino.after_step)  # type: ignore[assignment, method-assign]  # of this process alone
    code, errors = run_command(CALL[0], [*map(str, CALL[1:]), *SETS])
    return code, errors, Path(checkpoint).exists()


@pytest.mark.parametrize("fails", [False, True])
def test_no_process_leaves_before_the_checkpoint_of_a_stop_is_written(fails: bool, dataset: Path, roots: Path) -> None:
    """torchrun would end the main one while it writes."""
    checkpoint = roots / "results" / dataset.name / "pretrain" / "dino__vit_test__plans" / CHECKPOINT_FILE
    for code, errors, written in together(stopped_in_a_step, str(checkpoint), fails):
        assert (code, written) == ((2, False) if fails else (75, True)), errors
        assert ("cannot be written" if fails else "stopped by SIGTERM after step 2 of 6") in errors
