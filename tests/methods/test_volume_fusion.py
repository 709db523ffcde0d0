"""Volume fusion: mixing and classes against loops, the loss against loops, what counts, four scans told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.volume_fusion.fusion import class_map, draw_fusion, fuse
from headctssl.methods.volume_fusion.volume_fusion import VolumeFusion, VolumeFusionSettings
from headctssl.methods.volume_fusion.volume_fusion_loss import dice_and_entropy
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
Shape = tuple[int, int, int]
CLOCK = Clock(0, 10, 0, 5)
CPU = torch.device("cpu")
SHAPE = (2, 3, 4)
SHARES = 4


def build(toolbox: Toolbox, preset: str = "vit_test", **kwargs: object) -> VolumeFusion:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("volume_fusion", preset, **kwargs))
    assert isinstance(method, VolumeFusion)
    return method


# Mixing.


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(4, 40)] * 3))
def test_boxes_are_put_one_over_the_other(seed: int, shape: Shape) -> None:
    drawn = draw_fusion(np.random.default_rng(seed), shape, shares=SHARES, count=(10, 40), smallest=8, largest=0.625)
    expected = np.zeros(shape, np.int64)
    for start, stop, k in zip(drawn.boxes.start, drawn.boxes.stop, drawn.classes, strict=True):
        expected[tuple(slice(max(0, a), max(0, b)) for a, b in zip(start, stop, strict=True))] = k
    assert (class_map(drawn, shape, CPU).numpy() == expected).all()
    assert 10 <= len(drawn.boxes) <= 40
    assert set(drawn.classes.tolist()) <= {1, 2, 3, 4}
    sides = drawn.boxes.stop - drawn.boxes.start
    for axis, length in enumerate(shape):
        longest = max(1, int(0.625 * length + 1e-9))
        assert (sides[:, axis] >= min(8, longest)).all()
        assert (sides[:, axis] <= longest).all()
        centre = drawn.boxes.start[:, axis] + sides[:, axis] // 2
        assert ((centre >= 0) & (centre < length)).all()


def test_about_half_of_a_view_is_mixed_and_every_class_is_there() -> None:
    maps = [
        class_map(
            draw_fusion(np.random.default_rng(s), (64, 64, 64), shares=4, count=(10, 40), smallest=8, largest=0.625),
            (64, 64, 64),
            CPU,
        )
        for s in range(30)
    ]
    sizes = torch.stack([torch.bincount(m.flatten(), minlength=5) / m.numel() for m in maps])
    assert 0.3 < float(sizes[:, 0].mean()) < 0.7
    assert (sizes[:, 1:].mean(0) > 0.08).all()
    assert (sizes.min(0).values < sizes.max(0).values).all()


def test_mixture_voxel_by_voxel() -> None:
    g = torch.Generator().manual_seed(0)
    foreground, background = torch.rand(2, 2, 3, *SHAPE, generator=g)
    classes = torch.randint(0, 5, (2, 1, *SHAPE), generator=g)
    fused = fuse(foreground, background, classes, SHARES)
    for b in range(2):
        for c in range(3):
            for place in np.ndindex(SHAPE):
                alpha = {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}[int(classes[b, 0][place])]
                expected = alpha * foreground[b, c][place] + (1 - alpha) * background[b, c][place]
                assert float(fused[b, c][place]) == pytest.approx(float(expected), abs=1e-6)


# The loss.


def slow(logits: torch.Tensor, classes: torch.Tensor, counted: torch.Tensor, smooth: float) -> float:
    """Per scan half of 1 - mean over classes of (2 sum(p g) + s) / (sum(p) + sum(g) + s), half of mean(-log p)."""
    losses = []
    for b in range(len(logits)):
        rows = logits[b].flatten(1).T.tolist()
        kinds, used = classes[b].flatten().tolist(), counted[b].flatten().tolist()
        chances = [[exp(v) / sum(map(exp, row)) for v in row] for row in rows]
        voxels = [v for v in range(len(rows)) if used[v]]
        scores = []
        for k in range(logits.shape[1]):
            overlap = sum(chances[v][k] for v in voxels if kinds[v] == k)
            size = sum(chances[v][k] for v in voxels) + sum(1 for v in voxels if kinds[v] == k)
            scores.append((2 * overlap + smooth) / (size + smooth))
        dice = 1 - sum(scores) / len(scores)
        entropy = -sum(log(chances[v][kinds[v]]) for v in voxels) / max(1, len(voxels))
        losses.append(0.5 * dice + 0.5 * entropy)
    return sum(losses) / len(losses)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, classes and what counts of three scans; in some draws one scan has nothing that counts."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, SHARES + 1, *SHAPE, generator=g)
    classes = torch.randint(0, SHARES + 1, (3, 1, *SHAPE), generator=g)
    counted = torch.rand(classes.shape, generator=g) < 0.7
    if seed % 3 == 0:
        counted[1] = False
    return logits, classes, counted


def fast(logits: torch.Tensor, classes: torch.Tensor, counted: torch.Tensor, smooth: float = 1e-5) -> torch.Tensor:
    dice, entropy = dice_and_entropy(logits, classes, counted, smooth)
    return (0.5 * dice + 0.5 * entropy).mean()


@pytest.mark.parametrize("seed", range(6))
def test_loss_is_the_one_of_the_paper(seed: int) -> None:
    for smooth in (1e-5, 1.0):
        assert float(fast(*drawn(seed), smooth)) == pytest.approx(slow(*drawn(seed), smooth), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_voxels_that_do_not_count_add_nothing(seed: int) -> None:
    logits, classes, counted = drawn(seed)
    logits.requires_grad_()
    loss = fast(logits, classes, counted)
    loss.backward()
    assert (logits.grad[~counted.expand_as(logits)] == 0).all()
    changed = torch.where(counted, logits.detach(), torch.randn_like(logits) * 9)
    other = torch.where(counted, classes, torch.randint_like(classes, 0, SHARES + 1))
    assert torch.equal(fast(changed, other, counted), loss.detach())


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much() -> None:
    _, classes, counted = drawn(1)
    right = torch.zeros(3, SHARES + 1, *SHAPE).scatter_(1, classes, 60.0)
    assert float(fast(right, classes, counted)) < 1e-5
    assert float(fast(right.roll(1, 1), classes, counted)) > 10


# The method.


def test_each_view_is_foreground_once_and_background_once(toolbox: Toolbox) -> None:
    method = build(toolbox, views={"global_count": 3}).eval()
    views = toolbox[2](batch=2, global_shapes=((24, 24, 24),) * 3)
    members = views.groups["global"]
    losses = []
    for index in range(3):
        fused, classes, counted = method.fused(views, index)
        assert counted.all()
        assert torch.equal(fused, fuse(members[index], members[(index + 1) % 3], classes, SHARES))
        with torch.no_grad():
            logits = method.decoder(method.encoder(fused), fused)
        losses.append(fast(logits, classes, counted))
    with torch.no_grad():
        assert method.training_step(views, CLOCK).loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)
    maps = [method.fused(views, index)[1] for index in range(3)]
    assert not torch.equal(maps[0], maps[1])


def test_a_voxel_counts_where_every_crop_that_went_into_it_was_measured(toolbox: Toolbox) -> None:
    method = build(toolbox)
    views = toolbox[2](batch=2)
    g = torch.Generator().manual_seed(0)
    inside = tuple((torch.rand(2, 1, 24, 24, 24, generator=g) + 0.5).clamp(max=1.0) for _ in range(2))
    anonymised = tuple((torch.rand(2, 1, 24, 24, 24, generator=g) < 0.2).float() * 0.01 for _ in range(2))
    views = replace(views, inside={"global": inside}, anonymised={"global": anonymised})
    _, classes, counted = method.fused(views, 0)
    seen = [(i >= 0.99) & (a == 0) for i, a in zip(inside, anonymised, strict=True)]
    for place in map(tuple, torch.randint(0, 24, (300, 3), generator=g).tolist()):
        k, one, other = int(classes[1, 0][place]), bool(seen[0][1, 0][place]), bool(seen[1][1, 0][place])
        expected = {0: other, SHARES: one}.get(k, one and other)
        assert bool(counted[1, 0][place]) == expected
    whole = method.fused(replace(views, anonymised={}), 0)[2]
    assert (counted <= whole).all(), "a mask only takes voxels away"


def test_a_scan_is_mixed_by_itself_and_in_the_same_way_again(toolbox: Toolbox) -> None:
    method = build(toolbox)
    views = toolbox[2](batch=3)
    torch.manual_seed(1)
    whole = method.fused(views, 0)
    torch.manual_seed(2)
    order = [2, 0]
    part = replace(
        views,
        groups={"global": tuple(v[order] for v in views.groups["global"])},
        inside={"global": tuple(v[order] for v in views.inside["global"])},
        sample_index=views.sample_index[order],
    )
    for one, other in zip(whole, method.fused(part, 0), strict=True):
        assert torch.equal(one[order], other)
    assert not torch.equal(whole[1], method.fused(replace(views, epoch=1), 0)[1])
    assert not method.batch_coupled


@pytest.mark.parametrize("encoder", ["vit_test", "unet3d_test"])
def test_volume_fusion_tells_the_shares_of_four_scans(encoder: str, toolbox: Toolbox) -> None:
    shape, steps = (12, 12, 12), 130 if encoder == "vit_test" else 60
    method = build(toolbox, encoder, shape=shape)
    views = toolbox[2](batch=4, global_shapes=(shape, shape), detail=3)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    lines = []
    for step in range(steps):
        result = method.training_step(views, Clock(step, steps, 0, steps))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        lines.append({"loss": float(result.loss.detach()), **{k: float(v) for k, v in result.logs.items()}})
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["accuracy"] > 0.75 > lines[-1]["largest_class"]


def test_one_view_cannot_be_mixed(toolbox: Toolbox) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        build(toolbox, views={"global_count": 1})


def test_the_decoder_stays_behind(toolbox: Toolbox) -> None:
    method = build(toolbox, "unet3d_test")
    assert method.encoder_to_export() is method.encoder
    assert not {id(p) for p in method.encoder.parameters()} & {id(p) for p in method.decoder.parameters()}


def test_published_numbers() -> None:
    wanted = VolumeFusionSettings()
    assert (wanted.shares, wanted.boxes, wanted.smallest_side, wanted.largest_side) == (4, (10, 40), 8, 0.625)
    assert wanted.dice_weight == wanted.ce_weight
    cnn = VolumeFusion.optimizer_defaults("cnn")
    assert (cnn.lr, cnn.lr_reference_batch, cnn.weight_decay) == (1e-3, 4, 1e-5)
    for boxes in ((0, 3), (5, 4), (10, 100)):
        with pytest.raises(ValueError, match="two numbers"):
            VolumeFusionSettings(boxes=boxes)
