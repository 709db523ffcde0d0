"""Thin convolution: gradients in bfloat16 against float64, whatever lies in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from headctssl.networks import build_encoder
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.thin_convolution import GuardedConv3d, guard_convolutions


def gradients(layer: nn.Module, x: torch.Tensor, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    (layer(x) * outer).sum().backward()
    weight = layer.get_parameter("weight")
    assert weight.grad is not None
    assert x.grad is not None
    return weight.grad, x.grad


@pytest.mark.parametrize("channels", [16, 12, 3])
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 2), (1, 4, 4), (1, 2, 3), (3, 2, 4)])
def test_bf16_gradients_are_those_of_float64(shape: tuple[int, int, int], channels: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(channels, 32, 3, padding=1)
    guard_convolutions(layer)
    assert isinstance(layer, GuardedConv3d)
    x, outer = torch.randn(2, channels, *shape), torch.randn(2, 32, *shape)
    with torch.no_grad():
        expected = functional.conv3d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert (layer(x) - expected).abs().max() < 0.05
    exact = nn.Conv3d(channels, 32, 3, padding=1).double()
    exact.load_state_dict(layer.state_dict())
    wanted = gradients(exact, x.double(), outer.double())
    for size in range(20_000, 220_000, 20_000):
        del_me = [torch.full((size,), float("nan")) for _ in range(20)]  # what the memory of the next tensors holds
        del del_me
        with torch.autocast("cpu", torch.bfloat16):
            got = gradients(layer, x, outer)
        for ours, theirs in zip(got, wanted, strict=True):
            assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("name", ["resenc_test", "unet3d_test", "segresnet_test", "swin_unetr_test"])
def test_encoders_and_decoders_are_guarded(name: str) -> None:
    encoder = build_encoder(name)
    for module in (encoder, voxel_decoder(encoder, 1)):
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv3d)]
        assert layers
        assert all(isinstance(layer, GuardedConv3d) for layer in layers)
