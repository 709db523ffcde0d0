"""Masked: units, tissue before air, what counts, targets of voxels that count, errors against loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from headctssl.methods.masked import Masking, absolute_error, draw_masks, masked_step, masked_targets, squared_error
from headctssl.methods.method import Method
from headctssl.networks.tokens import mask_from_indices, patchify, voxels_of_mask
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
Shape = tuple[int, int, int]


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(count)]


def test_tissue_is_used_before_air_and_air_fills_up() -> None:
    tissue = np.zeros((3, 20), dtype=bool)
    tissue[0, :12] = True  # more than are used
    tissue[1, 5:9] = True  # fewer
    keep, masked = draw_masks(generators(3), 20, 0.5, used=8, tissue=tissue)
    assert keep.shape == masked.shape == (3, 4)
    used = [sorted([*keep[row].tolist(), *masked[row].tolist()]) for row in range(3)]
    assert all(len(set(tokens)) == 8 for tokens in used)
    assert set(used[0]) < set(range(12))
    assert set(used[1]) > set(range(5, 9))
    alone = draw_masks(generators(3)[2:], 20, 0.5, used=8, tissue=tissue[2:])
    assert torch.equal(alone[0][0], keep[2]), "a sample's draw does not depend on its batch mates"


def test_what_is_used_is_masked_uniformly() -> None:
    """Tissue is as often masked as air: its place in the order of use says nothing about being masked."""
    tissue = np.zeros((3000, 12), dtype=bool)
    tissue[:, :4] = True
    keep, masked = draw_masks(generators(3000), 12, 0.5, used=8, tissue=tissue)
    hidden = torch.bincount(masked.flatten(), minlength=12) / 3000
    seen = torch.bincount(keep.flatten(), minlength=12) / 3000
    assert (hidden[:4] - 0.5).abs().max() < 0.04
    assert (seen[:4] - 0.5).abs().max() < 0.04
    assert (hidden[4:] - 0.25).abs().max() < 0.04


def test_all_tokens_are_used_by_default() -> None:
    plain = draw_masks(generators(2), 12, 0.5)
    assert torch.equal(plain[1], draw_masks(generators(2), 12, 0.5, used=12, tissue=np.zeros((2, 12), bool))[1])


@pytest.mark.parametrize(("unit", "share"), [((1, 1, 1), 1.0), ((1, 2, 3), 1.0), ((2, 1, 2), 0.5)])
def test_masked_voxels_of_the_loss_are_those_of_the_masked_units(unit: Shape, share: float, toolbox: Toolbox) -> None:
    """On a grid (2, 4, 6) whose axes differ, by the gradient of the loss with respect to the targets' volume."""
    shape, patch = (8, 12, 24), (4, 3, 4)
    views = toolbox[2](batch=2, global_shapes=(shape,))
    tissue = torch.zeros(2, 1, *shape, dtype=torch.bool)
    tissue[0, :, :, :6] = True
    tissue[1, :, :, :, 3:10] = True
    views.tissue = {"global": (tissue,)}
    volume = views.groups["global"][0].requires_grad_()
    masking = Masking(patch, 0.6, unit=unit, share=share)
    drawn = masking.draw(views, 0)
    masked_step(
        views, masking, lambda v, k, m: (_ones(v, m, patch), v.mean((2, 3, 4)).detach()), squared_error, normalise=False
    ).loss.backward()
    assert volume.grad is not None
    grid = (2, 4, 6)
    counted = (volume.grad != 0).any(1, keepdim=True)
    assert torch.equal(counted, voxels_of_mask(mask_from_indices(drawn[1], grid), patch))
    assert not (mask_from_indices(drawn[0], grid) & mask_from_indices(drawn[1], grid)).any()
    edge = tuple(p * u for p, u in zip(patch, unit, strict=True))
    units = patchify(counted.float(), edge).mean(-1)
    assert set(units.unique().tolist()) == {0.0, 1.0}, "units are masked whole"
    number = units.shape[1] if share == 1.0 else round(units.shape[1] * share)
    assert (units.sum(1) == round(number * 0.6)).all()


def _ones(volume: torch.Tensor, masked: torch.Tensor, patch: Shape) -> torch.Tensor:
    size = volume.shape[1] * patch[0] * patch[1] * patch[2]
    return torch.full((*masked.shape, size), 9.0)


def test_a_mask_only_ever_takes_voxels_away(toolbox: Toolbox) -> None:
    """Anonymised and padded voxels change neither the loss nor the normalised targets of the others."""
    shape, patch = (4, 8, 8), (4, 4, 4)
    views = toolbox[2](batch=2, global_shapes=(shape,))
    share = torch.zeros(2, 1, *shape)
    share[0, :, 1:3, 2:5] = 0.01
    share[1, :, :, :, 6:] = 1.0
    views.anonymised = {"global": (share,)}
    views.inside["global"][0][0, :, 0] = 0.3
    masked = torch.tensor([[0, 1, 3], [1, 2, 3]])
    valid = views.valid("global", 0)
    assert not valid[0, :, 0].any()
    volume = views.groups["global"][0]
    other = torch.where(valid, volume, torch.rand_like(volume))
    for normalise in (False, True):
        targets, counts = masked_targets(volume, valid, masked, patch, normalise=normalise)
        changed, _ = masked_targets(other, valid, masked, patch, normalise=normalise)
        prediction = torch.rand_like(targets)
        for error in (squared_error, absolute_error):
            torch.testing.assert_close(error(prediction, targets, counts), error(prediction, changed, counts))
    _, everything = masked_targets(volume, torch.ones_like(valid), masked, patch, normalise=False)
    assert (everything == 1).all()
    assert counts.sum() < everything.sum()


def test_errors_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, targets = torch.rand(2, 3, 4, 5, generator=generator).unbind()
    counts = (torch.rand(3, 4, 5, generator=generator) > 0.4).float()
    for error, power in ((squared_error, 2), (absolute_error, 1)):
        means = []
        for b in range(3):
            places = counts[b].nonzero().tolist()
            means.append(
                sum(abs(float(prediction[b, m, p] - targets[b, m, p])) ** power for m, p in places) / len(places)
            )
        assert error(prediction, targets, counts).item() == pytest.approx(sum(means) / 3, rel=1e-5)


def test_relative_error_is_one_for_the_best_constant(toolbox: Toolbox) -> None:
    views = toolbox[2](batch=3, global_shapes=((8, 8, 8),))
    volume = views.groups["global"][0]
    masking = Masking((4, 4, 4), 0.5)
    _, masked = masking.draw(views, 0)
    mean = masked_targets(volume, views.valid("global", 0), masked, (4, 4, 4), normalise=False)[0].mean()
    result = masked_step(
        views, masking, lambda v, k, m: (mean.expand(3, 4, 192), v.mean((2, 3, 4))), squared_error, normalise=False
    )
    assert float(result.logs["relative_error"]) == pytest.approx(1.0, abs=1e-5)
