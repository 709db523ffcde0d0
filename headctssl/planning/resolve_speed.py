"""Resolve speed: what a run does to fit and to go fast without changing what it learns."""

from __future__ import annotations

from collections.abc import Callable

from headctssl.errors import UsageError
from headctssl.families import FamilySettings
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.machine import Machine
from headctssl.planning.run_settings import TrainingSettings

__all__ = ["lines", "recompute"]

_LEAST_SCANS = 8  # per process, of a loss that compares scans
_STEPS_PER_LINE = {"cpu": 1, "gpu": 10}


def recompute(
    ledger: Ledger,
    asked: Asked,
    training: TrainingSettings,
    encoder: FamilySettings,
    *,
    scans: int | None,
    batch_coupled: bool,
    fits: Callable[[int, bool], bool],
) -> TrainingSettings:
    """Step 7. Activation checkpointing.

    Rule: transformer blocks are computed again in the backward pass where the least that one pass must hold does not
    fit 80 % of the memory otherwise: the whole batch of a loss that compares scans (the one set, or 8 per process), one
    scan of any other, whose batch can be accumulated at no cost. Source: arXiv 1604.06174, a third more work.
    Assumption: the blocks hold nearly all activations of a transformer, which is not so of a CNN.

    Args:
        ledger: takes the decision.
        asked: what the user set.
        training: as decided so far.
        encoder: its dimensions.
        scans: per process, where the user set the batch.
        batch_coupled: whether the loss compares scans.
        fits: (scans of a pass, recompute) -> whether they fit.

    Raises:
        UsageError: it is asked for and the encoder is no plain transformer.
    """
    given = training.recompute if asked.has("training.recompute") else None
    if given and not encoder.drops_tokens:
        raise UsageError(
            "Only transformers compute their blocks again to save memory.",
            got=f"training.recompute=true with the family {encoder.family}",
            expected="an encoder of the family vit or primus",
            do="Leave it out; training.accumulation saves memory with every encoder.",
        )
    least = (scans or _LEAST_SCANS) if batch_coupled else 1
    needed = encoder.drops_tokens and not fits(least, False)
    chosen = ledger.take(
        "activation checkpointing",
        needed,
        given,
        "transformers whose smallest pass does not fit 80 % of the memory otherwise: one scan, or the batch of a loss "
        "that compares scans",
        "arXiv 1604.06174: a third more work",
        f"a pass of at least {least} scan(s)",
    )
    return training.model_copy(update={"recompute": chosen})


def lines(ledger: Ledger, asked: Asked, training: TrainingSettings, machine: Machine) -> TrainingSettings:
    """Step 6b. Lines of metrics.

    Rule: one per step on a CPU, one per 10 steps on a GPU. Source: the numbers of a line have to leave the device, and
    the loop waits for them (https://docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    chosen = ledger.take(
        "steps per line of metrics",
        _STEPS_PER_LINE["cpu" if machine.is_cpu else "gpu"],
        training.log_every if asked.has("training.log_every") else None,
        "1 on a CPU, 10 on a GPU",
        "the loop waits for the numbers of a line to leave the device",
        f"training on {machine.device}",
    )
    return training.model_copy(update={"log_every": chosen})
