"""Swin_ssl: turns, holes, the step against slow sums of its three parts, an overfit, one and two processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.swin_ssl.corruption import cut_out, cutout_mask, turn_axis, turned
from headctssl.methods.swin_ssl.swin_ssl import SwinSsl, SwinSslSettings
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
CLOCK = Clock(0, 10, 0, 5)


def built(
    toolbox: Toolbox,
    preset: str = "vit_test",
    shape: tuple[int, int, int] = (12, 24, 24),
    views: int = 1,
    **chosen: object,
) -> SwinSsl:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("swin_ssl", preset, shape=shape, views={"global_count": views}, settings=chosen))
    assert isinstance(method, SwinSsl)
    return method


@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 2, 3), (3, 3, 2), (3, 3, 3), (2, 3, 4)])
def test_four_turns_keep_the_shape_and_are_told_apart(shape: tuple[int, int, int]) -> None:
    volume = torch.arange(2 * math.prod(shape)).view(2, *shape)
    ways = [turned(volume, k) for k in range(4)]
    assert all(way.shape == volume.shape for way in ways)
    assert torch.equal(ways[0], volume)
    assert len({tuple(way.flatten().tolist()) for way in ways}) == 4
    axis = turn_axis(shape)
    assert (axis is None) == (shape == (2, 3, 4))
    for k in range(4):
        undone = turned(ways[k], k if axis is None else (4 - k) % 4)
        assert torch.equal(undone, volume)


def _handed(corner: Tensor) -> float:
    """Triple product of the gradients along z, y, x of a linear volume with three channels z, y, x."""
    g = [corner.diff(dim=d).flatten(1).mean(1) for d in (1, 2, 3)]
    return float(torch.linalg.det(torch.stack(g)))


@pytest.mark.parametrize("shape", [(4, 6, 6), (6, 4, 6), (6, 6, 4), (4, 5, 6)])
def test_a_turn_is_never_a_mirror(shape: tuple[int, int, int]) -> None:
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    for k in range(4):
        assert _handed(turned(places, k)) == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(3, 30), st.integers(3, 30), st.integers(3, 30)),
    st.floats(0, 0.6),
    st.integers(0, 10_000),
)
def test_no_more_is_cut_out_than_asked(shape: tuple[int, int, int], share: float, seed: int) -> None:
    mask = cutout_mask(np.random.default_rng(seed), shape, share, (0.05, 0.25))
    assert mask.shape == shape
    assert mask.mean() <= share
    assert np.array_equal(mask, cutout_mask(np.random.default_rng(seed), shape, share, (0.05, 0.25)))


def test_about_half_of_the_largest_share_is_drawn_in_boxes() -> None:
    shares = [cutout_mask(np.random.default_rng(s), (24, 24, 24), 0.3, (0.05, 0.25)) for s in range(60)]
    assert 0.1 < np.mean([m.mean() for m in shares]) < 0.15, "uniform to .3, less what overlaps"
    mask = max(shares, key=lambda m: m.mean())
    agree = np.mean([(np.diff(mask.astype(int), axis=a) == 0).mean() for a in range(3)])
    assert agree > 0.85


def test_holes_hold_noise_and_the_rest_is_as_it_was() -> None:
    volume = torch.rand(3, 10, 12, 14)
    mask = np.zeros((10, 12, 14), np.bool_)
    mask[2:9, 3:9, 4:12] = True
    one, other, same = cut_out(volume, mask, 1), cut_out(volume, mask, 2), cut_out(volume, mask, 1)
    inside = torch.from_numpy(mask)
    assert torch.equal(one[:, ~inside], volume[:, ~inside])
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    hole = one[:, inside]
    assert hole.min() >= 0
    assert hole.max() <= 1
    assert hole.mean().item() == pytest.approx(0.5, abs=0.03)


def slow_contrastive(rows: list[list[float]], temperature: float) -> float:
    """Section 3.2 of arXiv 2111.14791: row i and row i + n are the two copies; all others but itself are negatives."""
    n = len(rows) // 2
    units = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]
    total = 0.0
    for i, one in enumerate(units):
        raised = [math.exp(sum(a * b for a, b in zip(one, other, strict=True)) / temperature) for other in units]
        total -= math.log(raised[(i + n) % (2 * n)] / (sum(raised) - raised[i]))
    return total / (2 * n)


@pytest.mark.parametrize(("preset", "norm"), [("vit_test", True), ("resenc_test", True), ("vit_test", False)])
def test_step_is_the_sum_of_three_slow_parts(preset: str, norm: bool, toolbox: Toolbox) -> None:
    shape = (12, 24, 24)
    method = built(toolbox, preset, views=2, head_norm=norm).eval()
    views = toolbox[2](batch=2, global_shapes=(shape, shape))
    views.inside["global"][0][1, :, :5] = 0.2
    copies = method._copies(views)
    order = [(c, v, b) for c in range(2) for v in range(2) for b in range(2)]
    assert len(copies.turns) == len(order) == 8
    inpainting, rows = [], []
    with torch.no_grad():
        got = method.training_step(views, CLOCK)
        for row, (_, v, b) in enumerate(order):
            turn = int(copies.turns[row])
            volume = torch.rot90(views.groups["global"][v][b], turn, (2, 3))
            valid = torch.rot90(views.inside["global"][v][b], turn, (2, 3)) >= 0.5
            assert torch.equal(copies.whole[row], volume)
            out = method.encoder(copies.cut[row : row + 1])
            rows.append(out.features[0].tolist())
            errors = (method.decoder(out, volume[None])[0] - volume).abs()
            inpainting.append(float(errors[valid.expand_as(errors)].mean()))
        if norm:
            spread = [(np.mean(c), np.sqrt(np.var(c) + 1e-6)) for c in zip(*rows, strict=True)]
            rows = [[(x - m) / d for x, (m, d) in zip(row, spread, strict=True)] for row in rows]
        logits = method.rotation_head(torch.tensor(rows, dtype=torch.float32)).tolist()
        rotation = [
            math.log(sum(math.exp(x) for x in said)) - said[turn]
            for said, turn in zip(logits, copies.turns.tolist(), strict=True)
        ]
        rows = method.contrastive_head(torch.tensor(rows, dtype=torch.float32)).tolist()
    expected = {
        "rotation": np.mean(rotation),
        "inpainting": np.mean(inpainting),
        "contrastive": slow_contrastive(rows, 0.5),
    }
    for name, value in expected.items():
        assert float(got.logs[name]) == pytest.approx(value, rel=1e-4), name
    assert got.loss.item() == pytest.approx(sum(expected.values()), rel=1e-4)


def test_what_is_made_of_a_scan_does_not_depend_on_the_others(toolbox: Toolbox) -> None:
    method = built(toolbox)
    whole = toolbox[2](batch=4, global_shapes=((12, 24, 24),))
    volume, inside = whole.groups["global"][0][2:3], whole.inside["global"][0][2:3]
    alone = Views({"global": (volume,)}, {"global": (inside,)}, whole.sample_index[2:3], whole.seed, whole.epoch)
    one, all_ = method._copies(alone), method._copies(whole)
    for name in ("whole", "cut", "hidden", "turns"):
        assert torch.equal(getattr(one, name), getattr(all_, name)[[2, 6]]), name


def test_views_are_flipped_left_and_right_only(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    for wanted in (False, True):
        method = make_method(run_settings("swin_ssl", "vit_test", views={"flip_lr": wanted, "global_count": 1}))
        (group,) = method.views().groups
        assert group.flip_probability == (0.0, 0.0, 0.2 if wanted else 0.0)


def test_a_single_scan_and_wrong_ranges_are_refused(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    run = run_settings("swin_ssl", "vit_test", views={"global_count": 1})
    run = run.model_copy(update={"training": run.training.model_copy(update={"batch_size": 1})})
    with pytest.raises(UsageError, match="nothing to compare"):
        make_method(run)
    with pytest.raises(UsageError, match="cutout_sides"):
        run_settings("swin_ssl", "vit_test", settings={"cutout_sides": [0.5, 0.2]})


@pytest.mark.parametrize(("preset", "rate"), [("vit_test", 3e-3), ("resenc_test", 1e-2)])
def test_four_scans_are_fitted(preset: str, rate: float, toolbox: Toolbox) -> None:
    """The same turns and holes every time; with heads that read what all scans share, a ViT finds nothing."""
    method = built(toolbox, preset, shape=(12, 12, 12))
    views = toolbox[2](batch=4, global_shapes=((12, 12, 12),), detail=2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=rate, weight_decay=0.0)
    lines = []
    for step in range(50):
        result = method.training_step(views, Clock(step, 50, 0, 50))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        lines.append({k: float(v) for k, v in result.logs.items()})
    assert lines[-1]["rotation_accuracy"] == 1
    assert lines[-1]["found"] == 1
    assert lines[-1]["contrastive"] < 0.5 * math.log(7), "log 7 says that all copies look the same"
    assert lines[-1]["hole_error"] < 0.6 * lines[0]["hole_error"]


def _half(rank: int, folder: str, method: SwinSsl, views: list[Views]) -> None:
    torch.set_num_threads(1)
    method = copy.deepcopy(method)  # the parameters came in shared memory
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss = method.training_step(views[rank], CLOCK).loss
    loss.backward()
    gradients = [p.grad for p in method.parameters()]
    for gradient in gradients:  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    torch.save({"loss": loss.detach(), "gradients": gradients}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(toolbox: Toolbox, tmp_path: Path) -> None:
    method, shape = built(toolbox, views=2), (12, 24, 24)
    parts = [toolbox[2](batch=2, seed=s, global_shapes=(shape, shape)) for s in (1, 2)]
    for rank, part in enumerate(parts):
        part.seed, part.sample_index = 0, torch.arange(2) + 2 * rank
    torch.multiprocessing.spawn(_half, (str(tmp_path), method, parts), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    def both(kind: str) -> dict[str, tuple[Tensor, ...]]:
        pairs = zip(*(getattr(v, kind)["global"] for v in parts), strict=True)
        return {"global": tuple(torch.cat(pair) for pair in pairs)}

    whole = Views(both("groups"), both("inside"), torch.arange(4), seed=0, epoch=0)
    loss = method.training_step(whole, CLOCK).loss
    loss.backward()
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss.detach())
    size = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm()
    for part in found:
        for (name, parameter), gradient in zip(method.named_parameters(), part["gradients"], strict=True):
            assert parameter.grad is not None
            assert (gradient - parameter.grad).norm() < 1e-5 * size, name


def test_published_numbers() -> None:
    s = SwinSslSettings()
    assert (s.rotation_weight, s.contrastive_weight, s.inpainting_weight) == (1.0, 1.0, 1.0)
    assert (s.temperature, s.head_outputs, s.cutout_share, s.cutout_sides) == (0.5, 512, 0.3, (0.05, 0.25))
