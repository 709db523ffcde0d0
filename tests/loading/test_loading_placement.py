"""Placement: views that overlap, grids of views, and views within a grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headctssl.contract import InputSpec
from headctssl.loading.draws import ViewDraw, anchor_of, draw_view
from headctssl.loading.view_plan import ViewGroup, ViewPlan
from headctssl.loading.views import make_views
from headctssl.types import PretrainBatch

FRAME = np.array([[-10.0, 90.0], [4.0, 84.0], [0.0, 120.0]])
HEAD = np.array([[5.0, 80.0], [10.0, 70.0], [20.0, 100.0]])
EDGE = 1e-6


def draw_all(
    groups: tuple[ViewGroup, ...], seed: int, head: NDArray[np.float64] = HEAD, focus: NDArray[np.float64] | None = None
) -> dict[str, list[NDArray[np.float64]]]:
    """The boxes of all views of one scan by group."""
    generator, drawn = np.random.default_rng(seed), dict[str, list[ViewDraw]]()
    for group in groups:
        for position in range(group.count):
            anchor = anchor_of(group, position, drawn)
            draw = draw_view(group, position, FRAME, head, generator, focus, anchor)
            drawn.setdefault(group.name, []).append(draw)
    return {name: [draw.grid.edges for draw in draws] for name, draws in drawn.items()}


def common(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Volume that two boxes share."""
    sides = np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0])
    return float(np.clip(sides, 0, None).prod())


def volume(box: NDArray[np.float64]) -> float:
    return float((box[:, 1] - box[:, 0]).prod())


@given(
    scale=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
    overlap=st.floats(0.01, 1.0),
    corner=st.tuples(*[st.floats(-10.0, 100.0)] * 3),
    focused=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=300, deadline=None)
def test_views_overlap_by_the_share_that_is_asked_for(
    scale: tuple[float, float], overlap: float, corner: tuple[float, ...], focused: bool, seed: int
) -> None:
    group = ViewGroup("global", 3, (8, 8, 8), (min(scale), max(scale)), overlap=overlap)
    head = np.stack([np.minimum(corner, FRAME[:, 1] - 10), np.minimum(corner, FRAME[:, 1] - 10) + 10], axis=1)
    first, *others = draw_all((group,), seed, head, np.asarray(corner) if focused else None)["global"]
    for other in others:
        assert common(first, other) >= overlap * max(volume(first), volume(other)) * (1 - 1e-6)
        assert (other[:, 0] >= FRAME[:, 0] - EDGE).all()
        assert (other[:, 1] <= FRAME[:, 1] + EDGE).all()


def test_overlapping_views_still_differ_and_cover_the_head() -> None:
    group = ViewGroup("global", 2, (8, 8, 8), (0.5, 1.0), overlap=0.5)
    shares, heads = [], []
    for seed in range(2000):
        first, second = draw_all((group,), seed)["global"]
        shares.append(common(first, second) / max(volume(first), volume(second)))
        heads.append([common(view, HEAD) / volume(HEAD) for view in (first, second)])
    assert min(shares) >= 0.5 - 1e-9
    assert np.quantile(shares, 0.25) < 0.7, "many pairs are hardly more alike than asked for"
    assert np.quantile(shares, 0.95) > 0.75
    one, two = np.mean(heads, axis=0)
    assert two == pytest.approx(one, rel=0.1), "the second view sees as much of the head as the first"


def test_without_overlap_views_may_hardly_meet() -> None:
    group = ViewGroup("global", 2, (8, 8, 8), (0.3, 0.4))
    shares = []
    for seed in range(300):
        first, second = draw_all((group,), seed, FRAME)["global"]
        shares.append(common(first, second) / max(volume(first), volume(second)))
    assert np.median(shares) < 0.1


BASE = ViewGroup("base", 9, (8, 8, 8), (0.6, 1.0), grid=3)
CROPS = ViewGroup("crop", 4, (8, 8, 8), (0.6, 1.0), grid=3, within="base")


