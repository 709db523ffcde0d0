"""Derive: the settings of a fine-tuning run, in numbered steps with their sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headctssl.errors import UsageError
from headctssl.families import FamilySettings
from headctssl.finetuning.asked import check_asked
from headctssl.finetuning.settings import Adaptation, FinetuneSettings, TaskSettings
from headctssl.planning.plans import Decision
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.settings import JsonValue, with_overrides

__all__ = ["Situation", "derive_settings"]

_HEADCT = "HeadCT-Foundation, arXiv 2502.02779"
_OPENMIND = "OpenMind benchmark, arXiv 2412.17041"
_REFERENCE_WIDTH = 768  # of the ViT-B the published rates belong to


@dataclass(frozen=True)
class Situation:
    """What the derivation looks at."""

    num_train: int  # labelled training cases
    num_validation: int  # labelled validation cases
    adapt: Adaptation
    encoder: FamilySettings
    pretrained: bool
    small_profile: bool  # synthetic laptop or template dataset
    precision: Literal["bf16", "fp16", "float32"]
    num_workers: int


def derive_settings(
    base: Mapping[str, object], situation: Situation, overrides: Mapping[str, JsonValue]
) -> FinetuneSettings:
    """Derive the settings of a fine-tuning run. Pure.

    Args:
        base: the fields of `FinetuneSettings` that are given: dataset, labels, encoder, input ...
        situation: how many cases, which encoder, which machine.
        overrides: dotted keys; `training.num_epochs` stands for the number of steps it needs.

    Raises:
        UsageError: too few cases, an unknown key, or both lengths given.
    """
    check_asked(overrides, linear=situation.adapt == "linear", pretrained=situation.pretrained)
    steps = _Steps()
    n = situation.num_train
    if n < 2:
        raise UsageError(
            "There are too few labelled training cases.",
            got=n,
            expected="at least 2, better 20 or more",
            do="Choose labels that are known for more cases with --labels, or another fold with -f.",
        )
    overrides = dict(overrides)
    linear = situation.adapt == "linear"
    batch = _batch_size(steps, situation, overrides)
    epochs = _epochs(steps, situation, overrides)
    lr, head_scale = _rates(steps, situation, batch, overrides)
    per_epoch = max(1, n // batch)
    num_steps = _num_steps(overrides, epochs, per_epoch)
    warmup = 0 if linear else max(1, num_steps // 10)
    steps.add("warm-up", f"{warmup} steps", "a tenth of the steps, linear; none for a linear head", _OPENMIND, "")
    every = 1 if linear else max(1, round(num_steps / per_epoch / 25))
    steps.add("validation", f"every {every} epoch(s)", "about 25 times in the run", "convention", f"{epochs} epochs")
    _imbalance(steps)
    views = _views(steps, linear)
    training = TrainingSettings(
        num_steps=num_steps,
        samples_per_epoch=per_epoch * batch,
        batch_size=batch,
        lr=lr,
        min_lr=lr * 0.01,
        warmup_steps=warmup,
        weight_decay=0.01,
        weight_decay_end=0.01,
        clip_norm=1.0,
        precision=situation.precision,
        checkpoint_every=max(20, per_epoch),
        num_workers=situation.num_workers,
    )
    steps.add("weight decay", "0.01", "as published", _HEADCT, "")
    for key, value in overrides.items():
        steps.add(key, json.dumps(value), "given, in place of what the steps above say", "--set", "")
    settings = FinetuneSettings.model_validate(
        {
            **base,
            "training": training,
            "views": views,
            "task": TaskSettings(head_lr_scale=head_scale, validate_every=every),
            "num_train": n,
            "num_validation": situation.num_validation,
            "decisions": tuple(steps.decisions),
        }
    )
    return _with_asked(settings, overrides)


class _Steps:
    """Collects decisions."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def add(self, what: str, value: str, rule: str, source: str, because: str) -> None:
        self.decisions.append(Decision(what=what, value=value, rule=rule, source=source, because=because))


