"""Tests of networks/lora.py: the base at the start to the bit, merged as unmerged, frozen, targets by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from headctssl.errors import UsageError
from headctssl.networks import build_encoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.lora import LoraLinear, add_lora, lora_layers, merge_lora

ADAPTED = ("vit_test", "primus_test", "swin_unetr_test")
BOTH = ("qkv", "proj")


def encoder_of(preset: str) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(preset).eval()


def views(encoder: Encoder) -> torch.Tensor:
    side = tuple(2 * n for n in encoder.token_size)
    return torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(1))


def outputs(encoder: Encoder, x: torch.Tensor, half: bool) -> list[torch.Tensor]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = encoder(x)
        return [out.tokens, out.features, encoder.features_only(x)]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def stir(encoder: Encoder) -> None:
    """As after training: no adapter is zero any more."""
    generator = torch.Generator().manual_seed(3)
    for _, layer in lora_layers(encoder):
        layer.up.data.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("preset", ADAPTED)
def test_it_begins_as_the_base_to_the_bit(preset: str, half: bool) -> None:
    encoder = encoder_of(preset)
    x = views(encoder)
    before = outputs(encoder, x, half)
    names = add_lora(encoder, (*BOTH, "mlp"), rank=2, alpha=4, dropout=0.3)
    assert names
    for one, two in zip(before, outputs(encoder, x, half), strict=True):
        assert torch.equal(bits(one), bits(two))
    stir(encoder)
    assert not torch.allclose(before[1].float(), outputs(encoder, x, half)[1].float(), atol=1e-3)


@pytest.mark.parametrize("preset", ADAPTED)
def test_merged_equals_unmerged_and_has_the_names_of_the_base(preset: str) -> None:
    base = encoder_of(preset)
    encoder = copy.deepcopy(base)
    add_lora(encoder, (*BOTH, "mlp"), rank=2, alpha=4)
    stir(encoder)
    x = views(encoder)
    unmerged = outputs(encoder, x, False)
    adapted = [name for name, _ in lora_layers(encoder)]
    assert merge_lora(encoder) == len(adapted)
    assert list(encoder.state_dict()) == list(base.state_dict())
    for one, two in zip(unmerged, outputs(encoder, x, False), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    changed = {n for n, p in encoder.state_dict().items() if not torch.equal(p, base.state_dict()[n])}
    assert changed == {f"{name}.weight" for name in adapted}


def test_a_layer_is_its_definition_and_its_merge_exact_but_for_rounding() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 9).double()
    layer = LoraLinear(plain, rank=2, alpha=5, dropout=0.0)
    layer.up.data.normal_()
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    by_hand = x @ (plain.weight + 2.5 * layer.up @ layer.down).T + plain.bias
    torch.testing.assert_close(layer(x), by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.merged()(x), by_hand, rtol=1e-12, atol=1e-12)
    assert isinstance(LoraLinear(nn.Linear(6, 9, bias=False), rank=2, alpha=1, dropout=0).merged().bias, type(None))


def test_dropout_acts_on_the_adapter_alone_and_in_training_alone() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(40, 40), rank=2, alpha=2, dropout=0.5)
    x = torch.randn(3, 40)
    assert torch.equal(layer.train()(x), layer.eval()(x))  # up is zero: what is dropped does not show
    layer.up.data.normal_()
    assert torch.equal(layer(x), layer(x))
    assert not torch.allclose(layer.train()(x), layer(x))


@pytest.mark.parametrize("preset", ADAPTED)
def test_only_adapters_learn_and_every_one_of_them_does(preset: str) -> None:
    encoder = encoder_of(preset).train()
    names = add_lora(encoder, BOTH, rank=2, alpha=4)
    stir(encoder)
    encoder(views(encoder)).features.square().sum().backward()
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {f"{name}.{part}" for name in names for part in ("down", "up")}
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (name in learning), name
        assert name not in learning or bool(parameter.grad.abs().sum() > 0), name


def test_targets_are_names() -> None:
    assert add_lora(encoder_of("vit_test"), ("qkv",), rank=2, alpha=4) == ("blocks.0.attn.qkv", "blocks.1.attn.qkv")
    apart = add_lora(encoder_of("primus_test"), ("qkv",), rank=2, alpha=4)
    assert apart[:3] == ("blocks.0.attn.k_proj", "blocks.0.attn.q_proj", "blocks.0.attn.v_proj")
    assert all(".mlp.fc" in name for name in add_lora(encoder_of("vit_test"), ("mlp",), rank=2, alpha=4))
    encoder = encoder_of("vit_test")
    with pytest.raises(UsageError, match="called 'qvk'") as caught:
        add_lora(encoder, ("proj", "qvk"), rank=2, alpha=4)
    assert "attn, blocks, fc1, fc2, mlp, proj, qkv" in str(caught.value.expected)
    assert not list(lora_layers(encoder))  # nothing was changed
    assert all(p.requires_grad for p in encoder.parameters())
    with pytest.raises(UsageError, match="no smaller than a layer"):
        add_lora(encoder, ("proj",), rank=48, alpha=4)


@pytest.mark.parametrize("preset", ["resenc_test", "unet3d_test", "segresnet_test"])
def test_a_cnn_is_refused(preset: str) -> None:
    with pytest.raises(UsageError, match="a CNN has none") as caught:
        add_lora(encoder_of(preset), BOTH, rank=2, alpha=4)
    assert "--adapt attentive" in str(caught.value.do)
