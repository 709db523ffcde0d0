"""Spark: the loss against loops, densifying, the light decoder, the plain encoder exported, an overfit, refusals."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.spark.spark import Spark, SparkSettings
from headctssl.methods.spark.spark_decoder import SparkDecoder
from headctssl.networks import build_from_settings
from headctssl.networks.thin_convolution import GuardedConv3d
from headctssl.networks.tokens import mask_from_indices, unpatchify, voxels_of_mask
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
CLOCK = Clock(0, 10, 0, 5)
needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="needs the extra monai")
CNNS = ("resenc_test", "unet3d_test", pytest.param("segresnet_test", marks=needs_monai))


def build(toolbox: Toolbox, preset: str = "resenc_test", **kwargs: object) -> Spark:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("spark", preset, views={"global_count": 1}, **kwargs))
    assert isinstance(method, Spark)
    return method


@pytest.mark.parametrize("preset", CNNS)
def test_loss_of_a_step_against_loops(preset: str, toolbox: Toolbox) -> None:
    """Section 3.3: L2 on hidden blocks only, each normalised by its own voxels that count; on a grid (2, 3, 4)."""
    shape, block = (8, 12, 32), (4, 4, 8)
    method = build(toolbox, preset, shape=shape, settings={"mask_block": list(block)}).eval()
    views = toolbox[2](batch=2, global_shapes=(shape,), detail=3)
    views.inside["global"][0][1, :, :3] = 0.2
    keep, masked = method.masking.draw(views, 0)
    assert keep.shape[1] + masked.shape[1] == 24
    volume = views.groups["global"][0]
    with torch.no_grad():
        loss = method.training_step(views, CLOCK).loss.item()
        predicted, _ = method.reconstruct(volume, keep, masked)
    patches = torch.zeros(2, 24, predicted.shape[2])
    for b in range(2):
        patches[b, masked[b]] = predicted[b]
    guess = unpatchify(patches, (2, 3, 4), block).numpy()
    means = []
    for b in range(2):
        errors = []
        for z, y, x in mask_from_indices(masked, (2, 3, 4))[b].nonzero().tolist():
            box = (slice(4 * z, 4 * z + 4), slice(4 * y, 4 * y + 4), slice(8 * x, 8 * x + 8))
            counts = views.inside["global"][0][(b, 0, *box)].numpy() >= 0.5
            if not counts.any():
                continue
            seen = volume[(b, slice(None), *box)].numpy()[:, counts]
            target = (seen - seen.mean()) / np.sqrt(seen.var(ddof=1) + 1e-6)
            errors.append((guess[(b, slice(None), *box)][:, counts] - target).ravel() ** 2)
        means.append(np.concatenate(errors).mean())
    assert loss == pytest.approx(np.mean(means), rel=1e-3)


@pytest.mark.parametrize("preset", CNNS)
def test_prediction_does_not_see_what_is_masked(preset: str, toolbox: Toolbox) -> None:
    method = build(toolbox, preset).eval()
    views = toolbox[2](global_shapes=((24, 24, 24),))
    volume = views.groups["global"][0]
    keep, masked = method.masking.draw(views, 0)
    hidden = voxels_of_mask(mask_from_indices(masked, (6, 6, 6)), (4, 4, 4))
    with torch.no_grad():
        one = method.reconstruct(volume, keep, masked)[0]
        two = method.reconstruct(torch.where(hidden, torch.full_like(volume, 7.0), volume), keep, masked)[0]
        three = method.reconstruct(torch.where(hidden, volume, torch.rand_like(volume)), keep, masked)[0]
    assert torch.equal(one, two)
    assert not torch.allclose(one, three, atol=1e-3)


def test_mask_tokens_fill_the_holes_of_every_stage() -> None:
    """Visible places are normalised among themselves, hidden ones hold the token, then a convolution mixes both."""
    torch.manual_seed(0)
    decoder = SparkDecoder((3, 5, 6), ((1, 1, 1), (2, 2, 2), (4, 4, 4)), outputs=2, width=16)
    visible = torch.tensor([[[[True, False]]]])
    sizes = [(4, 4, 8), (2, 2, 4), (1, 1, 2)]
    assert [tuple(d.project.kernel_size) for d in decoder.densify] == [(3, 3, 3), (3, 3, 3), (1, 1, 1)]
    assert [d.project.out_channels for d in decoder.densify] == [4, 8, 16], "half as wide at every finer stage"
    pyramid = tuple(torch.randn(1, c, *s) for c, s in zip((3, 5, 6), sizes, strict=True))
    for stage, fill in zip(pyramid, decoder.densify, strict=True):
        half = stage.shape[4] // 2
        stage[..., half:] = 0.0  # what a sparse encoder leaves there
        held: list[torch.Tensor] = []
        handle = fill.project.register_forward_pre_hook(lambda _m, args, held=held: held.append(args[0]))
        fill(stage, visible)
        handle.remove()
        if half * stage.shape[2] * stage.shape[3] > 1:
            normed = nn.functional.instance_norm(stage[..., :half])
            torch.testing.assert_close(held[0][..., :half], normed, atol=1e-4, rtol=1e-3)
        assert torch.equal(held[0][..., half:], fill.token.expand_as(stage)[..., half:])
    assert decoder(pyramid, visible).shape == (1, 2, 4, 4, 8)
    tokens = {n for n, p in decoder.named_parameters() if n.endswith("token")}
    assert len(tokens) == 3


def test_every_stage_is_added_on_the_way_to_the_voxels() -> None:
    """SparK, section 3.2: D_i = up(D_(i+1)) + the densified stage i."""
    torch.manual_seed(0)
    decoder = SparkDecoder((3, 5, 6), ((1, 1, 1), (2, 2, 2), (4, 4, 4)), outputs=2, width=16)
    visible = torch.rand(1, 2, 3, 4) < 0.5
    pyramid = tuple(torch.randn(1, c, 8 // s, 12 // s, 16 // s) for c, s in zip((3, 5, 6), (1, 2, 4), strict=True))
    first, second, last = (fill(stage, visible) for fill, stage in zip(decoder.densify, pyramid, strict=True))
    wanted = decoder.predict(decoder.up[0](decoder.up[1](last) + second) + first)
    torch.testing.assert_close(decoder(pyramid, visible), wanted)


@pytest.mark.parametrize("preset", CNNS)
def test_its_convolutions_are_guarded(preset: str, toolbox: Toolbox) -> None:
    layers = [layer for layer in build(toolbox, preset).modules() if isinstance(layer, nn.Conv3d)]
    assert layers
    assert all(isinstance(layer, GuardedConv3d) for layer in layers)


@pytest.mark.parametrize("finest", [(1, 1, 1), (1, 2, 2)])
def test_decoder_follows_uneven_strides(finest: tuple[int, int, int]) -> None:
    coarse = (finest[0], finest[1] * 2, finest[2] * 4)
    decoder = SparkDecoder((4, 8), (finest, coarse), outputs=3, width=8)
    shape = (3, 8, 16)
    pyramid = tuple(
        torch.randn(2, c, *(side // s for side, s in zip(shape, stride, strict=True)))
        for c, stride in ((4, finest), (8, coarse))
    )
    assert decoder(pyramid, torch.ones(2, 3, 2, 2, dtype=torch.bool)).shape == (2, 3, *shape)


@pytest.mark.parametrize("preset", CNNS)
def test_the_exported_encoder_is_a_plain_one(preset: str, toolbox: Toolbox) -> None:
    """After training it has the class, names and attributes of a new one, no hook, and gives what a new one with its
    weights gives."""
    run = toolbox[0]("spark", preset, views={"global_count": 1})
    method = toolbox[1](run)
    method.training_step(toolbox[2](global_shapes=((24, 24, 24),)), CLOCK).loss.backward()
    encoder = method.encoder_to_export().eval()
    plain = build_from_settings(run.encoder).eval()
    plain.load_state_dict(encoder.state_dict(), strict=True)
    volume = torch.rand(1, 3, 24, 24, 24)
    with torch.no_grad():
        assert torch.equal(encoder(volume).features, plain(volume).features)
    for (name, one), (other, two) in zip(encoder.named_modules(), plain.named_modules(), strict=True):
        assert (name, type(one), set(vars(one))) == (other, type(two), set(vars(two)))
        assert not one._forward_hooks
        assert not one._forward_pre_hooks
        assert not one._backward_hooks


def test_blocks(toolbox: Toolbox) -> None:
    assert build(toolbox, shape=(16, 64, 72)).masking.patch == (4, 16, 4)
    assert build(toolbox, settings={"mask_block": [8, 12, 4]}).masking.patch == (8, 12, 4)
    with pytest.raises(UsageError, match="whole places"):
        build(toolbox, settings={"mask_block": [6, 8, 8]})
    with pytest.raises(UsageError, match="divided into blocks"):
        build(toolbox, settings={"mask_block": [16, 8, 8]})
    with pytest.raises(UsageError, match="one block"):
        build(toolbox, settings={"mask_block": [24, 24, 24]})


@pytest.mark.parametrize("preset", ["vit_test", "primus_test", pytest.param("swin_unetr_test", marks=needs_monai)])
def test_a_transformer_is_refused(preset: str, toolbox: Toolbox) -> None:
    shape = (32, 32, 64) if preset == "swin_unetr_test" else (24, 24, 24)
    with pytest.raises(UsageError, match="sparse"):
        build(toolbox, preset, shape=shape)


def test_published_defaults() -> None:
    defaults = SparkSettings()
    assert (defaults.mask_ratio, defaults.norm_target) == (0.75, True)
    optimizer = Spark.optimizer_defaults("cnn")
    assert (optimizer.optimizer, optimizer.peak_lr(4), optimizer.clip_norm) == ("sgd", 1e-2, 12.0)


@pytest.mark.parametrize("preset", ["resenc_test", pytest.param("unet3d_test", marks=pytest.mark.evidence)])
def test_four_scans_are_learned(preset: str, toolbox: Toolbox) -> None:
    """The loss falls below a quarter of its start, and below half of what the best constant reaches."""
    method = build(toolbox, preset, shape=(12, 12, 12))
    views = toolbox[2](batch=4, global_shapes=((12, 12, 12),), detail=2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.0)
    lines = []
    for _ in range(30):
        result = method.training_step(views, CLOCK)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        lines.append((result.loss.item(), float(result.logs["relative_error"])))
    assert lines[-1][0] < lines[0][0] / 4
    assert lines[-1][1] < 0.5
