"""Optimizer: AdamW or SGD over a learner's parameter groups, with rates set from the global step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headctssl.methods.method import ParamGroup
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.schedule import learning_rate, weight_decay

__all__ = ["build_optimizer", "check_groups", "set_rates", "step_unless"]


def build_optimizer(groups: Sequence[ParamGroup], training: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Args:
        groups: the learner's trainable parameters, each exactly once.
        training: optimiser name, betas or momentum; rates are set per step by `set_rates`.
    """
    packed = [
        {
            "params": list(group.parameters),
            "name": group.name,
            "lr_scale": group.lr_scale,
            "decays": group.weight_decay,
            "weight_decay": training.weight_decay if group.weight_decay else 0.0,
        }
        for group in groups
    ]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(packed, lr=training.lr, betas=training.betas, fused=True)
    nesterov = training.momentum > 0
    return torch.optim.SGD(packed, lr=training.lr, momentum=training.momentum, nesterov=nesterov, fused=True)


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """One step of a fused optimiser, left out where `bad` is 1; nothing of it waits for the device.

    Parameters and state stay as they are then; torch's gradient scaler uses the same switch.

    Args:
        optimizer: made by `build_optimizer`.
        bad: float32 (), 0 or 1, on the device of the parameters.
    """
    switched: Any = optimizer  # two attributes that torch's types do not know
    switched.grad_scale, switched.found_inf = None, bad
    optimizer.step()
    del switched.grad_scale, switched.found_inf


def check_groups(learner: nn.Module, groups: Sequence[ParamGroup]) -> None:
    """Assert that the groups hold every trainable parameter exactly once."""
    given = [id(p) for group in groups for p in group.parameters]
    assert len(given) == len(set(given)), "a parameter is in two groups"
    wanted = {id(p): name for name, p in learner.named_parameters() if p.requires_grad}
    absent = sorted(name for key, name in wanted.items() if key not in set(given))
    assert not absent, f"trainable parameters without a group: {absent[:5]}"
    assert set(given) <= set(wanted), "a group holds a parameter that is frozen or not the learner's"


def set_rates(
    optimizer: torch.optim.Optimizer, training: TrainingSettings, step: int, rate: float | None = None
) -> float:
    """Set the learning rate and weight decay of every group for a step.

    Args:
        optimizer: made by `build_optimizer`.
        training: the schedules.
        step: global step, from 0.
        rate: in place of the schedule's learning rate.

    Returns:
        The learning rate before the groups' factors.
    """
    if rate is None:
        rate = learning_rate(
            step,
            training.num_steps,
            peak=training.lr,
            minimum=training.min_lr,
            warmup_steps=training.warmup_steps,
            schedule=training.schedule,
        )
    decay = weight_decay(step, training.num_steps, start=training.weight_decay, end=training.weight_decay_end)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return rate
