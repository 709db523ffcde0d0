"""Faults: runs killed at any moment, also while a checkpoint is written, end in the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from small_heads import make_dataset, make_encoder
from together import start_command
from training_helpers import TINY, make_labels, make_stored_dataset

from headctssl.training.checkpoint import load_weights
from headctssl.training.run_state import CHECKPOINT_FILE

_LONGEST = 240.0  # seconds that a run of these may take on a busy machine


@dataclass(frozen=True)
class Command:
    """A command that makes a run, and what it leaves."""

    name: str
    arguments: tuple[str, ...]
    folder: Path
    weights: str  # file name
    output: Path  # what it prints
    also: tuple[str, ...] = ()  # further files that must be the same

    def start(self, *more: str) -> ForkServerProcess:
        return start_command(self.name, [*self.arguments, *more], self.output)

    def finish(self, *more: str) -> None:
        process = self.start(*more)
        process.join(_LONGEST)
        assert process.exitcode == 0, self.output.read_text()[-3000:]

    def left(self) -> tuple[list[bytes], list[tuple[object, ...]]]:
        """The weights, and the lines of metrics.jsonl without what the clock says."""
        texts = (self.folder / "metrics.jsonl").read_text().splitlines()
        lines = [json.loads(text) for text in texts]
        timed = {"seconds", "scans_per_second", "data_wait", "monitor_seconds"}
        return [(self.folder / name).read_bytes() for name in (self.weights, *self.also)], [
            tuple(sorted((k, v) for k, v in line.items() if k not in timed)) for line in lines
        ]


def words(*sets: str) -> tuple[str, ...]:
    """As flags of a command."""
    return tuple(word for text in sets for word in ("--set", text))


def pretraining(roots: Path, steps: int = 12) -> Command:
    dataset = make_stored_dataset(roots / "preprocessed", num_cases=12, test=(10, 11))
    make_labels(roots / "raw", num_cases=12)
    sets = [t for t in TINY if "num_steps" not in t and "local_count" not in t]
    # A line of metrics.jsonl after every third step: most checkpoints lie between two lines.
    sets += [f"training.num_steps={steps}", "training.log_every=3", "views.local_count=1"]
    sets += ["monitor.every=2", "monitor.probe_cases=10", "monitor.probe_every=4", "monitor.views=2"]
    call = ("-d", "1", "-m", "dino", "-c", "vit_test", "--device", "cpu", "--quiet", *words(*sets))
    folder = roots / "results" / dataset.name / "pretrain" / "dino__vit_test__plans"
    also = ("encoder_probe_best.safetensors",)
    return Command("pretrain", call, folder, "encoder.safetensors", roots / "output.txt", also)


def finetuning(roots: Path, adapt: str = "full") -> Command:
    raw, encoder = make_dataset(2, 16), make_encoder(roots / "encoder")
    sets = ["training.num_epochs=4"]
    if adapt == "full":
        sets += ["training.batch_size=4", "training.precision=float32", "head.dropout=0.2"]
    call = ("-d", "2", "-w", str(encoder), "--adapt", adapt, "--device", "cpu", "--num_workers", "0", "--quiet")
    name = f"all-labels__{adapt}__dino-vit_test-{load_weights(encoder).contract.weights_hash[:8]}"
    folder = roots / "results" / raw.name / "finetune" / name / "fold_0"
    return Command("finetune", (*call, *words(*sets)), folder, "classifier.safetensors", roots / "output.txt")


def kill_when_writing(process: ForkServerProcess, command: Command, draw: random.Random) -> bool:
    """Kill in the middle of writing one of the next checkpoints; whether a half-written file was left."""
    after = time.monotonic() + draw.uniform(0, 3)
    while process.is_alive():
        if time.monotonic() > after and any(command.folder.glob(f".{CHECKPOINT_FILE}*.tmp")):
            process.kill()
            process.join()
            return any(command.folder.glob(f".{CHECKPOINT_FILE}*.tmp"))
        time.sleep(0.0005)
    return False


def kill_at(process: ForkServerProcess, seconds: float) -> None:
    process.join(seconds)
    process.kill()
    process.join()


def injected(command: Command, kills: int, seed: int) -> dict[str, int]:
    """Kill the command and go on with it until all kills are spent, then compare with a run that was left alone.

    A run that ends before its kill is compared, and begun anew.

    Returns:
        How many kills came at a moment drawn by chance, how many while a checkpoint was written, and how many runs
        were compared.
    """
    draw = random.Random(seed)
    start_command("pretrain", ["--help"], command.output).join(_LONGEST)  # the heavy imports are done once, before
    began = time.monotonic()
    command.finish()
    lasts = time.monotonic() - began
    wanted = command.left()
    count = {"drawn": 0, "writing": 0, "compared": 0}
    shutil.rmtree(command.folder)
    while count["drawn"] + count["writing"] < kills:
        # What may change from session to session does.
        process = command.start("--continue", *words(f"training.checkpoint_every={draw.choice((1, 2, 3, 5))}"))
        if (count["drawn"] + count["writing"]) % 2:
            count["writing"] += kill_when_writing(process, command, draw)
        else:
            kill_at(process, draw.uniform(0.05, 1.0) * lasts)
            count["drawn"] += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            assert command.left() == wanted
            count["compared"] += 1
            shutil.rmtree(command.folder)
        else:
            assert process.exitcode == -signal.SIGKILL
    command.finish("--continue")
    assert command.left() == wanted
    count["compared"] += 1
    assert not list(command.folder.glob(".*.tmp")), "what the killed processes left half-written is removed"
    return count


def test_three_kills_of_pretraining(roots: Path) -> None:
    count = injected(pretraining(roots), kills=3, seed=1)
    assert count["drawn"] + count["writing"] == 3


def test_three_kills_of_fine_tuning(roots: Path) -> None:
    count = injected(finetuning(roots), kills=3, seed=2)
    assert count["drawn"] + count["writing"] == 3


@pytest.mark.evidence
@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_twenty_kills(roots: Path, make: Callable[[Path], Command]) -> None:
    count = injected(make(roots), kills=20, seed=20)
    print(count)
    assert count["drawn"] + count["writing"] == 20
    assert min(count.values()) > 0


@pytest.mark.evidence
def test_kills_of_a_linear_head_which_keeps_no_checkpoint(roots: Path) -> None:
    """Also after its weights were written and before its metrics were."""
    command = finetuning(roots, "linear")
    command.finish()
    wanted, draw = command.left(), random.Random(3)
    for _ in range(5):
        shutil.rmtree(command.folder, ignore_errors=True)
        kill_at(command.start(), draw.uniform(0.1, 2.0))
        command.finish("--continue" if not (command.folder / "metrics.json").exists() else "--overwrite")
        assert command.left() == wanted
    written_last = ("metrics.json", "predictions.csv", "contract.json")
    for count in range(1, len(written_last) + 1):
        for name in written_last[:count]:
            (command.folder / name).unlink()
        command.finish("--continue")
        assert command.left() == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_at_any_time_ends_with_75(roots: Path, number: signal.Signals) -> None:
    """Also before the first step. That the run goes on to the same end is tested step by step elsewhere."""
    command, draw = pretraining(roots, steps=100_000), random.Random(int(number))
    process = command.start()
    while not command.folder.exists():  # the process is at work
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 1))
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(_LONGEST)
    assert process.exitcode == 75, command.output.read_text()[-3000:]
    assert f"stopped by {number.name}" in command.output.read_text()
    assert "--continue" in command.output.read_text()
