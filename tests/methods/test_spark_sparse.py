"""Spark, sparse layers: hidden blocks might as well not exist; layers against lists of visible places."""

from __future__ import annotations

import copy
import importlib.util
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.methods.spark.sparse import check_layers, sparse_batch_norm, sparse_group_norm, sparse_layers
from headctssl.networks import build_encoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import voxels_of_mask

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="needs the extra monai")
CNNS = ("resenc_test", "unet3d_test", pytest.param("segresnet_test", marks=needs_monai))


def make(preset: str) -> Encoder:
    """An encoder whose norms scale and shift, so that a shift at hidden places would show."""
    torch.manual_seed(0)
    encoder = build_encoder(preset)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def sparse(encoder: Encoder, volume: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad(), sparse_layers(encoder, ~hidden):
        pyramid = encoder(volume, mask=hidden).pyramid
    assert pyramid is not None
    return pyramid


def at(hidden: Tensor, level: Tensor) -> Tensor:
    """Hidden places (B, 1, D, H, W) of a level."""
    step = tuple(side // blocks for side, blocks in zip(level.shape[2:], hidden.shape[1:], strict=True))
    return voxels_of_mask(hidden, step)


def test_group_norm_is_that_of_the_visible_places() -> None:
    torch.manual_seed(0)
    visible = torch.rand(2, 1, 3, 4, 5) > 0.5
    x = (torch.randn(2, 6, 3, 4, 5) * 3 + 1) * visible
    weight, bias = torch.randn(6), torch.randn(6)
    for groups in (6, 3):
        found = sparse_group_norm(x, visible.float(), groups, weight, bias, 1e-5)
        for b in range(2):
            rows = x[b].permute(1, 2, 3, 0)[visible[b, 0]]  # (visible places, channels): only these are known
            expected = nn.functional.group_norm(rows.T[None], groups, weight, bias, 1e-5)[0].T
            torch.testing.assert_close(found[b].permute(1, 2, 3, 0)[visible[b, 0]], expected, atol=1e-4, rtol=1e-4)
        assert not found[~visible.expand_as(found)].any()
    x, everywhere = torch.randn(2, 6, 3, 4, 5), torch.ones(2, 1, 3, 4, 5)
    dense = nn.functional.instance_norm(x, weight=weight, bias=bias)
    torch.testing.assert_close(sparse_group_norm(x, everywhere, 6, weight, bias, 1e-5), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_that_of_the_visible_places(momentum: float | None) -> None:
    torch.manual_seed(0)
    ours, rows = nn.BatchNorm3d(4, momentum=momentum), nn.BatchNorm1d(4, momentum=momentum)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(4))
        ours.bias.copy_(torch.randn(4))
    rows.load_state_dict(ours.state_dict())
    visible = torch.rand(3, 1, 2, 4, 3) > 0.4
    for training in (True, True, False):
        x = torch.randn(3, 4, 2, 4, 3, requires_grad=True)
        twin = x.detach().clone().requires_grad_()
        ours.train(training), rows.train(training)
        found = sparse_batch_norm(ours, x * visible, visible.float())
        expected = rows(twin.permute(0, 2, 3, 4, 1)[visible[:, 0]])
        torch.testing.assert_close(found.permute(0, 2, 3, 4, 1)[visible[:, 0]], expected, atol=1e-5, rtol=1e-4)
        assert not found[~visible.expand_as(found)].any()
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, twin.grad, atol=1e-4, rtol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(rows, name))


def slow_conv(layer: nn.Conv3d, sites: dict[tuple[int, ...], Tensor], stride: int) -> dict[tuple[int, ...], Tensor]:
    """A sparse convolution, site by site: outputs over visible inputs, from visible inputs alone."""
    centres = {tuple(p // stride for p in place) for place in sites}
    out = {}
    for centre in centres:
        value = layer.bias.clone()
        for offset in product((-1, 0, 1), repeat=3):
            place = tuple(c * stride + o for c, o in zip(centre, offset, strict=True))
            if place in sites:
                z, y, x = (o + 1 for o in offset)
                value = value + layer.weight[:, :, z, y, x] @ sites[place]
        out[centre] = value
    return out


def slow_norm(sites: dict[tuple[int, ...], Tensor]) -> dict[tuple[int, ...], Tensor]:
    values = torch.stack(list(sites.values()))
    mean, std = values.mean(0), (values.var(0, unbiased=False) + 1e-5).sqrt()
    return {place: torch.relu((value - mean) / std) for place, value in sites.items()}


def test_layers_are_those_of_a_network_on_lists_of_visible_places() -> None:
    """Convolution, norm, activation, strided convolution, on dictionaries that have no hidden place at all."""
    torch.manual_seed(0)
    first, second = nn.Conv3d(2, 3, 3, padding=1), nn.Conv3d(3, 4, 3, stride=2, padding=1)
    net = nn.Sequential(first, nn.InstanceNorm3d(3), nn.ReLU(inplace=True), second)
    visible = torch.tensor([[[True, False, True]], [[False, True, False]]])[None]  # blocks (2, 1, 3)
    x = torch.randn(1, 2, 4, 2, 6)
    seen = voxels_of_mask(visible, (2, 2, 2))[0, 0]
    with torch.no_grad():
        sites = {tuple(p): x[0, :, p[0], p[1], p[2]] for p in seen.nonzero().tolist()}
        expected = slow_conv(second, slow_norm(slow_conv(first, sites, 1)), 2)
        with sparse_layers(net, visible):
            found = net(x.masked_fill(~seen, 0.0))
    assert {tuple(p) for p in (found[0].abs().sum(0) > 0).nonzero().tolist()} == set(expected)
    for place, value in expected.items():
        torch.testing.assert_close(found[0, :, place[0], place[1], place[2]], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", CNNS)
@pytest.mark.parametrize("training", [True, False])
def test_visible_outputs_do_not_depend_on_hidden_voxels_and_hidden_places_are_empty(
    preset: str, training: bool
) -> None:
    encoder = make(preset).train(training)
    hidden = torch.rand(2, 2, 4, 3, generator=torch.Generator().manual_seed(1)) > 0.4
    volume = torch.rand(2, 3, 8, 16, 24)
    block = at(hidden, volume)
    states = copy.deepcopy(encoder.state_dict())
    one = sparse(encoder, volume, hidden)
    encoder.load_state_dict(states)
    two = sparse(encoder, torch.where(block, torch.full_like(volume, float("nan")), volume), hidden)
    with torch.no_grad():
        dense = encoder(volume, mask=hidden).pyramid
    for level, (a, b) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(a, b)
        assert a.isfinite().all()
        place = at(hidden, a).expand_as(a)
        assert not a[place].any()
        assert (a[~place] != 0).float().mean() > 0.3
        assert dense[level][place].any(), "without sparse layers the holes fill up"


@pytest.mark.parametrize("preset", CNNS)
def test_hidden_blocks_might_as_well_not_exist(preset: str) -> None:
    """The same visible blocks in a scan four times as large, the rest hidden, give the same features.

    A CNN on zeroed blocks does not: its norms count the zeros, and features leak into the holes.
    """
    encoder = make(preset).train()
    small = torch.rand(2, 3, 8, 8, 12)
    hidden = torch.zeros(2, 2, 2, 3, dtype=torch.bool)
    hidden[0, 0, 0], hidden[1, 1, :, 2] = True, True
    large = torch.rand(2, 3, 16, 8, 24)
    large[:, :, 8:, :, 12:] = small
    wide = torch.ones(2, 4, 2, 6, dtype=torch.bool)
    wide[:, 2:, :, 3:] = hidden
    found = sparse(encoder, small, hidden)
    with torch.no_grad():
        plain = [encoder(v, mask=m).pyramid for v, m in ((small, hidden), (large, wide))]
    leaks = False
    for level, a in enumerate(sparse(encoder, large, wide)):
        corner = tuple(slice(side - part, side) for side, part in zip(a.shape[2:], found[level].shape[2:], strict=True))
        torch.testing.assert_close(a[(..., *corner)], found[level], atol=1e-4, rtol=1e-3)
        leaks |= not torch.allclose(plain[1][level][(..., *corner)], plain[0][level], atol=1e-2, rtol=1e-1)
    assert leaks


@pytest.mark.parametrize("preset", CNNS)
def test_with_everything_visible_it_is_the_plain_encoder(preset: str) -> None:
    encoder = make(preset).train()
    twin = copy.deepcopy(encoder)
    volume = torch.rand(2, 3, 8, 8, 16)
    found = sparse(encoder, volume, torch.zeros(2, 2, 2, 4, dtype=torch.bool))
    with torch.no_grad():
        for a, b in zip(found, twin(volume).pyramid, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("preset", CNNS)
def test_afterwards_the_encoder_is_a_plain_one(preset: str) -> None:
    """No hook, no changed forward, no new state; also after an error in between."""
    encoder, twin = make(preset).eval(), make(preset).eval()
    before = [(name, type(layer), set(vars(layer))) for name, layer in encoder.named_modules()]
    volume = torch.rand(1, 3, 8, 8, 8)
    sparse(encoder, volume, torch.rand(1, 2, 2, 2) > 0.5)
    with pytest.raises(RuntimeError, match="stop"), sparse_layers(encoder, torch.ones(1, 2, 2, 2, dtype=torch.bool)):
        raise RuntimeError("stop")
    assert [(name, type(layer), set(vars(layer))) for name, layer in encoder.named_modules()] == before
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(layer, name) for layer in encoder.modules() for name in hooks)
    assert list(encoder.state_dict()) == list(twin.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, encoder(volume).pyramid, twin(volume).pyramid))
    assert copy.deepcopy(encoder)(volume).features.requires_grad


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sigmoid(),
        nn.LayerNorm(3),
        nn.MaxPool3d(3, 2, 1),
        nn.Linear(3, 3),
        nn.InstanceNorm3d(3, track_running_stats=True),
    ],
)
def test_layers_that_cannot_be_sparse_are_named(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"1: " + type(layer).__name__):
        check_layers(nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), layer))


