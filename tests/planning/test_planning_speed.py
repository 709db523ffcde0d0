"""Tests of what a plan does to fit and to go fast: blocks computed again, lines of metrics."""

from __future__ import annotations

from typing import Any

import pytest
from planning_examples import GPU, LAPTOP, fingerprint

from headctssl.errors import UsageError
from headctssl.methods import method_class
from headctssl.planning.machine import Machine
from headctssl.planning.planner import make_plans
from headctssl.planning.resolve import resolve
from headctssl.planning.run_settings import RunSettings, TrainingSettings


def run(method: str, config: str, machine: Machine, coupled: bool = False, **training: Any) -> RunSettings:
    kind = method_class(method)
    return resolve(
        (make_plans(fingerprint(slices=(1.0,))),),
        method_name=method,
        method_settings=kind.Settings,
        optimizer=kind.optimizer_defaults,
        config=config,
        overrides={f"training.{name}": value for name, value in training.items()},
        machine=machine,
        num_train_cases=1000,
        batch_coupled=coupled,
    )


def gpu(memory_gb: float) -> Machine:
    return GPU.model_copy(update={"memory_gb": memory_gb})


def test_blocks_are_computed_again_only_where_nothing_cheaper_helps() -> None:
    def decided(machine: Machine, **more: Any) -> tuple[bool, int]:
        training = run("mae", "vit_l", machine, **more).training
        return training.recompute, training.accumulation

    assert decided(GPU, batch_size=8) == (False, 1)
    again, passes = decided(gpu(16.0), batch_size=64)
    assert (again, passes > 1) == (False, True)  # a batch that can be accumulated costs no work
    assert decided(gpu(12.0), coupled=True, batch_size=16) == (True, 1)  # one that cannot has to fit


def test_computing_again_takes_less_memory_and_more_time() -> None:
    plain, again = (run("mae", "vit_l", GPU, batch_size=64, recompute=on).estimate for on in (False, True))
    assert again.memory_gb < 0.7 * plain.memory_gb
    assert 1.15 < again.step_seconds / plain.step_seconds < 1.4


def test_a_cnn_is_not_asked_to_compute_again() -> None:
    assert not run("mae", "resenc_l", gpu(4.0)).training.recompute
    with pytest.raises(UsageError, match="Only transformers"):
        run("mae", "resenc_l", GPU, recompute=True)


def test_nothing_is_compiled_unasked() -> None:
    assert not any(run("mae", "vit_b", machine).training.compile for machine in (LAPTOP, GPU))
    assert run("mae", "vit_b", GPU, compile=True).training.compile


def test_a_gpu_is_not_kept_waiting_for_every_line() -> None:
    settings: dict[str, TrainingSettings] = {m.device: run("mae", "vit_b", m).training for m in (LAPTOP, GPU)}
    assert (settings["cpu"].log_every, settings["cuda"].log_every) == (1, 10)
    assert run("mae", "vit_b", GPU, log_every=3).training.log_every == 3
