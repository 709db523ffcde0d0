"""Distributed: what processes agree on, and torchrun itself; equality with one process is tested beside the methods."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from together import command, together
from training_helpers import TINY

from headctssl.errors import DataError
from headctssl.training.distributed import Process, current_process, gather_shares, processes, settle, share_of
from headctssl.training.run_state import CHECKPOINT_FILE, load_checkpoint


def test_a_wrong_call_is_told_by_every_process(dataset: Path) -> None:
    """Not only by the main one, with a broken connection on the others."""
    call = ["-d", "1", "-m", "dino", "-c", "vit_test", "--device", "cpu", "--set", "training.lrr=1"]
    for code, errors in together(command, "pretrain", call):
        assert code == 2
        assert "Unknown setting 'training.lrr'" in errors
        assert "Traceback" not in errors


def agree(total: int) -> tuple[str, str, list[int], list[int]]:
    """What a process hears from the main one, and of the shares of all."""
    with processes(torch.device("cpu")) as process:
        heard = settle(lambda: f"from {process.rank}", process)

        def fail() -> None:
            raise DataError("a fault", got="of the main process")

        try:
            settle(fail, process)
        except DataError as error:
            told = f"{error.what} {error.got}"
        mine = list(share_of(range(total), process))
        rows = torch.tensor(mine)[:, None] if mine else None
        return heard, told, mine, gather_shares(rows, total, process)[:, 0].tolist()


@pytest.mark.parametrize(("number", "total"), [(2, 5), (3, 2)])
def test_every_item_is_in_one_share_and_comes_back_in_its_place(number: int, total: int) -> None:
    found = together(agree, total, number=number)
    assert sorted(i for _, _, mine, _ in found for i in mine) == list(range(total))
    for heard, told, _, everyone in found:
        assert heard == "from 0"
        assert told == "a fault of the main process"
        assert everyone == list(range(total))


def test_one_process_needs_no_other() -> None:
    rows = torch.arange(3)[:, None]
    assert torch.equal(gather_shares(rows, 3, Process()), rows)
    assert settle(lambda: 7, Process()) == 7


@pytest.mark.evidence
def test_torchrun_trains_and_a_signal_to_it_leaves_a_checkpoint(dataset: Path, roots: Path) -> None:
    sets = [word for text in TINY if "num_steps" not in text for word in ("--set", text)]
    call = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "headctssl",
        "pretrain", "-d", "1", "-m", "dino", "-c", "vit_test", "--device", "cpu", *sets,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    long = [*call, "--tag", "long", "--set", "training.num_steps=100000"]
    run = subprocess.Popen(long, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = roots / "results" / dataset.name / "pretrain" / "dino__vit_test__plans__long"
    started = time.monotonic()
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() - started < 300
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0  # torchrun's own code, whatever the processes return
    assert "stopped by SIGTERM" in (folder / "train.log").read_text(), errors[-3000:]
    assert load_checkpoint(folder / CHECKPOINT_FILE)["step"] > 0
    short = [*call, "--tag", "short", "--set", "training.num_steps=4"]
    done = subprocess.run(short, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("encoder.safetensors") == 2  # exported, and named at the end: by one process
    assert (folder.with_name("dino__vit_test__plans__short") / "encoder.safetensors").exists()


def test_environment_says_which_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert current_process() == Process(0, 0, 1)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert current_process() == Process(5, 1, 8)
    assert not current_process().is_main