@given(seed=st.integers(0, 100_000), focused=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_grid_tiles_its_hull_and_crops_lie_within(seed: int, focused: bool) -> None:
    drawn = draw_all((BASE, CROPS), seed, focus=np.array([10.0, 12.0, 25.0]) if focused else None)
    cells, crops = drawn["base"], drawn["crop"]
    hull = np.stack([np.min([c[:, 0] for c in cells], axis=0), np.max([c[:, 1] for c in cells], axis=0)], axis=1)
    assert volume(hull) == pytest.approx(sum(volume(c) for c in cells))
    share = (hull[:, 1] - hull[:, 0]) / (FRAME[:, 1] - FRAME[:, 0])
    assert (share[1:] >= 0.6 - EDGE).all()
    assert (share[1:] <= 1 + EDGE).all()
    assert 0.2 - EDGE <= share[0] <= 1 / 3 + EDGE
    assert (hull[:, 0] >= FRAME[:, 0] - EDGE).all()
    assert (hull[:, 1] <= FRAME[:, 1] + EDGE).all()
    for row in range(3):
        for column in range(3):
            step = cells[3 * row + column][:, 0] - cells[0][:, 0]
            assert np.allclose(step, (0, row, column) * (cells[0][:, 1] - cells[0][:, 0]), atol=EDGE)
    for crop in crops:
        assert np.allclose(crop[:, 1] - crop[:, 0], cells[0][:, 1] - cells[0][:, 0])
        assert sum(common(crop, c) for c in cells) == pytest.approx(volume(crop), rel=1e-6)


def test_grids_are_jittered_and_crops_go_everywhere() -> None:
    drawn = [draw_all((BASE, CROPS), seed) for seed in range(500)]
    starts = np.array([d["base"][0][:, 0] for d in drawn])
    assert (starts.std(axis=0) > 2).all(), "the place of a cell says little of where in the head it is"
    inside = []
    for d in drawn:
        cell = d["base"][0][:, 1] - d["base"][0][:, 0]
        inside += [((crop[:, 0] - d["base"][0][:, 0]) / cell)[1:] for crop in d["crop"]]
    assert np.allclose(np.mean(inside, axis=0), 1, atol=0.08)
    assert np.ptp(inside, axis=0).min() > 1.9


def test_boxes_are_those_of_the_draws_whatever_the_batch(
    make_batch: Callable[..., PretrainBatch], make_spec: Callable[..., InputSpec]
) -> None:
    volumes = np.random.default_rng(0).integers(-1000, 1000, (3, 30, 34, 28)).astype(np.int16)
    spec, overlapping = make_spec((8, 8, 8), 3.0), ViewGroup("global", 2, (8, 8, 8), (0.5, 1.0), overlap=0.5)
    plan = ViewPlan((overlapping, BASE, CROPS))
    heads = [((2, 28), (3, 30), (4, 26)), ((0, 30), (0, 34), (0, 28)), ((5, 20), (5, 30), (2, 20))]
    together = make_views(make_batch(volumes, None, heads, samples=[4, 7, 9]), plan, spec)
    assert {name: tuple(boxes.shape) for name, boxes in together.boxes.items()} == {
        "global": (2, 3, 3, 2),
        "base": (9, 3, 3, 2),
        "crop": (4, 3, 3, 2),
    }
    alone = make_views(make_batch(volumes[1:2], None, heads[1:2], samples=[7]), plan, spec)
    for name, boxes in alone.boxes.items():
        assert torch.equal(boxes[:, 0], together.boxes[name][:, 1])
        assert all(torch.equal(a[0], b[1]) for a, b in zip(alone.groups[name], together.groups[name], strict=True))
    for first, second in together.boxes["global"].transpose(0, 1).double().numpy():
        assert common(first, second) >= 0.5 * max(volume(first), volume(second)) * (1 - 1e-4)
