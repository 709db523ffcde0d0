"""Rates: the peak learning rates of encoder, adapters and head, with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headctssl.families import FamilySettings
from headctssl.finetuning.situation import Situation, Steps
from headctssl.settings import JsonValue

__all__ = ["HEADCT", "OPENMIND", "Peaks", "choose_rates"]

HEADCT = "HeadCT-Foundation, arXiv 2502.02779"
OPENMIND = "OpenMind benchmark, arXiv 2412.17041"
_REFERENCE_WIDTH = 768  # of the ViT-B the published rates belong to
_GENTLE = ("warmup", "sawtooth", "valley")


@dataclass(frozen=True)
class Peaks:
    """The highest rates of a run."""

    lr: float  # of what `training.lr` names: the encoder or its adapters, or the head of a frozen encoder
    head_scale: float  # of the head, over `lr`


def choose_rates(steps: Steps, situation: Situation, batch: int, overrides: Mapping[str, JsonValue]) -> Peaks:
    """Choose the peak rate of the encoder, and the head's over it.

    Args:
        steps: the decision is added to them.
        situation: encoder, start and adaptation.
        batch: scans per step.
        overrides: what is given.
    """
    given, given_scale = _positive(overrides.get("training.lr")), _positive(overrides.get("task.head_lr_scale"))
    if situation.frozen:
        if given is not None:
            steps.add("learning rate", f"{given:.3g} (head)", "given", "--set training.lr", "encoder frozen")
            return Peaks(given, 1.0)
        lr, source = 1e-2, "linear probing on normalised features"
        if situation.adapt == "attentive":
            lr, source = 1e-3, "attentive probe of AIM, arXiv 2401.08541"
        steps.add("learning rate", f"{lr:.0e} (head)".replace("e-0", "e-"), "fixed", source, "encoder frozen")
        return Peaks(lr, 1.0)
    lr, rule, source, because = _encoder_rate(situation, batch, overrides.get("task.schedule"))
    if given is not None:
        lr, rule, source, because = given, "given; head at 1e-3, or at the same rate", "--set training.lr", ""
    scale = max(1.0, 1e-3 / lr) if given_scale is None else given_scale
    if given_scale is not None:
        rule = f"{rule.partition('; head')[0]}; head at {given_scale:g} times it, as given"
    what = "adapters" if situation.adapt == "lora" else "encoder"
    kind = _kind(situation.encoder)
    steps.add("learning rate", f"{lr:.3g} {what} ({kind}), {lr * scale:.3g} head", rule, source, because)
    return Peaks(lr, scale)


def _kind(encoder: FamilySettings) -> str:
    return "CNN" if encoder.kind == "cnn" else encoder.kind


def _encoder_rate(situation: Situation, batch: int, schedule: JsonValue) -> tuple[float, str, str, str]:
    """Peak rate of the encoder or its adapters, with its rule, source and reason."""
    encoder = situation.encoder
    kind = _kind(encoder)
    if situation.adapt == "lora":
        lr = 1e-4 * _REFERENCE_WIDTH / encoder.embed_dim
        rule = "ten times the rate of full fine-tuning, 1e-4 at width 768, inversely with the width; head at 1e-3"
        source = "LoRA, arXiv 2106.09685, appendix D, learns at 1e-4 to 5e-4"
        return lr, rule, source, f"pretrained transformer, width {encoder.embed_dim}"
    if situation.pretrained and schedule in _GENTLE:
        lr, rule, source, _ = _scratch_rate(encoder, batch)
        rule = f"a tenth of the rate from scratch, which is {rule}"
        return lr / 10, rule, f"{OPENMIND}; {source}", f"schedule {schedule}, pretrained {kind}"
    if situation.pretrained and encoder.kind == "transformer":
        lr = 1e-5 * _REFERENCE_WIDTH / encoder.embed_dim
        rule = "1e-5 at width 768, inversely with the width; head at 1e-3, a hundred times 1e-5"
        source = f"{HEADCT}; width: arXiv 2203.03466"
        return lr, rule, source, f"pretrained transformer, width {encoder.embed_dim}"
    if situation.pretrained:
        return 1e-4, "1e-4; head at 1e-3", OPENMIND, "pretrained CNN"
    return _scratch_rate(encoder, batch)


def _scratch_rate(encoder: FamilySettings, batch: int) -> tuple[float, str, str, str]:
    because = "from scratch the encoder has everything to learn"
    if encoder.kind == "transformer":
        lr = 5e-4 * (batch / 256) ** 0.5 * _REFERENCE_WIDTH / encoder.embed_dim
        rule = "5e-4 at batch 256 and width 768, with the root of the batch, inversely with the width; head at 1e-3"
        source = f"{HEADCT} (pretraining rate); root rule: arXiv 2205.10287; width: arXiv 2203.03466"
        return lr, rule, source, f"{because}; batch {batch}, width {encoder.embed_dim}"
    return 3e-4, "3e-4; head at 1e-3", "AdamW on CNNs with norms, convention", because


def _positive(value: JsonValue) -> float | None:
    """A number above 0 that was given; anything else is left to the check of all settings."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return float(value) if fits and isinstance(value, int | float) else None
