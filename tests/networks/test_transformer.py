"""Tests of the transformer block: attention in bfloat16, and work left out that nobody looks at."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from headctssl.networks import build_encoder
from headctssl.networks import transformer as module
from headctssl.networks.transformer import Block, attend


def test_attention_in_bfloat16_is_as_exact_as_its_inputs_allow() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 129, 64, requires_grad=True) for _ in range(3))
    exact = functional.scaled_dot_product_attention(query, key, value)
    wanted = torch.autograd.grad(exact.square().sum(), (query, key, value))
    with torch.autocast("cpu", torch.bfloat16):
        half = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert half.dtype is torch.bfloat16
    got = torch.autograd.grad(half.float().square().sum(), (query, key, value))
    for one, other in ((half, exact), *zip(got, wanted, strict=True)):
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_long_sequences_keep_no_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 9, 8, dtype=torch.bfloat16, requires_grad=True)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            attend(x, x, x)
        return sizes.count(2 * 9 * 9)

    assert kept() > 0
    monkeypatch.setattr(module, "MOST_TOKENS_UNFUSED", 8)
    assert kept() == 0


@pytest.mark.parametrize("wanted", [slice(1), slice(-4, None)])
def test_a_block_computes_wanted_tokens_as_if_it_gave_all(wanted: slice) -> None:
    torch.manual_seed(0)
    block = Block(24, 3, layer_scale=0.5).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    every, some = block(x)[:, wanted], block(x, wanted)
    torch.testing.assert_close(some, every)
    weights = list(block.parameters())
    for one, other in zip(
        torch.autograd.grad(some.square().sum(), [x, *weights]),
        torch.autograd.grad(every.square().sum(), [x, *weights]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["vit_test", "primus_test", "resenc_test"])
def test_features_alone_are_those_of_the_whole_output(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    volume = torch.rand(2, encoder.settings.in_channels, *encoder.settings.input_shape)
    torch.testing.assert_close(encoder.features_only(volume), encoder(volume).features)
    if encoder.drops_tokens:
        keep = torch.tensor([[0, 3], [1, 2]])
        torch.testing.assert_close(encoder.features_only(volume, keep), encoder(volume, keep=keep).features)