def test_known_layers_pass() -> None:
    known = (nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3), nn.GroupNorm(1, 3), nn.MaxPool3d(2), nn.AvgPool3d(2), nn.GELU())
    check_layers(nn.Sequential(*known))
    check_layers(build_encoder("resenc_test"))


def _half(rank: int, folder: str, norm: nn.BatchNorm3d, x: Tensor, visible: Tensor) -> None:
    torch.set_num_threads(1)
    norm = copy.deepcopy(norm)  # the parameters came in shared memory
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    part = x[rows].clone().requires_grad_()
    out = sparse_batch_norm(norm, part, visible[rows])
    (out**3).sum().backward()
    torch.save({"out": out.detach(), "grad": part.grad, "state": norm.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.evidence
def test_batch_norm_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Also where one process sees more places than the other."""
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(3).train()
    visible = (torch.rand(4, 1, 2, 3, 4) > torch.tensor([0.2, 0.3, 0.6, 0.8]).view(-1, 1, 1, 1, 1)).float()
    x = (torch.randn(4, 3, 2, 3, 4) * visible).requires_grad_()
    torch.multiprocessing.spawn(_half, (str(tmp_path), norm, x.detach(), visible), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    out = sparse_batch_norm(norm, x, visible)
    (out**3).sum().backward()
    torch.testing.assert_close(torch.cat([part["out"] for part in found]), out.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([part["grad"] for part in found]), x.grad, atol=1e-4, rtol=1e-3)
    for part in found:
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(part["state"][name], value, msg=name)
