"""Resolve speed: what a run does to fit and to go fast without changing what it learns."""

from __future__ import annotations

from collections.abc import Callable

from headctssl.errors import UsageError
from headctssl.families import FamilySettings, ViTSettings
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.machine import Machine
from headctssl.planning.run_settings import Estimate, TrainingSettings

__all__ = ["compiled", "lines", "recompute"]

_LEAST_SCANS = 8  # per process, of a loss that compares scans
_HOURS_TO_COMPILE = 2.0
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


def compiled(
    ledger: Ledger, asked: Asked, training: TrainingSettings, encoder: FamilySettings, machine: Machine, cost: Estimate
) -> TrainingSettings:
    """Step 11b. Compilation.

    Rule: the blocks of a ViT are compiled on a CPU in bfloat16 for runs of two hours or more by the estimate; never in
    deterministic mode. Source: measured on one thread of an AVX512-BF16 CPU, forward and backward pass of a block of
    ViT-B in bfloat16: 7-12 % more speed at 513 tokens, 1-8 % at 129; in float32 none. Compiling took half a minute to
    two per shape of input. Assumption: on a GPU it was not measured, so there it is left to the user.
    """
    pays = (
        machine.is_cpu
        and training.precision == "bf16"
        and isinstance(encoder, ViTSettings)
        and cost.hours >= _HOURS_TO_COMPILE
        and not training.deterministic
    )
    chosen = ledger.take(
        "compiled blocks",
        pays,
        training.compile if asked.has("training.compile") else None,
        "a ViT on a CPU in bf16 for two hours or more, not in deterministic mode",
        "measured: 1-12 % more speed there, none in float32, up to two minutes of compiling per shape of input",
        f"{encoder.family} in {training.precision} on {machine.device}, {cost.hours:.2g} h",
    )
    return training.model_copy(update={"compile": chosen})


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
