"""Mae: masks, the loss against loops, masked voxels of the loss = masked tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch

from headctssl.errors import UsageError
from headctssl.methods.mae.mae import Mae, MaeSettings
from headctssl.methods.masked import draw_masks, masked_targets, squared_error
from headctssl.methods.method import Method
from headctssl.networks.decoders import TokenDecoder
from headctssl.networks.tokens import mask_from_indices, patchify, unpatchify, voxels_of_mask
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
Shape = tuple[int, int, int]
needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="needs the extra monai")
ALL = (
    "vit_test",
    "primus_test",
    "resenc_test",
    "unet3d_test",
    pytest.param("segresnet_test", marks=needs_monai),
    pytest.param("swin_unetr_test", marks=needs_monai),
)


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(count)]


def test_masks_split_the_tokens() -> None:
    keep, masked = draw_masks(generators(3), 40, 0.75)
    assert keep.shape == (3, 10)
    assert masked.shape == (3, 30)
    for row in range(3):
        assert sorted([*keep[row].tolist(), *masked[row].tolist()]) == list(range(40))
        assert torch.equal(keep[row], keep[row].sort().values)
    assert not torch.equal(keep[0], keep[1])
    assert torch.equal(draw_masks(generators(3), 40, 0.75)[0], keep)
    alone = draw_masks(generators(3)[1:2], 40, 0.75)[0]
    assert torch.equal(alone[0], keep[1]), "a sample's mask does not depend on its batch mates"
    for ratio in (0.001, 0.999):
        assert min(part.shape[1] for part in draw_masks(generators(1), 8, ratio)) == 1


def test_masks_are_uniform() -> None:
    masked = draw_masks(generators(4000), 8, 0.5)[1]
    share = torch.bincount(masked.flatten(), minlength=8) / 4000
    assert (share - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("shape_patch", [((24, 36, 48), (12, 12, 12)), ((12, 24, 30), (4, 12, 6))])
def test_masked_voxels_of_the_loss_are_those_of_the_masked_tokens(shape_patch: tuple[Shape, Shape]) -> None:
    shape, patch = shape_patch
    grid = tuple(s // p for s, p in zip(shape, patch, strict=True))
    volume = torch.rand(2, 3, *shape, requires_grad=True)
    keep, masked = draw_masks(generators(2), grid[0] * grid[1] * grid[2], 0.6)
    targets, counts = masked_targets(volume, torch.ones(2, 1, *shape, dtype=torch.bool), masked, patch, normalise=False)
    squared_error(torch.full_like(targets, -1.0), targets, counts).backward()
    assert volume.grad is not None
    counted = volume.grad != 0
    expected = voxels_of_mask(mask_from_indices(masked, grid), patch)
    assert torch.equal(counted, expected.expand_as(counted))
    assert torch.equal(~counted, voxels_of_mask(mask_from_indices(keep, grid), patch).expand_as(counted))


@pytest.mark.parametrize("encoder", ["vit_test", "resenc_test"])
def test_loss_of_a_step_against_loops(encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    shape = (12, 24, 36)
    method = make_method(run_settings("mae", encoder, shape=shape, views={"global_count": 1}))
    assert isinstance(method, Mae)
    views = make_views(batch=2, global_shapes=(shape,))
    stored = torch.ones(2, 1, *shape)
    stored[0, :, :, :, 20:] = 0.2
    stored[1, :, :5] = 0.0
    views.inside["global"] = (stored,)
    volume = views.groups["global"][0]
    block = (6, 6, 6) if encoder == "vit_test" else (2, 4, 4)
    assert method.masking.patch == block
    grid = tuple(s // b for s, b in zip(shape, block, strict=True))
    n = grid[0] * grid[1] * grid[2]
    with torch.no_grad():
        loss = method.training_step(views, Clock(0, 10, 0, 5)).loss.item()
        keep, masked = draw_masks(views.generators("mask"), n, 0.75)
        predicted, _ = method.reconstruct(volume, keep, masked)
        patches = torch.zeros(2, n, predicted.shape[2])
        for b in range(2):
            patches[b, masked[b]] = predicted[b]
        full = unpatchify(patches, grid, block)
    per_sample = []
    for b in range(2):
        hidden = set(masked[b].tolist())
        errors = []
        for z, y, x in np.ndindex(*shape):
            token = ((z // block[0]) * grid[1] + y // block[1]) * grid[2] + x // block[2]
            if token in hidden and stored[b, 0, z, y, x] >= 0.5:
                errors.append(float(((full[b, :, z, y, x] - volume[b, :, z, y, x]) ** 2).mean()))
        per_sample.append(np.mean(errors))
    assert loss == pytest.approx(np.mean(per_sample), rel=1e-4)


@pytest.mark.parametrize("encoder", ALL)
def test_prediction_does_not_see_what_is_masked(encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    shape = (32, 32, 64) if encoder == "swin_unetr_test" else (24, 24, 48)
    method = make_method(run_settings("mae", encoder, shape=shape, views={"global_count": 1})).eval()
    assert isinstance(method, Mae)
    volume = make_views(global_shapes=(shape,)).groups["global"][0]
    grid = tuple(s // b for s, b in zip(shape, method.masking.patch, strict=True))
    keep, masked = draw_masks(generators(2), grid[0] * grid[1] * grid[2], 0.75)
    hidden = voxels_of_mask(mask_from_indices(masked, grid), method.masking.patch)
    other = torch.where(hidden, torch.rand_like(volume), volume)
    with torch.no_grad():
        one, two = (method.reconstruct(v, keep, masked)[0] for v in (volume, other))
        three, _ = method.reconstruct(torch.where(hidden, volume, torch.rand_like(volume)), keep, masked)
    assert torch.equal(one, two)
    assert not torch.equal(one, three), "but what is visible is seen"


def test_normalised_targets_against_numpy() -> None:
    volume = torch.rand(1, 2, 4, 4, 6)
    masked = torch.tensor([[0, 3]])
    targets, _ = masked_targets(volume, torch.ones(1, 1, 4, 4, 6, dtype=torch.bool), masked, (2, 4, 3), normalise=True)
    block = volume[0, :, 2:4, :, 3:6].numpy()
    expected = (block - block.mean()) / np.sqrt(block.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(targets[0, 1].numpy(), expected.reshape(-1), rtol=1e-4, atol=1e-5)


def test_sample_without_stored_voxels_counts_nothing() -> None:
    volume = torch.rand(2, 3, 12, 12, 12)
    valid = torch.ones(2, 1, 12, 12, 12, dtype=torch.bool)
    valid[1] = False
    masked = torch.tensor([[1, 2], [0, 5]])
    targets, counts = masked_targets(volume, valid, masked, (6, 6, 6), normalise=False)
    prediction = torch.rand_like(targets, requires_grad=True)
    loss = squared_error(prediction, targets, counts)
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert not prediction.grad[1].any()


def test_decoder_does_not_depend_on_the_order_of_what_it_gets() -> None:
    torch.manual_seed(0)
    decoder = TokenDecoder(24, 10, (2, 3, 4), width=48, depth=2, heads=3).eval()
    keep, masked = draw_masks(generators(2), 24, 0.5)
    tokens, cls = torch.randn(2, 12, 24), torch.randn(2, 24)
    order, hidden_order = torch.randperm(12), torch.randperm(12)
    one = decoder(tokens, cls, keep, masked)
    two = decoder(tokens[:, order], cls, keep[:, order], masked[:, hidden_order])
    torch.testing.assert_close(two, one[:, hidden_order], atol=1e-5, rtol=1e-4)


def test_several_views_have_masks_of_their_own(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("mae", "vit_test", views={"global_count": 2}))
    views = make_views()
    same = Views({"global": (views.groups["global"][0],) * 2}, views.inside, views.sample_index, 0, 0)
    seen: list[torch.Tensor] = []
    method.encoder.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw["keep"]), with_kwargs=True)
    method.training_step(same, Clock(0, 10, 0, 5))
    assert not torch.equal(*seen)
    assert [group.name for group in method.views().groups] == ["global"]


def test_blocks_of_a_cnn(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    default = make_method(run_settings("mae", "resenc_test", shape=(32, 64, 80)))
    assert isinstance(default, Mae)
    assert default.masking.patch == (8, 16, 16)
    chosen = make_method(run_settings("mae", "resenc_test", settings={"mask_block": [8, 8, 12]}))
    assert isinstance(chosen, Mae)
    assert chosen.masking.patch == (8, 8, 12)
    with pytest.raises(UsageError, match="divided into blocks"):
        make_method(run_settings("mae", "resenc_test", settings={"mask_block": [5, 8, 8]}))
    with pytest.raises(UsageError, match="masks its own tokens"):
        make_method(run_settings("mae", "vit_test", settings={"mask_block": [8, 8, 8]}))


def test_published_defaults() -> None:
    defaults = MaeSettings()
    assert (defaults.mask_ratio, defaults.decoder_width, defaults.decoder_depth, defaults.decoder_heads) == (
        0.75, 768, 8, 16,
    )  # fmt: skip
    assert not defaults.norm_target
    keep, _ = draw_masks(generators(1), 512, defaults.mask_ratio)
    assert keep.shape[1] == 128
    assert patchify(torch.rand(1, 3, 24, 24, 24), (12, 12, 12)).shape == (1, 8, 5184)


@pytest.mark.parametrize("encoder", ["vit_test", "primus_test"])
def test_tokens_of_air_are_neither_encoded_nor_predicted(encoder: str, toolbox: Toolbox) -> None:
    """Half of the tokens hold air. What stands there changes nothing: no prediction, no target, no loss."""
    run_settings, make_method, make_views = toolbox
    shape = (12, 24, 36)
    run = run_settings("mae", encoder, shape=shape, views={"global_count": 1}, settings={"token_share": 0.5})
    method = make_method(run).eval()
    assert method.views().tissue
    views = make_views(global_shapes=(shape,))
    tissue = torch.zeros(2, 1, *shape, dtype=torch.bool)
    tissue[0, :, :, 2, 3:36:6] = True  # one voxel of a token is enough
    tissue[0, :, :, 8, 3:36:6] = True
    tissue[1, :, :, 13:23] = True
    views.tissue = {"global": (tissue,)}
    tokens = tissue.view(2, 2, 6, 4, 6, 6, 6).amax((2, 4, 6))
    keep, masked = method.masking.draw(views, 0)
    used = mask_from_indices(torch.cat([keep, masked], 1), (2, 4, 6))
    assert torch.equal(used, tokens)
    assert keep.shape[1] == round(0.25 * 24)
    seen: list[torch.Tensor] = []
    method.encoder.register_forward_hook(lambda _m, _a, out: seen.append(out.tokens))
    with torch.no_grad():
        loss = method.training_step(views, Clock(0, 10, 0, 5)).loss
        air = ~voxels_of_mask(used, (6, 6, 6))
        volume = views.groups["global"][0]
        views.groups["global"] = (torch.where(air, torch.rand_like(volume), volume),)
        assert torch.equal(method.training_step(views, Clock(0, 10, 0, 5)).loss, loss)
    assert seen[0].shape[1] == keep.shape[1]


def test_a_cnn_cannot_leave_tokens_out(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    with pytest.raises(UsageError, match="leave tokens out"):
        make_method(run_settings("mae", "resenc_test", settings={"token_share": 0.5}))


def test_a_cnn_brings_its_own_decoder(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    typed = {"overrides": ("method.mask_ratio=0.6", "method.decoder_depth=4")}
    with pytest.raises(UsageError, match=r"decoder_depth=4 with ResEncEncoder"):
        make_method(run_settings("mae", "resenc_test").model_copy(update=typed))
    make_method(run_settings("mae", "vit_test").model_copy(update=typed))
