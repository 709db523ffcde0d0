"""Simmim: the loss against loops, mask tokens hide what is predicted, units, an overfit, refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.simmim.simmim import Simmim, SimmimSettings
from headctssl.networks.tokens import grid_from_tokens, mask_from_indices, voxels_of_mask
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
Shape = tuple[int, int, int]
CLOCK = Clock(0, 10, 0, 5)


def build(toolbox: Toolbox, preset: str = "vit_test", **kwargs: object) -> Simmim:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("simmim", preset, views={"global_count": 1}, **kwargs))
    assert isinstance(method, Simmim)
    return method


@pytest.mark.parametrize("preset", ["vit_test", "primus_test"])
def test_loss_of_a_step_against_equation_1(preset: str, toolbox: Toolbox) -> None:
    """Arrays of the paper's section 3: mask tokens in, one linear layer, L1 over hidden voxels only; non-cubic."""
    shape, patch = (12, 24, 36), (6, 6, 6)
    method = build(toolbox, preset, shape=shape, settings={"mask_unit": [1, 2, 3]}).eval()
    views = toolbox[2](batch=2, global_shapes=(shape,))
    views.inside["global"][0][1, :, :5] = 0.2
    _, masked = method.masking.draw(views, 0)
    hidden = mask_from_indices(masked, (2, 4, 6))
    volume = views.groups["global"][0]
    with torch.no_grad():
        loss = method.training_step(views, CLOCK).loss.item()
        tokens = method.encoder(volume, mask=hidden).tokens
        patches = grid_from_tokens(method.head(tokens), (2, 4, 6))
    means = []
    for b in range(2):
        errors = []
        for z, y, x in np.ndindex(*shape):
            place = (z // 6, y // 6, x // 6)
            if not hidden[b][place] or (b == 1 and z < 5):
                continue
            inner = ((z % 6) * patch[1] + y % 6) * patch[2] + x % 6
            guess = patches[b, inner::216][(slice(None), *place)]
            errors.append(float((guess - volume[b, :, z, y, x]).abs().mean()))
        means.append(np.mean(errors))
    assert loss == pytest.approx(np.mean(means), rel=1e-4)


def test_prediction_does_not_see_what_is_masked(toolbox: Toolbox) -> None:
    method = build(toolbox).eval()
    views = toolbox[2](global_shapes=((24, 24, 24),))
    volume = views.groups["global"][0]
    keep, masked = method.masking.draw(views, 0)
    hidden = voxels_of_mask(mask_from_indices(masked, (4, 4, 4)), (6, 6, 6))
    with torch.no_grad():
        one = method.reconstruct(volume, keep, masked)[0]
        two = method.reconstruct(torch.where(hidden, torch.rand_like(volume), volume), keep, masked)[0]
        three = method.reconstruct(torch.where(hidden, volume, torch.rand_like(volume)), keep, masked)[0]
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)


def test_units_are_a_sixth_of_the_grid(toolbox: Toolbox) -> None:
    """32 of 192 pixels in the paper; here 2 of 12 tokens, and always a divisor of the grid."""
    assert build(toolbox, shape=(24, 72, 36)).masking.unit == (1, 2, 1)
    assert build(toolbox, settings={"mask_unit": [2, 2, 4]}).masking.unit == (2, 2, 4)
    with pytest.raises(UsageError, match="divided into blocks"):
        build(toolbox, settings={"mask_unit": [3, 1, 1]})
    with pytest.raises(UsageError, match="one block"):
        build(toolbox, settings={"mask_unit": [4, 4, 4]})


def test_published_defaults() -> None:
    assert SimmimSettings().mask_ratio == 0.6
    defaults = Simmim.optimizer_defaults("transformer")
    assert (defaults.peak_lr(512), defaults.weight_decay, defaults.clip_norm) == (pytest.approx(1e-4), 0.05, 5.0)
    assert defaults.betas == (0.9, 0.999)


def test_exported_encoder_has_the_mask_token_and_encodes_whole_scans(toolbox: Toolbox) -> None:
    method = build(toolbox).eval()
    encoder = method.encoder_to_export()
    assert "mask_token" in encoder.state_dict()
    volume = toolbox[2](global_shapes=((24, 24, 24),)).groups["global"][0]
    assert encoder(volume).tokens.shape == (2, 64, 48)


@pytest.mark.parametrize("preset", ["resenc_test", "unet3d_test"])
def test_a_cnn_is_refused(preset: str, toolbox: Toolbox) -> None:
    with pytest.raises(UsageError, match="mask token"):
        build(toolbox, preset)


def test_four_scans_are_learned(toolbox: Toolbox) -> None:
    """The loss falls below a third of its start, and below half of what the best constant reaches."""
    method = build(toolbox, shape=(12, 12, 12), encoder={"patch": [3, 3, 3]}, settings={"mask_unit": [1, 1, 1]})
    views = toolbox[2](batch=4, global_shapes=((12, 12, 12),), detail=2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.0)
    lines = []
    for _ in range(150):
        result = method.training_step(views, CLOCK)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        lines.append((result.loss.item(), float(result.logs["relative_error"])))
    assert lines[-1][0] < lines[0][0] / 3
    assert lines[-1][1] < 0.5
