"""Tests of finetuning/settings.py, derive.py, cohort.py and start.py: what is derived, refused and named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_heads import INPUT, STORAGE

from headctssl.contract import LabelSpec
from headctssl.dataset.manifest import DatasetInfo, RawDataset
from headctssl.dataset.splits import Fold, Splits
from headctssl.errors import DataError, UsageError
from headctssl.finetuning.cohort import choose_labels, make_cohort
from headctssl.finetuning.derive import Situation, derive_settings, epochs_of_encoder, validation_interval
from headctssl.planning.run_settings import ViewSettings
from headctssl.presets import encoder_preset
from headctssl.settings import with_overrides

SPECS = (LabelSpec(name="left", mirror="right"), LabelSpec(name="right", mirror="left"))


def derived(
    overrides=None, *, preset="vit_b", n=100, held_out=10, adapt="full", pretrained=True, small=False, studies=None
):
    encoder = encoder_preset(preset).settings
    base = {
        "dataset_ids": (1,), "dataset_name": "Dataset001_A", "labels": SPECS, "adapt": adapt, "few_shots": None,
        "fold": "0", "config": preset, "method": "dino", "init": "abc", "storage": STORAGE, "input": INPUT,
        "encoder": encoder, "read_shape": (24, 24, 24), "num_train": n, "num_validation": held_out,
    }  # fmt: skip
    situation = Situation(n, held_out, adapt, encoder, pretrained, small, "float32", 1, studies)
    return derive_settings(base, situation, overrides or {})


def test_published_numbers_for_a_pretrained_vit_b():
    settings = derived(n=4000)
    training = settings.training
    assert training.lr == pytest.approx(1e-5)
    assert training.lr * settings.task.head_lr_scale == pytest.approx(1e-3)  # a hundred times
    assert (training.weight_decay, training.batch_size, settings.epochs) == (0.01, 16, 15)
    assert training.warmup_steps == training.num_steps // 10
    assert settings.views.flip_probability == 0
    assert not settings.views.flip_lr


def test_rates_follow_width_and_start():
    assert derived(preset="vit_tiny").training.lr == pytest.approx(4e-5)
    scratch = derived(preset="vit_b", pretrained=False, n=200)
    assert scratch.training.lr == pytest.approx(5e-4 * (16 / 256) ** 0.5)
    for settings in (derived(preset="resenc_s"), derived(preset="resenc_s", pretrained=False), scratch):
        assert settings.training.lr * settings.task.head_lr_scale == pytest.approx(1e-3)
    assert derived(adapt="linear").training.lr == 1e-2


@pytest.mark.parametrize(("n", "small", "epochs"), [(10, False, 60), (48, False, 50), (48, True, 20), (5000, True, 15)])
def test_length_follows_the_number_of_cases(n, small, epochs):
    settings = derived(n=n, small=small)
    assert settings.epochs == epochs
    assert settings.training.num_steps == epochs * max(1, n // settings.training.batch_size)
    assert epochs_of_encoder(n, small_profile=small) == epochs
    assert settings.task.validate_every == validation_interval(epochs)


def test_every_decision_has_a_reason_and_overrides_are_shown():
    settings = derived({"training.lr": 3e-4, "training.num_epochs": 2})
    assert all(d.rule and d.source for d in settings.decisions)
    assert settings.training.lr == 3e-4
    assert settings.training.min_lr == pytest.approx(3e-6)
    assert settings.epochs == 2
    assert {d.what for d in settings.decisions} >= {"epochs", "training.lr"}
    assert derived({"training.num_steps": 50}).training.warmup_steps == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.num_epochs": 2, "training.num_steps": 3}, "Both lengths"),
        ({"training.num_epochs": 0}, "does not accept"),
        ({"training.num_steps": 5, "training.warmup_steps": 6}, "longer than the run"),
        ({"training.lr": 1e-3, "training.min_lr": 1e-2}, "above the peak"),
        ({"training.nmu_steps": 3}, r"Unknown setting 'training.nmu_steps'"),
        ({"method.prototypes": 3}, "cannot be set"),
        ({"head": {"scans": "attention"}}, r"'head' cannot be set for this run"),
        ({"encoder.registers": 3}, "fixed by its checkpoint"),
        ({"training.batch_size": 1}, "batch does not fit"),
        ({"training.accumulation": 16}, "needs two scans"),
        ({"views.flip_probability": 0.5}, "flipped left and right or not at all"),
        ({"lora.rank": 4}, r"'lora.rank' has no effect"),
        ({"task.head_share": 0.2}, "has no effect here"),
        ({"task.balance": "sampling", "task.max_ratio": 3}, "has no effect here"),
        ({"head.heads": 2}, "has no effect here"),
        ({"task.schedule": "valley", "training.num_steps": 3}, "leave no step"),
        ({"task.schedule": "seesaw"}, r"'task.schedule' does not accept"),
    ],
)
def test_wrong_settings_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        derived(overrides, n=200)


@pytest.mark.parametrize(
    ("adapt", "key", "value"),
    [
        ("linear", "views.shift", 0.5),
        ("linear", "task.layer_decay", 0.5),
        ("attentive", "views.shift", 0.5),
        ("attentive", "task.schedule", "warmup"),
        ("lora", "task.cache_gb", 1),
        ("linear", "task.head_lr_scale", 2),
        ("linear", "task.validate_every", 2),
        ("linear", "training.accumulation", 2),
        ("linear", "training.precision", "bf16"),
        ("linear", "training.log_every", 2),
        ("linear", "training.checkpoint_every", 2),
        ("attentive", "task.whitening", 0.1),
        ("full", "task.whitening", 0.1),
        ("full", "views.local_count", 2),
        ("full", "views.local_shape", [12, 12, 12]),
        ("full", "views.augment_local", False),
    ],
)
def test_settings_without_effect_are_refused(adapt, key, value):
    with pytest.raises(UsageError, match=f"'{key}' has no effect with --adapt {adapt}"):
        derived({key: value}, adapt=adapt)
    if not key.startswith("views.local") and key != "views.augment_local":
        fits = {"task.cache_gb": "attentive", "task.whitening": "linear"}
        derived({key: value}, adapt=fits.get(key, "full"), n=200)


@pytest.mark.parametrize("scale", [[0.0, 1.0], [0.9, 0.8], [0.5, 1.1], [-0.5, 0.5]])
@pytest.mark.parametrize("group", ["global_scale", "local_scale"])
def test_crops_are_shares_of_the_field_of_view(group, scale):
    with pytest.raises(UsageError, match=f"'{group}' does not accept this value") as caught:
        with_overrides(ViewSettings(), {group: scale})
    assert "0 < smallest <= largest <= 1" in caught.value.expected


def rate_step(settings):
    return next(d for d in settings.decisions if d.what == "learning rate")


def test_a_given_rate_decides_the_rate_of_the_head_too():
    """The head stays at 1e-3, or at the encoder's rate where that is higher; the decision says so."""
    low = derived({"training.lr": 2e-4})
    assert low.training.lr * low.task.head_lr_scale == pytest.approx(1e-3)
    assert rate_step(low).value == "0.0002 encoder (transformer), 0.001 head"
    assert rate_step(low).source == "--set training.lr"
    high = derived({"training.lr": 3e-3})
    assert high.task.head_lr_scale == 1.0
    assert rate_step(high).value == "0.003 encoder (transformer), 0.003 head"
    both = derived({"training.lr": 2e-4, "task.head_lr_scale": 3})
    assert both.task.head_lr_scale == 3
    assert rate_step(both).value == "0.0002 encoder (transformer), 0.0006 head"
    linear = derived({"training.lr": 0.5}, adapt="linear")
    assert (linear.training.lr, linear.training.min_lr) == (0.5, 0.005)
    assert rate_step(linear).value == "0.5 (head)"
    with pytest.raises(UsageError, match=r"training\.lr' does not accept"):
        derived({"training.lr": -1})