def _batch_size(steps: _Steps, situation: Situation, overrides: Mapping[str, JsonValue]) -> int:
    """Step 1. The batch."""
    n = situation.num_train
    given = overrides.get("training.batch_size")
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        if given > n or given < 2:
            raise UsageError(
                "The batch does not fit the training cases.",
                got=f"training.batch_size={given}, {n} labelled training cases",
                expected=f"2 to {n}: the head's BatchNorm needs two cases",
                do="Choose another training.batch_size.",
            )
        steps.add("batch", str(given), "given", "--set training.batch_size", "")
        return given
    most = 64 if situation.adapt == "linear" else (16 if n >= 128 else 8)
    batch = min(most, n)
    steps.add("batch", str(batch), "16 from 128 cases on, else 8; 64 for a linear head", _OPENMIND, f"{n} cases")
    return batch


def _epochs(steps: _Steps, situation: Situation, overrides: Mapping[str, JsonValue]) -> int:
    """Step 2. The length."""
    n = situation.num_train
    if "training.num_epochs" in overrides:
        steps.add("epochs", str(overrides["training.num_epochs"]), "given", "--set training.num_epochs", "")
        return 1
    if situation.adapt == "linear":
        epochs = 200
        rule, source = "200: a step on stored features costs next to nothing", "convention of linear probing"
    else:
        budget = 960 if situation.small_profile else 2400
        epochs = min(60, max(15, round(budget / n)))
        rule = f"15, or as many as show {budget} scans, at most 60"
        source = f"15 from {_HEADCT}; the budget keeps few-shot runs from ending after a handful of steps"
    steps.add("epochs", str(epochs), rule, source, f"{n} labelled training cases")
    return epochs


def _rates(steps: _Steps, situation: Situation, batch: int, overrides: Mapping[str, JsonValue]) -> tuple[float, float]:
    """Step 3. The peak rate of the encoder, and the head's over it."""
    given, given_scale = _positive(overrides.get("training.lr")), _positive(overrides.get("task.head_lr_scale"))
    if situation.adapt == "linear":
        if given is not None:
            steps.add("learning rate", f"{given:.3g} (head)", "given", "--set training.lr", "encoder frozen")
            return given, 1.0
        steps.add("learning rate", "1e-2 (head)", "fixed", "linear probing on normalised features", "encoder frozen")
        return 1e-2, 1.0
    lr, rule, source, because = _encoder_rate(situation, batch)
    if given is not None:
        lr, rule, source, because = given, "given; head at 1e-3, or at the same rate", "--set training.lr", ""
    scale = max(1.0, 1e-3 / lr) if given_scale is None else given_scale
    if given_scale is not None:
        rule = f"{rule.partition('; head')[0]}; head at {given_scale:g} times it, as given"
    kind = _kind(situation.encoder)
    steps.add("learning rate", f"{lr:.3g} encoder ({kind}), {lr * scale:.3g} head", rule, source, because)
    return lr, scale


def _kind(encoder: FamilySettings) -> str:
    return "CNN" if encoder.kind == "cnn" else encoder.kind


def _encoder_rate(situation: Situation, batch: int) -> tuple[float, str, str, str]:
    """Peak rate of the encoder in full fine-tuning, with its rule, source and reason."""
    encoder = situation.encoder
    if situation.pretrained and encoder.kind == "transformer":
        lr = 1e-5 * _REFERENCE_WIDTH / encoder.embed_dim
        rule = "1e-5 at width 768, inversely with the width; head at 1e-3, a hundred times 1e-5"
        source = f"{_HEADCT}; width: arXiv 2203.03466"
        return lr, rule, source, f"pretrained transformer, width {encoder.embed_dim}"
    if situation.pretrained:
        return 1e-4, "1e-4; head at 1e-3", _OPENMIND, "pretrained CNN"
    because = "from scratch the encoder has everything to learn"
    if encoder.kind == "transformer":
        lr = 5e-4 * (batch / 256) ** 0.5 * _REFERENCE_WIDTH / encoder.embed_dim
        rule = "5e-4 at batch 256 and width 768, with the root of the batch, inversely with the width; head at 1e-3"
        source = f"{_HEADCT} (pretraining rate); root rule: arXiv 2205.10287; width: arXiv 2203.03466"
        return lr, rule, source, f"{because}; batch {batch}, width {encoder.embed_dim}"
    return 3e-4, "3e-4; head at 1e-3", "AdamW on CNNs with norms, convention", because


