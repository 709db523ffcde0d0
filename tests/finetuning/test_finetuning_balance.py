"""Tests of finetuning/balance.py: class-balanced sampling over patients."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import LabelSpec
from headctssl.finetuning.balance import sampled_shares, sampling_weights
from headctssl.loading.sampler import StepSampler, epoch_order

BINARY = (LabelSpec(name="a"), LabelSpec(name="b"))
NAN = float("nan")


def slow_chances(labels, subjects):
    """The draw of the docstring, branch by branch."""
    chances = Counter()
    columns = [c for c in range(labels.shape[1]) if len(set(labels[~np.isnan(labels[:, c]), c])) > 1]
    for c in columns:
        classes = sorted(set(labels[~np.isnan(labels[:, c]), c]))
        for value in classes:
            rows = [i for i in range(len(labels)) if labels[i, c] == value]
            for patient in {subjects[i] for i in rows}:
                scans = [i for i in rows if subjects[i] == patient]
                patients = len({subjects[i] for i in rows})
                for i in scans:
                    chances[i] += 1 / len(columns) / len(classes) / patients / len(scans)
    return [chances[i] for i in range(len(labels))]


cell = st.sampled_from([0.0, 1.0, NAN])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(cell, cell, st.integers(0, 4)), min_size=1, max_size=12))
def test_chances_are_those_of_the_draw(rows):
    labels = np.array([row[:2] for row in rows])
    subjects = np.array([row[2] for row in rows])
    weights = sampling_weights(labels, BINARY, subjects)
    expected = slow_chances(labels, subjects.tolist())
    if weights is None:
        assert sum(expected) == 0
    else:
        assert weights == pytest.approx(expected)
        assert weights.sum() == pytest.approx(1.0)


def test_classes_and_patients_come_equally_often():
    """Ten scans of patient 0 are negative, patient 1 has one positive scan and patient 2 one negative."""
    labels = np.array([[0.0]] * 10 + [[1.0], [0.0]])
    subjects = np.array([0] * 10 + [1, 2])
    weights = sampling_weights(labels, BINARY[:1], subjects)
    assert weights[10] == pytest.approx(0.5)
    assert weights[11] == pytest.approx(0.25)
    assert weights[:10].sum() == pytest.approx(0.25)
    assert sampled_shares(labels[:, 0], 2, weights) == pytest.approx([0.5, 0.5])
    assert sampled_shares(labels[:, 0], 2) == pytest.approx([11 / 12, 1 / 12])
    drawn = epoch_order(12, 4000, seed=0, epoch=0, weights=weights)
    assert np.mean(drawn == 10) == pytest.approx(0.5, abs=0.03)


def test_several_classes_and_numbers():
    specs = (LabelSpec(name="m", type="multiclass", classes=("x", "y", "z")), LabelSpec(name="age", type="continuous"))
    labels = np.array([[0, 50.0], [0, 60], [0, 70], [1, 55], [2, 57], [2, NAN]])
    weights = sampling_weights(labels, specs, np.arange(6))
    assert sampled_shares(labels[:, 0], 3, weights) == pytest.approx([1 / 3] * 3)
    assert sampling_weights(labels[:, 1:], specs[1:], np.arange(6)) is None
    assert sampled_shares(np.array([NAN]), 2) == pytest.approx([0, 0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_draw_is_a_function_of_seed_and_epoch_for_any_number_of_processes(world):
    weights = sampling_weights(np.array([[1.0]] + [[0.0]] * 15), BINARY[:1], np.arange(16))

    def steps(world, rank):
        return list(
            StepSampler(16, batch_size=8 // world, samples_per_epoch=16, seed=3, rank=rank, world_size=world,
                        num_steps=6, weights=weights)
        )  # fmt: skip

    alone = steps(1, 0)
    shared = [steps(world, rank) for rank in range(world)]
    for step in range(6):
        assert [ref for rank in range(world) for ref in shared[rank][step]] == alone[step]
    assert [r.case_index for s in alone[:2] for r in s] != [r.case_index for s in alone[2:4] for r in s]
