"""Draws: where views lie, and what the settings switch on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import InputSpec
from headctssl.loading.draws import centred_grid, draw_view, frame_of
from headctssl.loading.view_plan import ViewGroup, global_group, local_group, view_plan
from headctssl.planning.run_settings import ViewSettings

GROUP = ViewGroup("global", 2, (8, 10, 12), (0.3, 1.0))
edge = st.floats(0.0, 60.0)


@given(
    scale=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
    low=st.tuples(edge, edge, edge),
    side=st.tuples(*[st.floats(4.0, 200.0)] * 3),
    field=st.tuples(*[st.floats(20.0, 250.0)] * 3),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_in_the_frame_and_holds_as_much_of_the_head_as_it_can(
    scale: tuple[float, float], low: tuple[float, ...], side: tuple[float, ...], field: tuple[float, ...], seed: int
) -> None:
    head = np.stack([low, np.add(low, side)], axis=1)
    grow = max(1.0, float(np.max(np.divide(side, field))))
    centre = head.mean(axis=1)
    frame = np.stack([centre - np.multiply(field, grow / 2), centre + np.multiply(field, grow / 2)], axis=1)
    group = replace(GROUP, scale=(min(scale), max(scale)))
    grid = draw_view(group, 0, frame, head, np.random.default_rng(seed)).grid
    step = np.asarray(grid.step)
    start = np.asarray(grid.start) - 0.5 * step + 0.5
    stop = start + step * np.asarray(group.shape)
    share = (stop - start) / (frame[:, 1] - frame[:, 0])
    assert (share >= group.scale[0] - 1e-9).all()
    assert (share <= group.scale[1] + 1e-9).all()
    assert (start >= frame[:, 0] - 1e-6).all()
    assert (stop <= frame[:, 1] + 1e-6).all()
    overlap = np.minimum(stop, head[:, 1]) - np.maximum(start, head[:, 0])
    assert np.allclose(overlap, np.minimum(stop - start, np.asarray(side)), atol=1e-6)


def test_frame(make_spec: Callable[..., InputSpec]) -> None:
    spec = make_spec((16, 16, 16), (3.0, 2.0, 2.0))  # 48 x 32 x 32 mm
    mm = np.array([1.5, 1.0, 1.0])
    small = frame_of(np.array([[4.0, 20.0], [0.0, 20.0], [10.0, 30.0]]), mm, spec)
    assert np.allclose(small, [[-4, 28], [-6, 26], [4, 36]])
    # 40 voxels of 1 mm do not fit into 32 mm: every side grows by 1.25.
    large = frame_of(np.array([[4.0, 20.0], [0.0, 40.0], [10.0, 30.0]]), mm, spec)
    assert np.allclose(large[:, 1] - large[:, 0], [40, 40, 40])
    assert np.allclose(large.mean(axis=1), [12, 20, 20])
    head = np.array([[4.0, 20.0], [0.0, 40.0], [10.0, 30.0]])
    assert np.array_equal(frame_of(head, mm, make_spec((16, 16, 16), 2.0, "stretch_to_shape")), head)


def test_centred_grid_tiles_its_box() -> None:
    grid = centred_grid(np.array([[0.0, 4.0], [-2.0, 6.0], [1.0, 2.0]]), (4, 4, 4))
    assert grid.step == (1.0, 2.0, 0.25)
    assert grid.start == (0.0, -1.5, 0.625), "voxel i is centred at i and covers [i, i + 1) in edges"


def draws(views: ViewSettings, spec: InputSpec, name: str = "global", position: int = 0, count: int = 3000):  # type: ignore[no-untyped-def]
    group = {g.name: g for g in view_plan(views, spec).groups}[name]
    box = np.array([[0.0, 90.0]] * 3)
    return [draw_view(group, position, box, box, np.random.default_rng(i)) for i in range(count)]


def test_chances_are_those_of_headct_foundation(make_spec: Callable[..., InputSpec]) -> None:
    views = ViewSettings(local_count=2)
    first, second = (draws(views, make_spec(), position=p) for p in (0, 1))
    for drawn, blur, gamma in ((first, 0.2, 0.0), (second, 0.0, 0.2)):
        flips = np.array([d.grid.flip for d in drawn]).mean(axis=0)
        assert np.allclose(flips, [0.2, 0.2, 0.0], atol=0.03)
        assert flips[2] == 0, "left and right are never flipped unless asked"
        assert abs(np.mean([d.shift != 0 for d in drawn]) - 0.5) < 0.03
        assert abs(np.mean([d.blur_sigma > 0 for d in drawn]) - blur) < 0.03
        assert abs(np.mean([d.gamma != 1 for d in drawn]) - gamma) < 0.03
        assert not any(d.rotation_deg or d.noise_sigma or d.window_shift or d.window_stretch != 1 for d in drawn)
    assert all(0.5 <= d.blur_sigma <= 1.0 for d in first if d.blur_sigma)
    assert all(0.2 <= d.gamma <= 1.0 for d in second)
    assert all(abs(d.shift) <= 0.2 for d in first)
    sides = np.array([d.grid.step for d in first]) * 16 / 90
    assert sides.min() > 0.5
    assert sides.max() < 1.0
    assert abs(sides.mean() - 0.75) < 0.01
    local = draws(views, make_spec(), "local")
    sides = np.array([d.grid.step for d in local]) * 48 / 90
    assert abs(sides.mean() - 0.395) < 0.005
    assert not any(d.blur_sigma or d.gamma != 1 for d in local)


def test_settings_switch_on_what_they_name(make_spec: Callable[..., InputSpec]) -> None:
    spec = make_spec()
    on = ViewSettings(
        flip_lr=True, flip_probability=1.0, rotate_probability=1.0, rotate_degrees=15.0, noise_probability=1.0
    )
    for draw in draws(on, spec, count=50):
        assert draw.grid.flip == (True, True, True)
        assert draw.rotation_deg is not None
        assert 0 < max(np.abs(draw.rotation_deg)) <= 15
        assert 0 < draw.noise_sigma <= on.noise_sigma
    plain = ViewSettings(local_count=3, augment_local=False, flip_probability=1.0, shift_probability=1.0)
    group = local_group(plain)
    assert group.count == 3
    assert group.shape == (48, 48, 48)
    assert not any(d.shift or any(d.grid.flip) for d in draws(plain, spec, "local", count=50))
    assert [g.name for g in view_plan(ViewSettings(), spec).groups] == ["global"], "no group without views"
    assert global_group(ViewSettings(), spec, count=1).count == 1


def test_windows_move_and_stretch_within_their_limits(make_spec: Callable[..., InputSpec]) -> None:
    asked = ViewSettings(window_probability=0.4, window_shift=0.15, window_stretch=0.3, local_count=1)
    for name in ("global", "local"):
        drawn = [d for d in draws(asked, make_spec(), name) if d.window_shift]
        assert abs(len(drawn) / 3000 - 0.4) < 0.03
        shift, stretch = (np.array([getattr(d, f"window_{what}") for d in drawn]) for what in ("shift", "stretch"))
        assert np.abs(shift).max() <= 0.15
        assert np.abs(stretch - 1).max() <= 0.3
        assert abs(shift.mean()) < 0.01, "to both sides alike"
        assert abs(stretch.mean() - 1) < 0.02
        assert shift.std() > 0.07
        assert stretch.std() > 0.15
        assert abs(np.corrcoef(shift, stretch)[0, 1]) < 0.1, "drawn apart"


def test_left_and_right_are_swapped_only_where_that_was_asked_for(make_spec: Callable[..., InputSpec]) -> None:
    for flip_lr in (False, True):
        views = ViewSettings(flip_probability=1.0, flip_lr=flip_lr, local_count=1)
        for name in ("global", "local"):
            assert {d.grid.flip for d in draws(views, make_spec(), name, count=30)} == {(True, True, flip_lr)}


def test_switching_one_thing_on_leaves_the_others_as_they_were(make_spec: Callable[..., InputSpec]) -> None:
    one = draws(ViewSettings(), make_spec(), count=20)
    more = ViewSettings(rotate_probability=1.0, noise_probability=1.0, window_probability=1.0)
    two = draws(more, make_spec(), count=20)
    assert all(d.window_shift and d.window_stretch != 1 for d in two)
    assert [d.grid for d in one] == [d.grid for d in two]
    assert [d.shift for d in one] == [d.shift for d in two]


def test_a_plan_refuses_two_groups_of_one_name() -> None:
    from headctssl.loading.view_plan import ViewPlan

    with pytest.raises(AssertionError):
        ViewPlan((GROUP, GROUP))
