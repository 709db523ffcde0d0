"""Derive: the settings of a fine-tuning run, in numbered steps with their sources."""

from __future__ import annotations

import json
from collections.abc import Mapping

from headctssl.contract import InputSpec
from headctssl.errors import UsageError
from headctssl.finetuning.asked import check_asked, check_start, with_asked
from headctssl.finetuning.head_plan import choose_head, choose_whitening
from headctssl.finetuning.rates import HEADCT, OPENMIND, choose_rates
from headctssl.finetuning.settings import FinetuneSettings, TaskSettings, token_gb
from headctssl.finetuning.situation import Situation, Steps
from headctssl.planning.check_schedule import check_schedule
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.settings import JsonValue

__all__ = ["Situation", "derive_settings", "epochs_of_encoder", "validation_interval"]

_VALIDATIONS = 25
"""Validations of a run whose encoder learns, about."""


def derive_settings(
    base: Mapping[str, object], situation: Situation, overrides: Mapping[str, JsonValue]
) -> FinetuneSettings:
    """Derive the settings of a fine-tuning run. Pure.

    Args:
        base: the fields of `FinetuneSettings` that are given: dataset, labels, encoder, input ...
        situation: how many cases, which encoder, which machine.
        overrides: dotted keys; `training.num_epochs` stands for the number of steps it needs.

    Raises:
        UsageError: too few cases, an unknown key, both lengths given, or a warm-up or last rate that does not fit.
    """
    check_asked(overrides, adapt=situation.adapt, pretrained=situation.pretrained)
    steps = Steps()
    n, what = situation.num_samples, situation.samples
    if n < 2:
        raise UsageError(
            f"There are too few labelled training {what}.",
            got=n,
            expected="at least 2, better 20 or more",
            do=f"Choose labels that are known for more {what} with --labels, or another fold with -f.",
        )
    check_start(situation, overrides)
    overrides = dict(overrides)
    frozen = situation.frozen
    _studies(steps, situation, overrides)
    batch = _batch_size(steps, situation, overrides)
    epochs = _epochs(steps, situation, overrides, _tokens_fit(base, situation, overrides))
    peaks = choose_rates(steps, situation, batch, overrides)
    per_epoch = max(1, n // batch)
    num_steps = _num_steps(overrides, epochs, per_epoch)
    warmup = 0 if frozen else max(1, num_steps // 10)
    steps.add("warm-up", f"{warmup} steps", "a tenth of the steps, linear; none for a frozen encoder", OPENMIND, "")
    _schedule(steps, situation, overrides)
    every = 1 if frozen else validation_interval(num_steps / per_epoch)
    rule = f"about {_VALIDATIONS} times in the run"
    steps.add("validation", f"every {every} epoch(s)", rule, "convention", f"{epochs} epochs")
    _imbalance(steps, overrides.get("task.balance", "weights"))
    views = _views(steps, frozen, overrides.get("views.flip_lr") is True)
    training = TrainingSettings(
        num_steps=num_steps,
        samples_per_epoch=per_epoch * batch,
        batch_size=batch,
        lr=peaks.lr,
        min_lr=peaks.lr * 0.01,
        warmup_steps=warmup,
        weight_decay=0.01,
        weight_decay_end=0.01,
        clip_norm=1.0,
        precision=situation.precision,
        checkpoint_every=max(20, per_epoch),
        num_workers=situation.num_workers,
    )
    steps.add("weight decay", "0.01", "as published", HEADCT, "")
    head = choose_head(steps, situation)
    whitening = choose_whitening(steps, situation, overrides)
    for key, value in overrides.items():
        steps.add(key, json.dumps(value), "given, in place of what the steps above say", "--set", "")
    settings = FinetuneSettings.model_validate(
        {
            **base,
            "head": head,
            "training": training,
            "views": views,
            "task": TaskSettings(head_lr_scale=peaks.head_scale, validate_every=every, whitening=whitening),
            "num_train": situation.num_train,
            "num_validation": situation.num_validation,
            "decisions": tuple(steps.decisions),
        }
    )
    settings = with_asked(settings, overrides)
    check_schedule(settings.training)
    return settings


def _tokens_fit(base: Mapping[str, object], situation: Situation, overrides: Mapping[str, JsonValue]) -> bool:
    """Whether the tokens of attentive pooling are kept in memory."""
    spec = base["input"]
    assert isinstance(spec, InputSpec), "the input is given"
    given = overrides.get("task.cache_gb", TaskSettings().cache_gb)
    most = float(given) if isinstance(given, int | float) else 0.0
    return token_gb(situation.encoder, spec, situation.num_train + situation.num_validation) <= most


def _most_scans(overrides: Mapping[str, JsonValue]) -> int:
    """Scans of a study that a training step reads at most."""
    given = overrides.get("task.most_scans")
    return given if isinstance(given, int) and given >= 1 else TaskSettings().most_scans


def _studies(steps: Steps, situation: Situation, overrides: Mapping[str, JsonValue]) -> None:
    """What a sample is, where it is not a scan."""
    if situation.num_studies is None:
        return
    rule = (
        "a sample is a study, of which a training step reads all scans or as many drawn anew; gated attention pools"
        " them, and a study of one scan is what the head says of it; batch and epochs count studies"
    )
    value = f"attention over up to {_most_scans(overrides)} scans of a study"
    because = f"{situation.num_studies} studies of {situation.num_train} labelled training cases"
    steps.add("scans", value, rule, "gated attention of arXiv 1802.04712, equation 9", because)


def _schedule(steps: Steps, situation: Situation, overrides: Mapping[str, JsonValue]) -> None:
    """Which part learns when, and how fast each layer does."""
    if situation.frozen:
        return
    phases = {
        "sawtooth": "the head alone first, its rate rising and falling; then all, from a warm-up on",
        "valley": "the head alone first, its rate falling; then all, from a warm-up on",
        "warmup": "all from the first step, at a tenth of the rate from scratch",
    }
    chosen = str(overrides.get("task.schedule", "default"))
    rule = "the published recipe of the rate"
    if chosen in ("sawtooth", "valley"):
        rule = "published as 50 of 1,000 epochs or 15 of 150 for the head; here task.head_share of the steps"
    source = OPENMIND if chosen in phases else HEADCT
    steps.add("schedule", f"{chosen}: {phases.get(chosen, 'all from the first step')}", rule, source, "")
    rule = "one rate for all layers; task.layer_decay=0.75 gives those of MAE, arXiv 2111.06377"
    steps.add("layer rates", "1 per layer", rule, f"{HEADCT}; {OPENMIND}", "neither publishes a decay by layer")


def _batch_size(steps: Steps, situation: Situation, overrides: Mapping[str, JsonValue]) -> int:
    """Step 1. The batch."""
    n, what = situation.num_samples, situation.samples
    given = overrides.get("training.batch_size")
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        if given > n or given < 2:
            raise UsageError(
                "The batch does not fit the training cases.",
                got=f"training.batch_size={given}, {n} labelled training {what}",
                expected=f"2 to {n}: the head's BatchNorm needs two {what}",
                do="Choose another training.batch_size.",
            )
        steps.add("batch", str(given), "given", "--set training.batch_size", "")
        return given
    most = 64 if situation.frozen else (16 if n >= 128 else 8)
    rule = f"16 from 128 {what} on, else 8; 64 for a frozen encoder"
    if situation.num_studies is not None and not situation.frozen:
        most = max(2, most // _most_scans(overrides))
        rule = f"as many scans at once as without studies, 16 from 128 {what} on, else 8; at least 2 studies"
    batch = min(most, n)
    steps.add("batch", str(batch), rule, OPENMIND, f"{n} {what}")
    return batch


def _epochs(steps: Steps, situation: Situation, overrides: Mapping[str, JsonValue], tokens_fit: bool) -> int:
    """Step 2. The length."""
    n, what = situation.num_samples, situation.samples
    if "training.num_epochs" in overrides:
        steps.add("epochs", str(overrides["training.num_epochs"]), "given", "--set training.num_epochs", "")
        return 1
    if situation.adapt == "attentive" and not tokens_fit:
        epochs, source = 15, HEADCT
        rule = "15: the tokens do not fit task.cache_gb and are computed again in every epoch"
    elif situation.frozen:
        epochs = 200
        rule, source = "200: a step on stored features or tokens costs next to nothing", "convention of probing"
    else:
        budget = _budget(small_profile=situation.small_profile)
        epochs = epochs_of_encoder(n, small_profile=situation.small_profile)
        rule = f"15, or as many as show {budget} {'scans' if situation.num_studies is None else what}, at most 60"
        source = f"15 from {HEADCT}; the budget keeps few-shot runs from ending after a handful of steps"
    steps.add("epochs", str(epochs), rule, source, f"{n} labelled training {what}")
    return epochs


def _budget(*, small_profile: bool) -> int:
    """Scans that a run whose encoder learns shows at least, unless that takes more than 60 epochs."""
    return 960 if small_profile else 2400


def epochs_of_encoder(num_train: int, *, small_profile: bool) -> int:
    """Step 2 of a run whose encoder learns: how many epochs it lasts.

    Args:
        num_train: labelled training cases.
        small_profile: a synthetic laptop or template dataset.
    """
    return min(60, max(15, round(_budget(small_profile=small_profile) / num_train)))


def validation_interval(epochs: float) -> int:
    """Epochs between the validations of a run whose encoder learns.

    Args:
        epochs: how long the run is.
    """
    return max(1, round(epochs / _VALIDATIONS))


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


def _imbalance(steps: Steps, balance: JsonValue) -> None:
    """Step 5. How rare labels are weighed."""
    if balance == "sampling":
        steps.add(
            "imbalance",
            "class-balanced sampling",
            "a sample is a label, then one of its classes, then a patient of the class, then a scan, each with equal"
            " chances; what that does to the odds is taken off the logit when the classifier is saved",
            HEADCT,
            "asked for; one draw cannot balance several labels at once, so each has its share of the samples",
        )
        return
    if balance == "none":
        steps.add("imbalance", "none", "cases as they are", "asked for", "")
        return
    steps.add(
        "imbalance",
        "weighted loss",
        "the positive term of each label weighs negatives / positives of its known training cases, 1/20 to 20; its"
        " logarithm is taken off the logit when the classifier is saved, so that probabilities keep the prior",
        "Elkan 2001 (cost-sensitive learning), equivalent to class-balanced sampling label by label",
        "one sampling cannot balance several labels at once, and unknown labels differ from case to case",
    )


def _views(steps: Steps, frozen: bool, flip_lr: bool) -> ViewSettings:
    """Step 6. What the network sees of a scan while it learns."""
    flips = "half of the views mirrored with their labels" if flip_lr else "no flip"
    views = ViewSettings(
        global_count=1,
        global_scale=(1.0, 1.0) if frozen else (0.8, 1.0),
        local_count=0,
        flip_probability=0.5 if flip_lr else 0.0,
        shift_probability=0.0 if frozen else 0.5,
        shift=0.1,
        blur_probability=(0.0, 0.0),
        gamma_probability=(0.0, 0.0),
    )
    steps.add(
        "views",
        "whole head, not augmented"
        if frozen
        else f"one crop of .8-1 of the field of view, intensity shift .1, {flips}",
        "mild: a finding must stay in view, and left must stay left or be called right",
        "PITFALLS: flips while training left/right labels",
        "features are computed without augmentation" if frozen else "labels belong to the whole scan",
    )
    return views
