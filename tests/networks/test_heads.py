"""Tests of networks/heads.py: attentive pooling against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from headctssl.contract import HeadSettings
from headctssl.errors import UsageError
from headctssl.methods.method import no_decay_names
from headctssl.networks.heads import AttentiveHead, LinearHead, build_head


def attentive(heads: int = 3, **more: object) -> AttentiveHead:
    torch.manual_seed(0)
    head = AttentiveHead(12, 2, heads=heads, **more)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (head.query, head.key, head.value):
            parameter.normal_()  # far from the start, where every token weighs alike
    return head.eval()


def slow(head: AttentiveHead, tokens: torch.Tensor) -> torch.Tensor:
    """Token by token: keys, values and scores of each head as in the paper of attention (arXiv 1706.03762)."""
    heads, width = head.query.shape
    rows = []
    for sample in tokens:
        pooled = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = [float(head.query[h] @ (head.key[part] @ token)) / math.sqrt(width) for token in sample]
            total = sum(math.exp(s) for s in scores)
            values = [head.value[part] @ token * math.exp(s) / total for s, token in zip(scores, sample, strict=True)]
            pooled.append(torch.stack(values).sum(0))
        rows.append(head.linear(torch.cat(pooled)))
    return torch.stack(rows)


@pytest.mark.parametrize("heads", [1, 3])
@torch.no_grad()
def test_attentive_pooling_equals_its_definition_and_does_not_know_the_order(heads: int) -> None:
    head = attentive(heads, batch_norm=False)
    tokens = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(tokens), slow(head, tokens), rtol=1e-4, atol=1e-5)
    turned = head(tokens[:, torch.randperm(7, generator=torch.Generator().manual_seed(2))])
    torch.testing.assert_close(head(tokens), turned, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(head(tokens), head(tokens[:, :3]), atol=1e-2)


@torch.no_grad()
def test_the_norm_is_of_each_channel_over_samples_and_tokens() -> None:
    head = attentive().train()
    tokens = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1)) * 3 + 1
    flat = tokens.flatten(0, 1)
    normed = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(head(tokens), slow(head, normed.view_as(tokens)), rtol=1e-4, atol=1e-4)
    head.eval()
    torch.testing.assert_close(head(tokens)[:1], head(tokens[:1]))  # no batch mates outside training


def test_it_learns_in_float32_and_its_queries_without_weight_decay() -> None:
    head = attentive().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(torch.randn(4, 5, 12).bfloat16())
    assert logits.dtype is torch.float32
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())
    assert no_decay_names(head) == {"query", "linear.bias"}


def test_the_settings_choose_the_head() -> None:
    assert isinstance(build_head(HeadSettings(), 12, 2), LinearHead)
    head = build_head(HeadSettings(kind="attentive", heads=4, batch_norm=False, dropout=0.5), 12, 2)
    assert isinstance(head, AttentiveHead)
    assert (head.query.shape, head.dropout.p, isinstance(head.norm, torch.nn.Identity)) == ((4, 3), 0.5, True)
    with pytest.raises(UsageError, match="cannot be shared out"):
        build_head(HeadSettings(kind="attentive", heads=5), 12, 2)