def _positive(value: JsonValue) -> float | None:
    """A number above 0 that was given; anything else is left to the check of all settings."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return float(value) if fits and isinstance(value, int | float) else None


def _num_steps(overrides: dict[str, JsonValue], epochs: int, per_epoch: int) -> int:
    """Step 4. Optimiser steps; takes `training.num_epochs` out of the overrides."""
    given = overrides.pop("training.num_epochs", None)
    if given is None:
        chosen = overrides.get("training.num_steps")
        return chosen if isinstance(chosen, int) and chosen >= 1 else epochs * per_epoch
    if "training.num_steps" in overrides:
        raise UsageError(
            "Both lengths of the run are given.",
            got="training.num_steps and training.num_epochs",
            expected="one of them",
            do="Remove one --set.",
        )
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UsageError(
            "The setting 'training.num_epochs' does not accept this value.",
            got=given,
            expected="a whole number of 1 or more",
            do="Correct the value after --set.",
        )
    return given * per_epoch


def _imbalance(steps: _Steps) -> None:
    """Step 5. How rare labels are weighed."""
    steps.add(
        "imbalance",
        "weighted loss",
        "the positive term of each label weighs negatives / positives of its known training cases, 1/20 to 20; its"
        " logarithm is taken off the logit when the classifier is saved, so that probabilities keep the prior",
        "Elkan 2001 (cost-sensitive learning), equivalent to class-balanced sampling label by label",
        "one sampling cannot balance several labels at once, and unknown labels differ from case to case",
    )


def _views(steps: _Steps, linear: bool) -> ViewSettings:
    """Step 6. What the network sees of a scan while it learns."""
    views = ViewSettings(
        global_count=1,
        global_scale=(1.0, 1.0) if linear else (0.8, 1.0),
        local_count=0,
        flip_probability=0.0,
        shift_probability=0.0 if linear else 0.5,
        shift=0.1,
        blur_probability=(0.0, 0.0),
        gamma_probability=(0.0, 0.0),
    )
    steps.add(
        "views",
        "whole head, not augmented" if linear else "one crop of .8-1 of the field of view, intensity shift .1, no flip",
        "mild: a finding must stay in view, and left must stay left",
        "PITFALLS: flips while training left/right labels",
        "features are computed once" if linear else "labels belong to the whole scan",
    )
    return views


def _with_asked(settings: FinetuneSettings, overrides: Mapping[str, JsonValue]) -> FinetuneSettings:
    changed = with_overrides(settings, overrides)
    training = changed.training
    if changed.head.batch_norm and training.batch_size // training.accumulation < 2:
        raise UsageError(
            "The head's BatchNorm needs two scans in a forward pass.",
            got=f"training.batch_size={training.batch_size} over training.accumulation={training.accumulation}",
            expected="at least 2",
            do="Set another batch size, or head.batch_norm=false.",
        )
    mirrored = [s.name for s in settings.labels if s.mirror not in (None, "self")]
    if changed.views.flip_lr and mirrored:
        raise UsageError(
            "Left and right cannot be flipped while labels have a side.",
            got=f"views.flip_lr=true with {', '.join(mirrored)}",
            expected="views.flip_lr=false",
            do="Remove views.flip_lr, or choose other labels with --labels.",
        )
    return changed
