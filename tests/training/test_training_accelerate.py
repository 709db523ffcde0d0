"""Tests of what a run does to go fast: the step that is left out on the device, and blocks as the settings say."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from headctssl.errors import UsageError
from headctssl.methods.method import ParamGroup
from headctssl.networks import acceleration, build_encoder
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.accelerate import accelerate
from headctssl.training.optimizer import build_optimizer, step_unless
from headctssl.training.step_flags import StepFlags

CPU = torch.device("cpu")


def settings(**changes: object) -> TrainingSettings:
    given = {"num_steps": 10, "samples_per_epoch": 10, "batch_size": 2, "lr": 0.1, **changes}
    return TrainingSettings.model_validate(given)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_bad_step_is_left_out_by_the_optimiser_itself(optimizer: Literal["adamw", "sgd"]) -> None:
    """Steps with the switch at 0, 1, 0 equal two plain steps, whatever the gradient of the second was."""
    torch.manual_seed(0)
    start = torch.randn(7)
    switched, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    first, second = (
        build_optimizer([ParamGroup("all", (p,))], settings(optimizer=optimizer)) for p in (switched, plain)
    )
    gradients = torch.randn(2, 7)
    for gradient, bad in ((gradients[0], 0.0), (torch.full((7,), torch.nan), 1.0), (gradients[1], 0.0)):
        switched.grad = gradient.clone()
        step_unless(first, torch.tensor(bad))
        if not bad:
            plain.grad = gradient.clone()
            second.step()
        assert torch.equal(switched, plain)
    ours, theirs = first.state_dict()["state"][0], second.state_dict()["state"][0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_flags_are_read_as_they_were_written() -> None:
    flags = StepFlags(torch.tensor([1.0, 0.0]))
    assert float(flags.bad) == 1.0
    assert flags.read() == (True, False)
    assert StepFlags(torch.tensor([0.0, 1.0])).read() == (False, True)


def test_nothing_is_done_unasked_and_what_is_not_done_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder("vit_test")
    assert accelerate(encoder, settings(), CPU) == []
    assert accelerate(encoder, settings(compile=True, deterministic=True), CPU) == ["not compiled: deterministic mode"]
    monkeypatch.setattr(acceleration, "why_not_compiled", lambda device: "no compiler")
    assert accelerate(encoder, settings(compile=True), CPU) == ["not compiled: no compiler"]
    assert "computed again" in accelerate(encoder, settings(recompute=True), CPU)[0]
    with pytest.raises(UsageError):
        accelerate(build_encoder("resenc_test"), settings(recompute=True), CPU)
