"""Tests of networks/scan_attention.py: the pooling against its definition, and what a study may not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headctssl.contract import HeadSettings, LabelSpec
from headctssl.finetuning.outputs import pooled_outputs
from headctssl.methods.method import no_decay_names
from headctssl.networks.heads import AttentiveHead, ClassifierHead, build_head
from headctssl.networks.scan_attention import pool_scans

LABELS = (LabelSpec(name="a"), LabelSpec(name="b"), LabelSpec(name="c"))
KINDS = ("linear", "attentive")


def made(kind: str, scans: str = "attention", **more: object) -> ClassifierHead:
    torch.manual_seed(0)
    settings = HeadSettings.model_validate({"kind": kind, "heads": 2, "scans": scans, "scan_width": 5, **more})
    head = build_head(settings, 8, 3)
    with torch.no_grad():  # far from the start, where every scan weighs alike
        for _, parameter in sorted(head.named_parameters(), key=lambda pair: (pair[0].startswith("scans"), pair[0])):
            parameter.normal_()
    return head.eval()


def inputs(kind: str, n: int, seed: int = 1) -> Tensor:
    shape = (n, 8) if kind == "linear" else (n, 6, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow(head: ClassifierHead, vectors: list[Tensor]) -> Tensor:
    """One study, scan by scan in double precision: equations 7 and 9 of arXiv 1802.04712, then the linear layer."""
    assert head.scans is not None
    v, u, w = (layer.weight.double() for layer in (head.scans.tanh, head.scans.gate, head.scans.score))
    scores = []
    for h in vectors:
        gated = [math.tanh(float(v[d] @ h)) / (1 + math.exp(-float(u[d] @ h))) for d in range(len(v))]
        scores.append(sum(float(w[0, d]) * gated[d] for d in range(len(v))))
    total = sum(math.exp(s) for s in scores)
    pooled = torch.stack([math.exp(s) / total * h for s, h in zip(scores, vectors, strict=True)]).sum(dim=0)
    return head.linear.weight.double() @ pooled + head.linear.bias.double()


def vectors_of(head: ClassifierHead, x: Tensor) -> Tensor:
    """What the last layer reads of each scan, found from outside: the head with the identity as its last layer."""
    width = head.linear.in_features
    linear, scans = head.linear, head.scans
    head.linear, head.scans = torch.nn.Linear(width, width, bias=False), None
    torch.nn.init.eye_(head.linear.weight)
    found: Tensor = head(x).double()
    head.linear, head.scans = linear, scans
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pooling_equals_its_definition(kind: str) -> None:
    head = made(kind)
    x = inputs(kind, 7)
    said, study = head(x), torch.tensor([0, 0, 1, 2, 2, 2, 2])
    found = pool_scans(said[:, :-1], said[:, -1], study, 3)
    vectors = vectors_of(head, x)
    wanted = torch.stack([slow(head, [h for h, s in zip(vectors, study, strict=True) if s == k]) for k in range(3)])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert (found[2] - said[3:, :-1].mean(dim=0)).abs().max() > 1e-2, "the weights are not alike"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_study_of_one_scan_is_what_the_plain_head_says_through_the_same_parameters(kind: str) -> None:
    head, plain = made(kind), made(kind, "single")
    assert set(head.state_dict()) - set(plain.state_dict()) == {
        f"scans.{name}.weight" for name in ("tanh", "gate", "score")
    }
    plain.load_state_dict({name: head.state_dict()[name] for name in plain.state_dict()})
    x = inputs(kind, 4)
    said, one_each = head(x), torch.arange(4)
    assert torch.equal(said[:, :-1], plain(x))
    assert torch.equal(pool_scans(said[:, :-1], said[:, -1], one_each, 4), plain(x))
    assert torch.equal(pooled_outputs(LABELS, said, [[k] for k in range(4)]), plain(x))


studies = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(sizes=studies, seed=st.integers(0, 1000), size=st.sampled_from([1.0, 30.0, 1e4]), data=st.data())
def test_a_study_depends_on_its_scans_alone_in_any_order(
    sizes: list[int], seed: int, size: float, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    study = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    outputs = torch.randn(len(study), 3, generator=generator)
    scores = size * torch.randn(len(study), generator=generator)
    found = pool_scans(outputs, scores, study, len(sizes))
    order = data.draw(st.permutations(range(len(study))))
    turned = pool_scans(outputs[order], scores[order], study[order], len(sizes))
    torch.testing.assert_close(found, turned, rtol=1e-5, atol=1e-6)
    for k in range(len(sizes)):  # alone, where nothing is masked
        mine = study == k
        alone = pool_scans(outputs[mine], scores[mine], torch.zeros(int(mine.sum()), dtype=torch.int64), 1)
        torch.testing.assert_close(found[k], alone[0], rtol=1e-5, atol=1e-6)
        low, high = outputs[mine].amin(0), outputs[mine].amax(0)
        assert bool(((found[k] >= low - 1e-5) & (found[k] <= high + 1e-5)).all())
    others = torch.where(study[:, None] == 0, outputs, 1e6 * outputs)
    elsewhere = torch.where(study == 0, scores, -scores)
    assert torch.equal(pool_scans(others, elsewhere, study, len(sizes))[0], found[0])


@settings(max_examples=40, deadline=None)
@given(sizes=studies, seed=st.integers(0, 1000))
def test_prediction_pools_as_training_does_and_no_study_changes_another(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    study = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    said = torch.randn(len(study), 4, generator=generator) * 3
    groups = [torch.flatten((study == k).nonzero()).tolist() for k in range(len(sizes))]
    found = pooled_outputs(LABELS, said, groups)
    torch.testing.assert_close(found, pool_scans(said[:, :-1], said[:, -1], study, len(sizes)), rtol=1e-5, atol=1e-6)
    for k, group in enumerate(groups):
        assert torch.equal(pooled_outputs(LABELS, said[group], [range(len(group))])[0], found[k])


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_in_float32_and_no_gradient_crosses_studies(kind: str) -> None:
    head = made(kind).train()
    x = inputs(kind, 6).bfloat16().requires_grad_()
    study = torch.tensor([0, 1, 0, 1, 1, 0])
    head.norm.eval()  # its statistics would tie the scans of a batch together, as they do without studies
    with torch.autocast("cpu", torch.bfloat16):
        said = head(x)
        pooled = pool_scans(said[:, :-1], said[:, -1], study, 2)
    assert pooled.dtype is torch.float32
    pooled[0].square().sum().backward()
    assert x.grad is not None
    reached = x.grad.flatten(1).abs().sum(dim=1) > 0
    assert torch.equal(reached, study == 0)
    assert head.scans is not None
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.scans.parameters())
    assert not [name for name in no_decay_names(head) if name.startswith("scans")]


def test_it_begins_near_the_mean() -> None:
    torch.manual_seed(0)
    head = build_head(HeadSettings(scans="attention"), 192, 3).eval()
    with torch.no_grad():
        scores = head(torch.randn(50, 192))[:, -1]
    weights = scores.view(10, 5).softmax(dim=1)
    assert (weights - 0.2).abs().max() < 0.02
    assert isinstance(build_head(HeadSettings(kind="attentive", scans="attention"), 8, 1), AttentiveHead)
