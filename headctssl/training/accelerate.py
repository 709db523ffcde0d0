"""Accelerate: what the settings of a run do to the blocks of its transformers."""

from __future__ import annotations

import torch
from torch import nn

from headctssl.networks.acceleration import compile_blocks, recompute_blocks
from headctssl.planning.run_settings import TrainingSettings

__all__ = ["accelerate"]


def accelerate(learner: nn.Module, training: TrainingSettings, device: torch.device) -> list[str]:
    """Let blocks be computed again or compiled, as the settings say.

    Args:
        learner: built, on the device; it must not be copied afterwards.
        training: `recompute`, `compile` and `deterministic`.
        device: where it computes.

    Returns:
        Sentences for the log: what was done, and why what was asked for was not.

    Raises:
        UsageError: `recompute` is set and there is no transformer block.
    """
    told = []
    if training.compile:
        # Compiled code may sum in another order than the operations whose determinism torch vouches for.
        told.append("not compiled: deterministic mode" if training.deterministic else compile_blocks(learner, device))
    if training.recompute:
        told.append(f"{recompute_blocks(learner)} transformer blocks are computed again in the backward pass")
    return told
