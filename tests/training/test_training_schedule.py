"""Schedules: first, middle and last value of each, and what holds for all lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.methods.method import ParamGroup
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.optimizer import build_optimizer, check_groups, set_rates
from headctssl.training.schedule import cosine_value, learning_rate, weight_decay


def test_cosine_first_middle_last() -> None:
    assert [cosine_value(0.04, 0.4, s, 101) for s in (0, 50, 100)] == pytest.approx([0.04, 0.22, 0.4])


def test_learning_rate_warms_up_to_the_peak_and_ends_at_the_minimum() -> None:
    rates = [learning_rate(s, 110, peak=1.0, minimum=0.001, warmup_steps=10, schedule="cosine") for s in range(110)]
    assert rates[0] == pytest.approx(0.1)  # no step is wasted at 0
    assert rates[9] == 1.0
    assert rates[9 + 50] == pytest.approx(0.5005, abs=1e-3)
    assert rates[-1] == pytest.approx(0.001)


def test_poly_is_the_published_formula() -> None:
    assert learning_rate(0, 101, peak=0.01, schedule="poly") == 0.01
    assert learning_rate(50, 101, peak=0.01, schedule="poly") == pytest.approx(0.01 * 0.5**0.9)
    assert learning_rate(100, 101, peak=0.01, schedule="poly") == 0.0


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 400),
    warmup=st.integers(0, 400),
    schedule=st.sampled_from(["cosine", "poly"]),
)
def test_rates_rise_then_fall_within_bounds(total: int, warmup: int, schedule: str) -> None:
    rates = [
        learning_rate(s, total, peak=2.0, minimum=0.5, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
        for s in range(total)
    ]
    assert all(0 < r <= 2.0 for r in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if total > max(warmup, 1):
        assert rates[-1] == pytest.approx(0.5)


def _training(**changes: object) -> TrainingSettings:
    base = {"num_steps": 11, "samples_per_epoch": 8, "batch_size": 2, "lr": 0.1, "weight_decay_end": 0.4}
    return TrainingSettings.model_validate({**base, **changes})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_groups_get_their_rate_and_exempt_groups_no_decay(name: str) -> None:
    layer = torch.nn.Linear(3, 2)
    groups = [ParamGroup("w", (layer.weight,), 0.5, True), ParamGroup("b", (layer.bias,), 1.0, False)]
    optimizer = build_optimizer(groups, _training(optimizer=name))
    assert set_rates(optimizer, _training(), 10) == pytest.approx(0.0)
    assert set_rates(optimizer, _training(), 5) == pytest.approx(0.05)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.025, 0.05])
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(weight_decay(5, 11, start=0.04, end=0.4))
    assert optimizer.param_groups[1]["weight_decay"] == 0.0


def test_groups_must_hold_every_parameter_once() -> None:
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(AssertionError, match="bias"):
        check_groups(layer, [ParamGroup("w", (layer.weight,))])
    with pytest.raises(AssertionError, match="two groups"):
        check_groups(layer, [ParamGroup("w", (layer.weight,)), ParamGroup("v", (layer.weight, layer.bias))])
    layer.bias.requires_grad_(False)
    check_groups(layer, [ParamGroup("w", (layer.weight,))])
