"""Tests of finetuning/tasks.py: the masked weighted loss, the prior correction, independence of batch mates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_heads import INPUT

from headctssl.contract import HeadSettings
from headctssl.finetuning.settings import TaskSettings
from headctssl.finetuning.tasks import Classifier, ClassifyTask, class_weights, masked_loss, with_prior
from headctssl.finetuning.whole_head import encode
from headctssl.networks import build_encoder
from headctssl.networks.heads import build_head
from headctssl.planning.run_settings import ViewSettings
from headctssl.training.optimizer import check_groups

CPU = torch.device("cpu")


def slow_loss(logits, labels, weights):
    """The definition, entry by entry."""
    total = 0.0
    for row, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        for z, y, (negative, positive) in zip(row, truth, weights.tolist(), strict=True):
            if np.isnan(y):
                continue
            p = 1 / (1 + np.exp(-z))
            total += -positive * np.log(p) if y > 0.5 else -negative * np.log(1 - p)
    return total / labels.numel()


cell = st.sampled_from([0.0, 1.0, float("nan")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=8), st.integers(0, 1000))
def test_loss_equals_its_definition_and_unknown_entries_have_no_gradient(rows, seed):
    labels = torch.tensor(rows)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(labels.shape, generator=generator, requires_grad=True)
    weights = torch.rand(2, 2, generator=generator) + 0.1
    loss = masked_loss(logits, labels, weights)
    assert float(loss.detach()) == pytest.approx(slow_loss(logits, labels, weights), rel=1e-4, abs=1e-6)
    loss.backward()
    assert ((logits.grad == 0) == torch.isnan(labels)).all()


def test_class_weights_balance_and_are_bounded():
    labels = np.array([[1, 1, np.nan]] + [[0, 1, np.nan]] * 3 + [[np.nan, 1, 0]], dtype=np.float32)
    share = np.mean(~np.isnan(labels))
    weights = class_weights(labels, TaskSettings()).numpy() * share
    assert weights[0] == pytest.approx([4 / 6, 2.0])  # 1 positive, 3 negatives: ratio 3, mean weight 1
    assert weights[1] == pytest.approx([1, 1])  # one class: not weighted
    assert weights[2] == pytest.approx([1, 1])
    rare = np.zeros((1000, 1), dtype=np.float32)
    rare[0] = 1
    bounded = class_weights(rare, TaskSettings(max_ratio=20)).numpy()[0]
    assert bounded[1] / bounded[0] == pytest.approx(20)
    assert class_weights(rare, TaskSettings(balance="none")).numpy()[0] == pytest.approx([1, 1])


def test_the_loss_of_all_cases_is_a_mean_over_known_entries_in_any_division():
    generator = np.random.default_rng(0)
    labels = generator.choice([0.0, 1.0, np.nan], size=(24, 2), p=[0.3, 0.2, 0.5]).astype(np.float32)
    weights = class_weights(labels, TaskSettings(balance="none"))
    logits, target = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)), torch.from_numpy(labels)
    whole = masked_loss(logits, target, weights)
    entries = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
    torch.testing.assert_close(whole, entries[~target.isnan()].mean())
    for parts in (2, 3, 24):
        losses = [masked_loss(x, y, weights) for x, y in zip(logits.chunk(parts), target.chunk(parts), strict=True)]
        torch.testing.assert_close(torch.stack(losses).mean(), whole)


def small_classifier(outputs=2, seed=0):
    torch.manual_seed(seed)
    encoder = build_encoder("vit_test")
    return Classifier(encoder, build_head(HeadSettings(), encoder.embed_dim, outputs))


def test_prior_correction_restores_the_share_of_positives():
    torch.manual_seed(0)
    labels = (torch.rand(4000, 1) < 0.1).float()
    weights = class_weights(labels.numpy(), TaskSettings())
    classifier = small_classifier(1)
    bias = torch.zeros(1, requires_grad=True)  # the best constant logit under the weighted loss
    optimizer = torch.optim.LBFGS([bias], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = masked_loss(bias.expand(4000, 1), labels, weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(torch.sigmoid(bias.detach())) == pytest.approx(0.5, abs=0.01)  # the weighted optimum says half
    with torch.no_grad():
        classifier.head.linear.bias.copy_(bias)
    corrected = with_prior(classifier, weights)["head.linear.bias"]
    assert float(torch.sigmoid(corrected)) == pytest.approx(float(labels.mean()), abs=0.005)
    assert float(classifier.head.linear.bias.detach()) == pytest.approx(float(bias.detach()))  # a copy was changed


def test_a_prediction_does_not_depend_on_batch_mates_order_or_batch_size():
    classifier = small_classifier()
    classifier.train()
    views = torch.rand(6, 3, 24, 24, 24)
    with torch.no_grad():
        classifier(views)  # give the running statistics something
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    whole = encode(classifier, [views], CPU)
    single = encode(classifier, list(views.split(1)), CPU)
    turned = encode(classifier, [views.flip(0)], CPU).flip(0)
    assert torch.allclose(whole, single, atol=1e-5)
    assert torch.allclose(whole, turned, atol=1e-5)
    assert classifier.training  # the mode is given back
    assert all(torch.equal(before[k], v) for k, v in classifier.state_dict().items())  # and nothing was learnt
    with torch.no_grad():
        mixed = classifier(views[:2])
    assert not torch.allclose(mixed, whole[:2], atol=1e-3)  # in train mode it would depend


def test_a_task_gives_every_parameter_one_group_and_the_head_its_rate():
    task = ClassifyTask(small_classifier(), torch.ones(2, 2), TaskSettings(head_lr_scale=7), ViewSettings(), INPUT)
    groups = task.param_groups()
    check_groups(task, groups)
    scales = {group.name: (group.lr_scale, group.weight_decay) for group in groups}
    assert scales == {
        "encoder.decay": (1.0, True),
        "encoder.no_decay": (1.0, False),
        "head.decay": (7.0, True),
        "head.no_decay": (7.0, False),
    }
