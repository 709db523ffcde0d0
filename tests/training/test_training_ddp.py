"""Distributed: two gloo processes take the same steps as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import TINY

from headctssl.training.distributed import Process, current_process
from headctssl.training.pretrain import pretrain

SETS = [t for t in TINY if "batch_size" not in t and "num_steps" not in t]
SETS += ["training.batch_size=4", "training.num_steps=3", "training.optimizer=sgd", "training.lr=0.01"]


def two_processes(arguments: list[str], code: int = 0) -> list[str]:
    """Run headct with two processes, as torchrun would start them; what each wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "headctssl", *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = []
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == code, errors
            told.append(errors)
    finally:
        for process in started:
            process.kill()
    return told


@pytest.mark.evidence
@pytest.mark.parametrize("method", ["dino", "mae"])
def test_two_processes_give_the_loss_of_one(dataset: Path, method: str) -> None:
    one = pretrain(1, method, config="vit_test", device="cpu", quiet=True, tag="one", overrides=SETS)
    sets = [word for text in SETS for word in ("--set", text)]
    call = ["pretrain", "-d", "1", "-m", method, "-c", "vit_test", "--device", "cpu", "--tag", "two", *sets]
    two_processes(call)
    two = one.with_name(one.name.replace("one", "two"))
    # The command adds its report to what the function leaves.
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()} | {"report.html"}
    for a, b in zip(_lines(one), _lines(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
    for name, tensor in load_file(one / "encoder.safetensors").items():
        assert torch.allclose(tensor, load_file(two / "encoder.safetensors")[name], atol=1e-5), name


def test_a_wrong_call_is_told_by_every_process(dataset: Path) -> None:
    """Not only by the main one, with a broken connection on the others."""
    call = ["pretrain", "-d", "1", "-m", "dino", "-c", "vit_test", "--device", "cpu", "--set", "training.lrr=1"]
    for errors in two_processes(call, code=2):
        assert "Unknown setting 'training.lrr'" in errors
        assert "Traceback" not in errors


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_environment_says_which_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert current_process() == Process(0, 0, 1)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert current_process() == Process(5, 1, 8)
    assert not current_process().is_main
