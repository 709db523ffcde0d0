"""Tests of finetuning/tasks.py and ensemble.py: the prior correction, independence of batch mates, parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_heads import INPUT

from headctssl.contract import HeadSettings, LabelSpec
from headctssl.finetuning.ensemble import Members
from headctssl.finetuning.label_loss import LabelLoss, standardised
from headctssl.finetuning.outputs import num_outputs, predictions
from headctssl.finetuning.settings import TaskSettings
from headctssl.finetuning.tasks import Classifier, ClassifyTask, Features, with_prior
from headctssl.finetuning.whole_head import encode
from headctssl.networks import build_encoder
from headctssl.networks.heads import build_head
from headctssl.planning.run_settings import ViewSettings
from headctssl.training.optimizer import check_groups
from headctssl.types import Clock, Views

CPU = torch.device("cpu")


def small_classifier(outputs=2, seed=0, kind="linear"):
    torch.manual_seed(seed)
    encoder = build_encoder("vit_test")
    return Classifier(encoder, build_head(HeadSettings(kind=kind), encoder.embed_dim, outputs))


def test_prior_correction_restores_the_share_of_positives():
    torch.manual_seed(0)
    labels = (torch.rand(4000, 1) < 0.1).float()
    criterion = LabelLoss((LabelSpec(name="rare"),), labels.numpy(), TaskSettings())
    classifier = small_classifier(1)
    bias = torch.zeros(1, requires_grad=True)  # the best constant logit under the weighted loss
    optimizer = torch.optim.LBFGS([bias], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = criterion(bias.expand(4000, 1), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(torch.sigmoid(bias.detach())) == pytest.approx(0.5, abs=0.01)  # the weighted optimum says half
    with torch.no_grad():
        classifier.head.linear.bias.copy_(bias)
    corrected = with_prior(classifier, criterion)["head.linear.bias"]
    assert float(torch.sigmoid(corrected)) == pytest.approx(float(labels.mean()), abs=0.005)
    assert float(classifier.head.linear.bias.detach()) == pytest.approx(float(bias.detach()))  # a copy was changed


GRADES = ("none", "mild", "severe")


@pytest.mark.parametrize(
    ("spec", "seen", "expected"),
    [
        (LabelSpec(name="x"), [0, 0, 0], [1 / 5]),
        (LabelSpec(name="x"), [1], [2 / 3]),
        (LabelSpec(name="x"), [], [1 / 2]),
        (LabelSpec(name="x", type="multiclass", classes=GRADES), [1, 1], [1 / 5, 3 / 5, 1 / 5]),
        (LabelSpec(name="x", type="ordinal", classes=GRADES), [2, 2], [1 / 5, 1 / 5, 3 / 5]),
        (LabelSpec(name="x", type="ordinal", classes=GRADES), [0], [2 / 4, 1 / 4, 1 / 4]),
        (LabelSpec(name="x", type="continuous"), [7.5, 7.5], [7.5]),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_label_of_one_value_gets_the_same_prediction_for_every_case(spec, seen, expected, kind):
    truth = np.full((4, 2), np.nan)
    truth[: len(seen), 0], truth[:, 1] = seen, [0, 1, 0, 1]
    specs = standardised((spec, LabelSpec(name="other")), truth)
    classifier = small_classifier(num_outputs(specs), kind=kind).eval()
    with torch.no_grad():
        classifier.head.linear.weight.normal_()
        before = classifier(torch.rand(3, 3, 24, 24, 24))
    classifier.load_state_dict(with_prior(classifier, LabelLoss(specs, truth, TaskSettings())))
    with torch.no_grad():
        after = classifier(torch.rand(3, 3, 24, 24, 24))
    found = predictions(specs, after)
    assert found[:, :-1] == pytest.approx(np.tile(expected, (3, 1)), abs=1e-6)
    assert before[:, :-1].std(dim=0).min() > 0
    assert np.ptp(found[:, -1]) > 0, "the other label is as it was learnt"


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


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_members_give_outputs_and_features_of_each_from_one_pass_of_its_encoder(kind):
    members = [small_classifier(seed=seed, kind=kind).eval() for seed in (0, 1)]
    views = torch.rand(3, 3, 24, 24, 24)
    with torch.no_grad():
        outputs = [member(views) for member in members]
        features = [Features(member.encoder)(views) for member in members]
    passes = [0, 0]
    for k, member in enumerate(members):
        # Every pass of an encoder, of tokens or of features alone, goes through its first block.
        member.encoder.blocks[0].register_forward_hook(lambda *_, k=k: passes.__setitem__(k, passes[k] + 1))
    assert torch.allclose(
        encode(Members(members, features=True), [views], CPU), torch.cat([*outputs, *features], 1), atol=1e-5
    )
    assert passes == [1, 1]
    assert torch.equal(encode(Members(members, features=False), [views], CPU), torch.cat(outputs, 1))
    assert not torch.allclose(features[0], features[1], atol=0.1)


@pytest.mark.parametrize("sizes", [(1, 3, 2), (3, 3), (1, 1)])
def test_the_loss_of_a_batch_is_the_mean_over_its_studies(sizes):
    """Scans as `BagSampler` numbers them, the labels of a study on each of its scans."""
    most, specs = 3, (LabelSpec(name="a"), LabelSpec(name="b"))
    torch.manual_seed(0)
    network = Classifier(
        build_encoder("vit_test"), build_head(HeadSettings(scans="attention", batch_norm=False), 48, 2)
    )
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_()
    truth = np.array([[1, 0], [0, np.nan], [1, 1]], np.float32)[: len(sizes)]
    loss = LabelLoss(specs, truth, TaskSettings(balance="none"))
    views = ViewSettings(global_count=1, local_count=0)
    task = ClassifyTask(network, loss, TaskSettings(), views, INPUT, most_scans=most).eval()
    numbers = [6 * most + study * most + k for study, size in enumerate(sizes) for k in range(size)]
    volume = torch.rand(len(numbers), 3, *INPUT.shape)
    labels = torch.from_numpy(np.repeat(truth, sizes, axis=0))
    batch = Views({"global": (volume,)}, {}, torch.tensor(numbers), seed=0, epoch=0, labels=labels)
    found = task.training_step(batch, Clock(0, 1, 0, 1)).loss
    pooled, first = [], 0
    for size in sizes:
        said = network.eval()(volume[first : first + size])
        pooled.append(said[:, -1].softmax(dim=0) @ said[:, :-1])
        first += size
    torch.testing.assert_close(found, loss(torch.stack(pooled), torch.from_numpy(truth)), rtol=1e-4, atol=1e-5)


def test_a_task_gives_every_parameter_one_group_and_the_head_its_rate():
    settings = TaskSettings(head_lr_scale=7)
    loss = LabelLoss((LabelSpec(name="a"), LabelSpec(name="b")), np.eye(2), settings)
    task = ClassifyTask(small_classifier(), loss, settings, ViewSettings(), INPUT)
    groups = task.param_groups()
    check_groups(task, groups)
    scales = {group.name: (group.lr_scale, group.weight_decay) for group in groups}
    assert scales == {
        "encoder.decay": (1.0, True),
        "encoder.no_decay": (1.0, False),
        "head.decay": (7.0, True),
        "head.no_decay": (7.0, False),
    }
