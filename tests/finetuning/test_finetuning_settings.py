"""Tests of finetuning/settings.py, cohort.py and start.py: what is derived, refused and named."""

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
from headctssl.finetuning.settings import Situation, derive_settings
from headctssl.presets import encoder_preset

SPECS = (LabelSpec(name="left", mirror="right"), LabelSpec(name="right", mirror="left"))


def derived(overrides=None, *, preset="vit_b", n=100, adapt="full", pretrained=True, small=False):
    encoder = encoder_preset(preset).settings
    base = {
        "dataset_ids": (1,), "dataset_name": "Dataset001_A", "labels": SPECS, "adapt": adapt, "few_shots": None,
        "fold": "0", "config": preset, "method": "dino", "init": "abc", "storage": STORAGE, "input": INPUT,
        "encoder": encoder, "read_shape": (24, 24, 24),
    }  # fmt: skip
    situation = Situation(n, 10, adapt, encoder, pretrained, small, "float32", 1)
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
        ({"training.nmu_steps": 3}, r"Unknown setting 'training.nmu_steps'"),
        ({"method.prototypes": 3}, "cannot be set"),
        ({"encoder.registers": 3}, "fixed by its checkpoint"),
        ({"training.batch_size": 1}, "batch does not fit"),
        ({"training.accumulation": 16}, "needs two scans"),
        ({"views.flip_lr": True}, "cannot be flipped"),
    ],
)
def test_wrong_settings_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        derived(overrides, n=200)


def test_one_case_is_too_few():
    with pytest.raises(UsageError, match="too few"):
        derived(n=1)


def test_the_digest_names_what_the_weights_depend_on():
    one = derived()
    assert one.digest() == derived({"training.num_workers": 7}).digest()
    assert one.digest() != derived({"training.seed": 7}).digest()


def test_labels_are_chosen_by_name():
    known = (*SPECS, LabelSpec(name="age", type="continuous"))
    chosen, notes = choose_labels(known, None)
    assert [s.name for s in chosen] == ["left", "right"]
    assert "age" in notes[0]
    assert [s.name for s in choose_labels(known, ["right"])[0]] == ["right"]
    with pytest.raises(UsageError, match="Unknown label 'lfet'") as caught:
        choose_labels(known, ["lfet"])
    assert caught.value.expected == "one of age, left, right"
    for wrong in (["age"], [], ["left", "left"]):
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
    specs = choose_labels(raw.info.labels, ["a", "b"])[0]
    cohort = make_cohort(raw, splits, ["c0", "c1", "c2", "c4", "c5"], specs, fold="0", few_shots=None, seed=0)
    assert (cohort.train, cohort.validation, cohort.test) == (("c0", "c1"), ("c4",), ("c5",))
    assert np.array_equal(cohort.labels(("c0", "c4")), np.array([[np.nan, 1], [0, 1]], np.float32), equal_nan=True)
    text = " ".join(cohort.notes)
    assert "1 of 4 training cases are not preprocessed" in text
    assert "1 training cases have none of the labels known" in text
    assert "'a' has no known training cases" in text
    everything = make_cohort(raw, splits, raw.case_ids, specs, fold="all", few_shots=None, seed=0)
    assert everything.train == ("c0", "c1", "c3", "c4")
    assert everything.validation == ()
    with pytest.raises(UsageError, match="Unknown fold '1'"):
        make_cohort(raw, splits, raw.case_ids, specs, fold="1", few_shots=None, seed=0)
    with pytest.raises(DataError, match="No training case"):
        make_cohort(raw, splits, ["c2", "c4"], specs, fold="0", few_shots=None, seed=0)