def test_rates_of_the_adaptations_and_schedules():
    lora = derived(adapt="lora")
    assert (lora.training.lr, lora.training.lr * lora.task.head_lr_scale) == pytest.approx((1e-4, 1e-3))
    assert "adapters (transformer)" in rate_step(lora).value
    assert derived(adapt="attentive").training.lr == 1e-3
    for schedule in ("warmup", "sawtooth", "valley"):  # a tenth of the rate from scratch
        gentle = derived({"task.schedule": schedule}, n=200)
        scratch = derived(pretrained=False, n=200)
        assert gentle.training.lr == pytest.approx(scratch.training.lr / 10)
        assert gentle.training.lr * gentle.task.head_lr_scale == pytest.approx(1e-3)
        assert "a tenth of the rate from scratch" in rate_step(gentle).rule
    assert derived({"task.schedule": "warmup"}, preset="resenc_s").training.lr == pytest.approx(3e-5)
    for overrides, adapt in (
        ({"task.schedule": "valley"}, "full"),
        ({"task.schedule": "warmup"}, "full"),
        ({}, "lora"),
    ):
        with pytest.raises(UsageError, match="learn from the first step"):
            derived(overrides, adapt=adapt, pretrained=False)


def test_attentive_heads_and_its_memory():
    settings = derived(adapt="attentive", preset="vit_s")
    assert (settings.head.kind, settings.head.heads, settings.training.precision) == ("attentive", 6, "float32")
    assert derived(adapt="attentive", preset="vit_test").head.heads == 1
    assert settings.token_gb == pytest.approx(110 * (24 // 12) ** 3 * 384 * 4 / 1e9)
    assert settings.epochs == 200
    assert derived({"task.cache_gb": 0.001}, adapt="attentive", preset="vit_s").epochs == 15


def test_whitened_features_are_tried_where_validation_can_choose():
    settings = derived(adapt="linear")
    assert settings.task.whitening == 0.01
    assert next(d.value for d in settings.decisions if d.what == "whitening") == "0.01"
    assert derived({"task.whitening": None}, adapt="linear").task.whitening is None
    assert derived({"head.batch_norm": False}, adapt="linear").task.whitening is None
    assert derived(adapt="linear", held_out=0).task.whitening is None
    with pytest.raises(UsageError, match="Without validation cases nothing can choose"):
        derived({"task.whitening": 0.1}, adapt="linear", held_out=0)
    for adapt in ("full", "lora", "attentive"):
        assert derived(adapt=adapt).task.whitening is None


def test_flips_swap_sides_in_half_of_the_views():
    settings = derived({"views.flip_lr": True}, n=200)
    assert (settings.views.flip_lr, settings.views.flip_probability) == (True, 0.5)
    assert "mirrored with their labels" in next(d.value for d in settings.decisions if d.what == "views")
    assert derived({"views.flip_lr": True, "views.flip_probability": 0.2}, n=200).views.flip_probability == 0.2


def test_imbalance_is_decided_as_asked():
    for balance, value in (("weights", "weighted loss"), ("sampling", "class-balanced sampling"), ("none", "none")):
        settings = derived({} if balance == "weights" else {"task.balance": balance})
        assert next(d.value for d in settings.decisions if d.what == "imbalance") == value


def test_one_case_is_too_few():
    with pytest.raises(UsageError, match="too few"):
        derived(n=1)


def test_batch_and_length_of_studies_count_studies():
    asked = {"head.scans": "attention"}
    full, linear = (derived(asked, n=400, studies=200, adapt=adapt) for adapt in ("full", "linear"))
    assert (full.training.batch_size, linear.training.batch_size) == (16 // 4, 64)
    assert derived({**asked, "task.most_scans": 16}, n=400, studies=200).training.batch_size == 2
    assert full.epochs == epochs_of_encoder(200, small_profile=False) == 15
    assert full.training.samples_per_epoch == 200
    assert (full.num_train, full.head.scans) == (400, "attention")
    (told,) = [one for one in full.decisions if one.what == "scans"]
    assert told.because == "200 studies of 400 labelled training cases"
    assert not [one for one in derived(n=400).decisions if one.what == "scans"]
    with pytest.raises(UsageError, match="too few labelled training studies"):
        derived(asked, n=4, studies=1)


def test_the_digest_names_what_the_weights_depend_on():
    one = derived()
    assert one.digest() == derived({"training.num_workers": 7}).digest()
    assert one.digest() != derived({"training.seed": 7}).digest()


def test_labels_are_chosen_by_name():
    known = (*SPECS, LabelSpec(name="age", type="continuous"))
    assert choose_labels(known, None) == known
    assert [s.name for s in choose_labels(known, ["right"])] == ["right"]
    with pytest.raises(UsageError, match="Unknown label 'lfet'") as caught:
        choose_labels(known, ["lfet"])
    assert caught.value.expected == "one of age, left, right"
    for wrong in ([], ["left", "left"]):
        with pytest.raises(UsageError):
            choose_labels(known, wrong)
    with pytest.raises(UsageError, match="no labels"):
        choose_labels((), None)


def raw_dataset(tmp_path, columns):
    ids = [f"c{k}" for k in range(6)]
    frame = pd.DataFrame({"case_id": ids, "image": ids, "subject_id": ids, **columns}, dtype=str)
    info = DatasetInfo.model_validate({"name": "A", "labels": {name: {"type": "binary"} for name in columns}})
    return RawDataset(1, tmp_path, info, frame)


def test_a_cohort_leaves_out_what_is_not_stored_or_not_labelled(tmp_path):
    columns = {"b": ["1", "0", "", "0", "1", ""], "a": ["", "", "", "1", "0", "1"]}
    raw = raw_dataset(tmp_path, columns)
    splits = Splits(test=("c5",), folds=(Fold(train=("c0", "c1", "c2", "c3"), val=("c4",)),))
    specs = choose_labels(raw.info.labels, ["a", "b"])
    cohort = make_cohort(raw, splits, ["c0", "c1", "c2", "c4", "c5"], specs, fold="0", few_shots=None)
    assert (cohort.train, cohort.validation, cohort.test) == (("c0", "c1"), ("c4",), ("c5",))
    assert np.array_equal(cohort.labels(("c0", "c4")), np.array([[np.nan, 1], [0, 1]], np.float32), equal_nan=True)
    text = " ".join(cohort.notes)
    assert "1 of 4 training cases are not preprocessed" in text
    assert "1 training cases have none of the labels known" in text
    assert "'a' has no known training cases" in text
    everything = make_cohort(raw, splits, raw.case_ids, specs, fold="none", few_shots=None)
    assert everything.train == ("c0", "c1", "c3", "c4")
    assert everything.validation == ()
    with pytest.raises(UsageError, match="Unknown fold '1'"):
        make_cohort(raw, splits, raw.case_ids, specs, fold="1", few_shots=None)
    with pytest.raises(DataError, match="No training case"):
        make_cohort(raw, splits, ["c2", "c4"], specs, fold="0", few_shots=None)
