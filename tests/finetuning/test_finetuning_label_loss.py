"""Tests of finetuning/label_loss.py, outputs.py and judging.py: slow references, one scale, invariances."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from headctssl.contract import LabelSpec, column_slices, output_slices
from headctssl.finetuning.balance import sampled_shares, sampling_weights
from headctssl.finetuning.judging import judge
from headctssl.finetuning.label_loss import HUBER_DELTA, LabelLoss, balancing_weights, standardised
from headctssl.finetuning.outputs import cumulative_logits, num_outputs, predictions
from headctssl.finetuning.settings import TaskSettings

BINARY = LabelSpec(name="bleed")
MANY = LabelSpec(name="kind", type="multiclass", classes=("none", "IPH", "SDH"))
GRADE = LabelSpec(name="grade", type="ordinal", classes=("0", "1", "2", "3"))
SHIFT = LabelSpec(name="shift_mm", type="continuous")
ALL = (BINARY, MANY, GRADE, SHIFT)
NATURAL = TaskSettings(balance="none")


def drawn(n=60, seed=0, unknown=0.3):
    """Truth (n, 4) of the four labels and outputs of a head."""
    rng = np.random.default_rng(seed)
    columns = [rng.random(n) < 0.3, rng.choice(3, n, p=[0.6, 0.3, 0.1]), rng.integers(0, 4, n), rng.normal(5, 3, n)]
    truth = np.stack(columns, axis=1).astype(np.float32)
    truth[rng.random(truth.shape) < unknown] = np.nan
    return truth, torch.from_numpy(rng.normal(size=(n, num_outputs(ALL))).astype(np.float32))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_entry(spec, z, y, weights, null):
    """The definition of one entry, in plain numbers."""
    if spec.type == "binary":
        return -weights[int(y)] * math.log(sigmoid(z[0]) if y == 1 else 1 - sigmoid(z[0]))
    if spec.type == "multiclass":
        total = sum(math.exp(v) for v in z)
        return -weights[int(y)] * math.log(math.exp(z[int(y)]) / total) * math.log(2) / math.log(len(z))
    if spec.type == "ordinal":
        level, parts = z[0], []
        for k in range(len(z)):
            level -= math.log1p(math.exp(z[k])) if k else 0.0
            parts.append(-math.log(sigmoid(level) if y > k else 1 - sigmoid(level)))
        return sum(parts) / len(parts)
    return slow_huber(z[0] - (y - spec.mean) / spec.deviation) * math.log(2) / null


def slow_huber(error):
    size = abs(error)
    return 0.5 * size**2 if size <= HUBER_DELTA else HUBER_DELTA * (size - 0.5 * HUBER_DELTA)


def slow_loss(labels, truth, outputs, task):
    known = ~np.isnan(truth)
    total = 0.0
    for column, (spec, where) in enumerate(zip(labels, output_slices(labels), strict=True)):
        values = truth[known[:, column], column].astype(float)
        classes = 2 if spec.type == "binary" else len(spec.classes)
        weights = balancing_weights(truth[:, column], classes, task) if spec.type != "continuous" else None
        null = np.mean([slow_huber((v - spec.mean) / spec.deviation) for v in values]) if spec.mean is not None else 1
        for z, y in zip(outputs[:, where].tolist(), truth[:, column].astype(float), strict=True):
            if not math.isnan(y):
                total += slow_entry(spec, z, y, weights, null)
    return total / known.sum()


@pytest.mark.parametrize("task", [TaskSettings(), NATURAL, TaskSettings(max_ratio=1.5)])
def test_the_loss_of_all_types_equals_its_definition(task):
    truth, outputs = drawn()
    labels = standardised(ALL, truth)
    loss = LabelLoss(labels, truth, task)
    found = float(loss(outputs, torch.from_numpy(truth)))
    assert found == pytest.approx(slow_loss(labels, truth, outputs, task), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_unknown_entries_have_no_gradient_and_known_ones_have(seed, unknown):
    truth, outputs = drawn(12, seed, unknown)
    outputs.requires_grad_()
    LabelLoss(standardised(ALL, truth), truth, TaskSettings())(outputs, torch.from_numpy(truth)).backward()
    for column, where in enumerate(output_slices(ALL)):
        moved = (outputs.grad[:, where] != 0).any(dim=1).numpy()
        assert np.array_equal(moved, ~np.isnan(truth[:, column]))


def test_what_knows_nothing_loses_ln_2_under_every_type():
    truth, _ = drawn(400, unknown=0.2)
    for column, spec in enumerate(ALL):
        one = truth[:, [column]]
        loss = LabelLoss(standardised((spec,), one), one, TaskSettings())
        nothing = torch.zeros(400, spec.num_outputs)
        if spec.type == "ordinal":
            nothing[:, 1:] = -50.0  # no distance between the thresholds
        assert float(loss(nothing, torch.from_numpy(one))) == pytest.approx(math.log(2), rel=1e-4), spec.name


def test_the_loss_of_all_cases_is_a_mean_over_known_entries_in_any_division():
    truth, outputs = drawn(24)
    loss, target = LabelLoss(standardised(ALL, truth), truth, TaskSettings()), torch.from_numpy(truth)
    whole = loss(outputs, target)
    for parts in (2, 3, 24):
        pieces = [loss(x, y) for x, y in zip(outputs.chunk(parts), target.chunk(parts), strict=True)]
        torch.testing.assert_close(torch.stack(pieces).mean(), whole)
    doubled = np.concatenate([truth, np.full_like(truth, np.nan)])
    again = LabelLoss(loss.labels, doubled, TaskSettings())
    torch.testing.assert_close(again(outputs, target), 2 * whole)  # half as much is known: each entry counts twice


def test_class_weights_balance_and_are_bounded():
    truth = np.array([1, 0, 0, 0, np.nan])
    assert balancing_weights(truth, 2, TaskSettings()) == pytest.approx([4 / 6, 2.0])  # ratio 3, mean weight 1
    assert balancing_weights(np.array([1.0, 1, np.nan]), 2, TaskSettings()) == pytest.approx([1, 1])
    assert balancing_weights(np.array([np.nan]), 2, TaskSettings()) == pytest.approx([1, 1])
    rare = np.zeros(1000)
    rare[0] = 1
    bounded = balancing_weights(rare, 2, TaskSettings(max_ratio=20))
    assert bounded[1] / bounded[0] == pytest.approx(20)
    assert balancing_weights(rare, 2, NATURAL) == pytest.approx([1, 1])
    three = balancing_weights(np.repeat([0.0, 1, 2], [60, 30, 10]), 4, TaskSettings())
    assert three / three[0] == pytest.approx([1, 2, 6, 1])  # the last does not occur
    assert np.repeat(three[:3], [60, 30, 10]).mean() == pytest.approx(1)


def test_two_classes_are_a_binary_label():
    truth, _ = drawn(80, unknown=0.1)
    one, z = truth[:, :1], torch.randn(80, 1, generator=torch.Generator().manual_seed(1))
    two = LabelSpec(name="bleed", type="multiclass", classes=("no", "yes"))
    binary, many = (LabelLoss((spec,), one, TaskSettings()) for spec in (BINARY, two))
    both = torch.cat([torch.zeros_like(z), z], dim=1)
    torch.testing.assert_close(many(both, torch.from_numpy(one)), binary(z, torch.from_numpy(one)))
    shift = many.prior_shift()
    torch.testing.assert_close(shift[1:] - shift[:1], binary.prior_shift())
    assert predictions((two,), both)[:, 1] == pytest.approx(predictions((BINARY,), z)[:, 0])


def test_prior_correction_restores_the_shares_of_the_classes():
    truth = np.repeat([0.0, 1, 2], [700, 250, 50])[:, None]
    loss = LabelLoss((MANY,), truth, TaskSettings())
    bias = torch.zeros(3, requires_grad=True)  # the best constant outputs under the weighted loss
    optimizer = torch.optim.LBFGS([bias], max_iter=100)

    def closure():
        optimizer.zero_grad()
        value = loss(bias.expand(1000, 3), torch.from_numpy(truth))
        value.backward()
        return value

    optimizer.step(closure)
    assert predictions((MANY,), bias.detach()[None])[0] == pytest.approx([1 / 3] * 3, abs=0.01)
    corrected = predictions((MANY,), (bias.detach() - loss.prior_shift())[None])[0]
    assert corrected == pytest.approx([0.7, 0.25, 0.05], abs=0.01)


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_renaming_classes_permutes_outputs_and_changes_no_loss(order):
    truth, outputs = drawn()
    one, raw = truth[:, [1]], outputs[:, output_slices(ALL)[1]]
    renamed = LabelSpec(name="kind", type="multiclass", classes=tuple(MANY.classes[k] for k in order))
    position = np.array([*(order.index(k) for k in range(3)), np.nan])
    moved = position[np.where(np.isnan(one), 3, one).astype(int)]
    first = LabelLoss((MANY,), one, TaskSettings())(raw, torch.from_numpy(one))
    second = LabelLoss((renamed,), moved, TaskSettings())(raw[:, list(order)], torch.from_numpy(moved))
    torch.testing.assert_close(first, second, check_dtype=False)
    moved_table = predictions((renamed,), raw[:, list(order)])
    assert moved_table == pytest.approx(predictions((MANY,), raw)[:, list(order)], abs=1e-12)


numbers = st.floats(-30, 30, width=32)


@settings(max_examples=80, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0.1, 10))
def test_ordinal_probabilities_sum_to_one_and_thresholds_never_cross(raw, temperature):
    spec = LabelSpec(name="g", type="ordinal", classes=tuple(str(k) for k in range(len(raw) + 1)))
    outputs = torch.tensor([raw])
    logits = cumulative_logits(outputs)[0]
    assert (logits[1:] <= logits[:-1]).all()
    found = predictions((spec,), outputs, temperature)[0]
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    higher = predictions((spec,), torch.cat([outputs[:, :1] + 1, outputs[:, 1:]], dim=1), temperature)[0]
    assert (higher.cumsum() <= found.cumsum() + 1e-12).all()  # a larger first output moves mass to higher classes only


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.floats(0.1, 10))
def test_standardising_and_back_is_the_identity(values, temperature):
    truth = np.array(values)[:, None]
    (spec,) = standardised((SHIFT,), truth)
    outputs = torch.from_numpy((truth - spec.mean) / spec.deviation)
    tolerance = 1e-9 * (abs(spec.mean) + spec.deviation)
    assert predictions((spec,), outputs, temperature) == pytest.approx(truth, rel=1e-9, abs=tolerance)


def test_a_continuous_label_in_another_unit_learns_the_same():
    truth, outputs = drawn()
    one, raw = truth[:, [3]].astype(np.float64), outputs[:, output_slices(ALL)[3]]
    losses, values = [], []
    for factor, offset in ((1.0, 0.0), (0.1, 40.0)):
        scaled = one * factor + offset
        labels = standardised((SHIFT,), scaled)
        losses.append(float(LabelLoss(labels, scaled, TaskSettings())(raw, torch.from_numpy(scaled))))
        values.append((predictions(labels, raw) - offset) / factor)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert values[0] == pytest.approx(values[1])


def test_a_label_that_never_varies_gives_finite_losses():
    truth = np.array([[1.0, 2, 0, 7]] * 5, dtype=np.float32)
    labels = standardised(ALL, truth)
    assert labels[3].deviation == 1
    outputs = torch.randn(5, num_outputs(labels), generator=torch.Generator().manual_seed(0))
    loss = LabelLoss(labels, truth, TaskSettings())
    assert torch.isfinite(loss.entries(outputs, torch.from_numpy(truth))).all()
    nothing = np.full((5, 4), np.nan, dtype=np.float32)
    unknown = LabelLoss(standardised(ALL, nothing), nothing, TaskSettings())
    assert float(unknown(outputs, torch.from_numpy(nothing))) == 0


def test_columns_of_outputs_and_predictions_follow_the_labels():
    assert [spec.num_outputs for spec in ALL] == [1, 3, 3, 1]
    assert MANY.columns == ("kind=none", "kind=IPH", "kind=SDH")
    assert (BINARY.columns, SHIFT.columns) == (("bleed",), ("shift_mm",))
    truth, outputs = drawn()
    labels = standardised(ALL, truth)
    table = predictions(labels, outputs)
    for spec, inside, outside in zip(labels, output_slices(labels), column_slices(labels), strict=True):
        assert np.array_equal(table[:, outside], predictions((spec,), outputs[:, inside]))


def test_the_verdict_is_the_mean_share_of_pairs_ranked_right():
    truth, outputs = drawn(90)
    loss = LabelLoss(standardised(ALL, truth), truth, TaskSettings())
    verdict = judge(outputs, truth, loss)
    table = predictions(loss.labels, outputs)
    where, scores = column_slices(loss.labels), []
    for column, spec in enumerate(loss.labels):
        known = ~np.isnan(truth[:, column])
        label, found = truth[known, column], table[known, where[column]]
        if spec.type == "multiclass":
            scores.append(np.mean([roc_auc_score(label == k, found[:, k]) for k in range(3)]))
            continue
        score = found @ np.arange(4) if spec.type == "ordinal" else found[:, 0]
        pairs = [(i, j) for i in range(len(label)) for j in range(len(label)) if label[i] > label[j]]
        scores.append(np.mean([1.0 * (score[i] > score[j]) + 0.5 * (score[i] == score[j]) for i, j in pairs]))
    assert verdict.score == pytest.approx(np.mean(scores))
    assert verdict.line == {
        "validation_loss": verdict.loss,
        "validation_auroc": pytest.approx(scores[0]),
        "validation_score": verdict.score,
    }
    assert verdict.loss == pytest.approx(float(loss(outputs, torch.from_numpy(truth))))
    only = LabelLoss((BINARY,), truth[:, :1], TaskSettings())
    assert set(judge(outputs[:, :1], truth[:, :1], only).line) == {"validation_loss", "validation_auroc"}
    same = np.ones_like(truth[:5])
    assert judge(outputs[:5], same, loss).score is None


def test_smoothing_is_for_training_alone_and_as_defined():
    truth, outputs = drawn()
    loss = LabelLoss(standardised(ALL, truth), truth, TaskSettings(balance="none", label_smoothing=0.2))
    plain = LabelLoss(standardised(ALL, truth), truth, NATURAL)
    target = torch.from_numpy(truth)
    torch.testing.assert_close(loss.entries(outputs, target), plain.entries(outputs, target))
    smooth = loss.entries(outputs, target, smooth=True)
    known = ~torch.isnan(target)
    for row in range(len(truth)):
        if known[row, 0]:
            p, y = sigmoid(float(outputs[row, 0])), 0.8 * float(truth[row, 0]) + 0.1
            expected = -(y * math.log(p) + (1 - y) * math.log(1 - p)) * loss.known_factor
            assert float(smooth[row, 0]) == pytest.approx(expected, rel=1e-4)
        if known[row, 1]:
            logs = torch.log_softmax(outputs[row, 1:4], 0)
            share = torch.full((3,), 0.2 / 3)
            share[int(truth[row, 1])] += 0.8
            expected = float(-(share * logs).sum()) * math.log(2) / math.log(3) * loss.known_factor
            assert float(smooth[row, 1]) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(smooth[:, 3], plain.entries(outputs, target)[:, 3])  # numbers are not smoothed


@pytest.mark.parametrize("spec", [BINARY, MANY], ids=lambda s: s.type)
def test_what_balanced_draws_do_to_the_odds_is_taken_off_again(spec):
    """The best constant outputs under the draw, corrected, are the shares of the cases."""
    rng = np.random.default_rng(0)
    classes = max(2, len(spec.classes))
    truth = rng.choice(classes, (3000, 1), p=[0.9, 0.1] if classes == 2 else [0.7, 0.2, 0.1]).astype(np.float32)
    chances = sampling_weights(truth, (spec,), np.arange(3000) // 2)
    loss = LabelLoss((spec,), truth, TaskSettings(balance="sampling"), chances)
    natural = sampled_shares(truth[:, 0], classes)
    drawn_shares = sampled_shares(truth[:, 0], classes, chances)
    assert drawn_shares == pytest.approx([1 / classes] * classes)
    logits = torch.log(torch.tensor(drawn_shares, dtype=torch.float32))
    best = logits[1:] - logits[:1] if classes == 2 else logits
    corrected = predictions((spec,), (best - loss.prior_shift())[None])[0]
    assert corrected == pytest.approx(natural[1:] if classes == 2 else natural, abs=1e-6)
    assert loss.known_factor == pytest.approx(1.0)


def test_the_scale_follows_what_is_known_of_the_drawn_cases():
    truth = np.array([[0, np.nan], [1, np.nan], [np.nan, 0], [np.nan, 1], [0, 1]], np.float32)
    pair = (BINARY, LabelSpec(name="other"))
    chances = np.array([0.1, 0.1, 0.1, 0.1, 0.6])
    loss = LabelLoss(pair, truth, TaskSettings(balance="sampling"), chances)
    assert loss.known_factor == pytest.approx(1 / (0.4 * 0.5 + 0.6))
