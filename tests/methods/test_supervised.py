"""Supervised: the loss against loops, partial labels, voxels that do not count, four scans fitted, what is exported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.supervised.supervised_loss import dice_and_bce, mean_over_known
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
CLOCK = Clock(0, 10, 0, 5)
SHAPE = (2, 3, 4)


def slow(
    logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor, known: torch.Tensor, smooth: float
) -> float:
    """Voxel by voxel: per class 1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s) + mean(-g log p - (1 - g) log(1 - p))."""
    losses = []
    for b in range(len(logits)):
        of_classes = []
        for k in range(logits.shape[1]):
            if not known[b, k]:
                continue
            overlap = size = entropy = count = 0.0
            for voxel in range(labels[b].numel()):
                if not counted[b].flatten()[voxel]:
                    continue
                p = 1.0 / (1.0 + exp(-float(logits[b, k].flatten()[voxel])))
                g = 1.0 if int(labels[b].flatten()[voxel]) == k + 1 else 0.0
                overlap, size, count = overlap + p * g, size + p + g, count + 1
                entropy -= g * log(p) + (1 - g) * log(1 - p)
            dice = 1.0 - (2 * overlap + smooth) / (size + smooth)
            of_classes.append(dice + (entropy / count if count else 0.0))
        losses.append(sum(of_classes) / len(of_classes) if of_classes else 0.0)
    return sum(losses) / len(losses)


def drawn(seed: int, batch: int = 3, classes: int = 4) -> tuple[torch.Tensor, ...]:
    """Logits, labels, counted voxels and known classes; one sample knows nothing, one counts nothing."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, *SHAPE, generator=g)
    labels = torch.randint(-1, classes + 1, (batch, 1, *SHAPE), generator=g).to(torch.int16)
    counted = (torch.rand(labels.shape, generator=g) < 0.7) & (labels >= 0)
    known = torch.rand(batch, classes, generator=g) < 0.6
    if seed % 3 == 0:
        known[0], counted[1] = False, False
    return logits, labels, counted, known


def fast(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    dice, bce = dice_and_bce(logits, labels, counted, 1.0)
    return mean_over_known(dice + bce, known)


@pytest.mark.parametrize("seed", range(6))
def test_loss_is_the_one_of_the_paper(seed: int) -> None:
    assert float(fast(*drawn(seed))) == pytest.approx(slow(*drawn(seed), 1.0), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_unknown_classes_and_voxels_that_do_not_count_add_nothing(seed: int) -> None:
    logits, labels, counted, known = drawn(seed)
    logits.requires_grad_()
    loss = fast(logits, labels, counted, known)
    loss.backward()
    used = known[:, :, None, None, None] & counted
    assert (logits.grad[~used] == 0).all()
    changed = torch.where(used, logits.detach(), torch.randn_like(logits) * 9)
    other = torch.where(counted, labels, torch.randint_like(labels, -1, 5))
    assert torch.equal(fast(changed, other, counted, known), loss.detach())
    # One more marked voxel, as a mask can take: nothing but that voxel leaves the loss.
    fewer = counted & (torch.rand(counted.shape) < 0.8)
    logits.grad = None
    fast(logits, labels, fewer, known).backward()
    assert (logits.grad[~(used & fewer)] == 0).all()


def test_a_perfect_prediction_costs_next_to_nothing() -> None:
    _, labels, _, known = drawn(1)
    counted = labels >= 0
    right = torch.stack([(labels[:, 0] == k + 1) * 60.0 - 30.0 for k in range(4)], dim=1)
    assert float(fast(right, labels, counted, known)) < 1e-5
    assert float(fast(-right, labels, counted, known)) > 10


def test_anonymised_unstored_and_unlabelled_voxels_leave_the_loss(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("supervised", "vit_test", views={"global_count": 1})).eval()
    views = make_views(global_shapes=((24, 24, 24),))
    seen = views.segmentation["global"][0]
    half = torch.zeros_like(seen, dtype=torch.bool)
    half[:, :, :12] = True
    scrambled = torch.where(half, (seen + 1) % 3, seen)
    inside = views.inside["global"][0]
    ways = {
        "anonymised": replace(views, anonymised={"global": (half.float() * 1e-6,)}),
        "outside": replace(views, inside={"global": (torch.where(half, 0.49, inside),)}),
        "unlabelled": replace(views, segmentation={"global": (seen.masked_fill(half, -1),)}),
    }
    with torch.no_grad():
        whole = method.training_step(views, CLOCK).loss
        losses = {name: method.training_step(way, CLOCK).loss for name, way in ways.items()}
        other = replace(ways["anonymised"], segmentation={"global": (scrambled,)})
        assert torch.equal(method.training_step(other, CLOCK).loss, losses["anonymised"])
        assert not torch.equal(method.training_step(replace(other, anonymised={}), CLOCK).loss, whole)
    assert losses["anonymised"] == losses["outside"] == losses["unlabelled"] != whole


def test_classes_of_the_other_dataset_get_no_gradient(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("supervised", "unet3d_test"))
    views = make_views()
    views.known_classes = torch.tensor([[True, False], [True, False]])
    method.training_step(views, CLOCK).loss.backward()
    last = [p for p in method.decoder.parameters() if p.shape[0] == 2][-1]
    assert last.grad[0].abs().sum() > 0
    assert last.grad[1].abs().sum() == 0


@pytest.mark.parametrize("encoder", ["vit_test", "resenc_test", "unet3d_test"])
def test_supervised_fits_four_scans(encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    shape, steps = (12, 12, 12), 100 if encoder == "vit_test" else 40
    method = make_method(run_settings("supervised", encoder, shape=shape, views={"global_count": 1}))
    views = make_views(batch=4, global_shapes=(shape,), detail=3)
    # The first two scans come from a dataset without the second class.
    views.known_classes = torch.tensor([[True, False], [True, False], [True, True], [True, True]])
    labels = views.segmentation["global"][0]
    labels[:2][labels[:2] == 2] = 0
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        result = method.training_step(views, Clock(step, steps, 0, steps))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.loss.detach()))
    assert losses[-1] < 0.35 * losses[0]
    assert float(result.logs["soft_dice"]) > 0.7


def test_the_decoder_stays_behind(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("supervised", "resenc_test"))
    exported = method.encoder_to_export()
    assert exported is method.encoder
    assert not {id(p) for p in exported.parameters()} & {id(p) for p in method.decoder.parameters()}


def test_two_of_three_views_look_at_a_class(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("supervised", "vit_test", views={"focus_anatomy": 0.2}))
    (group,) = method.views().groups
    assert group.focus == (("segmentation", 0.667), ("anatomy", 0.2))


def test_without_classes_there_is_nothing_to_learn(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    run = run_settings("supervised", "vit_test").model_copy(update={"segmentation_classes": ()})
    with pytest.raises(UsageError, match="needs classes"):
        make_method(run)


@pytest.mark.parametrize("name", ["left_ventricle", "Caudate (Right)"])
def test_classes_with_a_side_are_not_flipped(name: str, toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    flipped, still = (run_settings("supervised", "vit_test", views={"flip_lr": flip}) for flip in (True, False))
    with pytest.raises(UsageError, match=f"wrong side(?s:.)*'{re.escape(name)}'(?s:.)*flip_lr=false"):
        make_method(flipped.model_copy(update={"segmentation_classes": ("SDH", name)}))
    make_method(still.model_copy(update={"segmentation_classes": ("SDH", name)}))
    make_method(flipped.model_copy(update={"segmentation_classes": ("SDH", "upright")}))


def test_published_numbers(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("supervised", "vit_test"))
    for kind in ("transformer", "cnn"):
        defaults = method.optimizer_defaults(kind)
        assert (defaults.optimizer, defaults.peak_lr(8), defaults.weight_decay) == ("adamw", 1e-3, 1e-5)
        assert (defaults.schedule, defaults.warmup_share) == ("cosine", 0.025)
