"""Views: cut as a slow reference cuts them, alone or in a batch, with landmarks where they belong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import InputSpec
from headctssl.loading import cut, separable
from headctssl.loading.augment import rotation_matrix
from headctssl.loading.crop_resize import crop_and_resize, crop_and_resize_in_blocks, crop_and_resize_together
from headctssl.loading.draws import Grid, draw_view, frame_of
from headctssl.loading.view_plan import ViewGroup, ViewPlan, view_plan
from headctssl.loading.views import make_views, whole_head_view
from headctssl.planning.run_settings import ViewSettings
from headctssl.seeding import sample_generator
from headctssl.types import PretrainBatch
from headctssl.volume.geometry import axis_weights

MakeBatch = Callable[..., PretrainBatch]
MakeSpec = Callable[..., InputSpec]

EVERYTHING = ViewSettings(
    local_count=2,
    local_shape=(8, 8, 8),
    flip_lr=True,
    flip_probability=0.5,
    rotate_probability=0.5,
    window_probability=0.5,
    noise_probability=0.5,
    blur_probability=(0.5, 0.5),
    gamma_probability=(0.5, 0.5),
)


def random_volumes(count: int, shape: tuple[int, int, int] = (30, 34, 28), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, (count, *shape), dtype=np.int16)


coordinate = st.floats(-12.0, 14.0)
size = st.floats(0.3, 4.5)


@given(
    start=st.tuples(coordinate, coordinate, coordinate),
    step=st.tuples(size, size, size),
    flip=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    box=st.tuples(*[st.tuples(st.integers(0, 5), st.integers(8, 14))] * 3),
)
@settings(max_examples=40, deadline=None)
def test_crop_and_resize_is_the_slow_reference(
    start: tuple[float, ...], step: tuple[float, ...], flip: tuple[bool, ...], box: tuple[tuple[int, int], ...]
) -> None:
    """The reference uses every stored voxel and whole matrices; `axis_weights` itself is tested in volume."""
    shape = (6, 35, 9)  # 35: more than one band of weights
    hu = random_volumes(1, (14, 15, 16))[0]
    expected = hu[tuple(slice(a, b) for a, b in box)].astype(np.float64) + 1024
    expected_share = np.ones(())
    for axis, ((a, b), s, t, n) in enumerate(zip(box, start, step, shape, strict=True)):
        rows = axis_weights(b - a, n, s - a, t).astype(np.float64)
        rows = rows[::-1] if flip[axis] else rows
        expected = np.moveaxis(np.tensordot(rows, expected, axes=(1, axis)), 0, axis)
        expected_share = np.multiply.outer(expected_share, rows.sum(axis=1))
    grid = Grid(start, step, shape, flip)  # type: ignore[arg-type]  # hypothesis gives tuples of any length
    found, (z, y, x) = crop_and_resize(torch.from_numpy(hu), grid, np.asarray(box, float))
    assert np.allclose(found.numpy(), expected - 1024, atol=0.02)
    share = z[:, None, None] * y[:, None] * x
    assert np.allclose(share, expected_share, atol=1e-5)


@pytest.mark.parametrize("fill", [-1024.0, 0.0])
def test_the_ways_of_a_cpu_and_of_other_devices_agree(monkeypatch: pytest.MonkeyPatch, fill: float) -> None:
    volume = torch.from_numpy(random_volumes(1, (50, 40, 45))[0])
    grid = Grid((1.0, -2.0, 0.5), (1.3, 0.8, 0.9), (33, 40, 37), (False, True, False))
    box = np.array([[0, 50], [0, 40], [2, 45]], float)
    found, _ = crop_and_resize(volume, grid, box, fill)
    monkeypatch.setattr(separable, "_SLAB", 1000)
    monkeypatch.setattr(separable, "_BAND", 1000)
    at_once, _ = crop_and_resize(volume, grid, box, fill)
    assert torch.allclose(found, at_once, atol=2e-3), "slabs and bands change nothing"
    monkeypatch.setattr(separable, "_on_cpu", separable._on_device)
    dense, _ = crop_and_resize(volume, grid, box, fill)
    assert dense.shape == found.shape
    assert torch.allclose(found, dense, atol=2e-3)


@pytest.mark.parametrize(("slab", "planes"), [(16, 8), (3, 4), (1, 1)])
@pytest.mark.parametrize(
    ("start", "step", "flip"),
    [(1.0, 1.3, False), (1.0, 1.3, True), (3.0, 0.2, True), (0.0, 2.4, False), (-40.0, 2.5, False), (60.0, 1.0, True)],
)
def test_blocks_are_the_planes_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, slab: int, planes: int, start: float, step: float, flip: bool
) -> None:
    """Each plane once, with planes kept or thrown away between blocks, some or all of them outside the volume."""
    monkeypatch.setattr(separable, "_SLAB", slab)
    monkeypatch.setattr(separable, "_PLANES", planes)
    volume = torch.from_numpy(random_volumes(1, (50, 20, 25))[0])
    grid = Grid((start, -2.0, 0.5), (step, 0.8, 0.9), (35, 18, 20), (flip, True, False))
    box = np.array([[0, 50], [0, 20], [2, 25]], float)
    whole, cover = crop_and_resize(volume, grid, box)
    monkeypatch.setattr(separable, "_on_cpu", separable._on_device)
    assert torch.allclose(whole, crop_and_resize(volume, grid, box)[0], atol=2e-3)
    blocks, again = crop_and_resize_in_blocks(volume, grid, box)
    found, seen = torch.full(grid.shape, torch.nan), []
    for rows, values in blocks:
        found[rows] = values
        seen += range(35)[rows]
    assert sorted(seen) == list(range(35))
    assert torch.equal(found, whole)
    assert all(np.array_equal(a, b) for a, b in zip(cover, again, strict=True))


def test_several_volumes_at_once_are_as_each_alone() -> None:
    """What a GPU does, on this CPU: also where a grid lies wholly outside the stored voxels."""
    volume = torch.from_numpy(random_volumes(4))
    boxes = np.array(
        [[[0, 30], [0, 34], [0, 28]], [[2, 20], [0, 34], [3, 25]], [[0, 9]] * 3, [[25, 30], [1, 4], [0, 28]]]
    )
    grids = [
        Grid((1.0, -2.0, 0.5), (1.3, 0.8, 0.9), (20, 21, 22), (False, True, False)),
        Grid((-3.0, 4.0, 2.5), (1.0, 1.4, 0.7), (20, 21, 22), (True, False, True)),
        Grid((12.0, 12.0, 12.0), (0.5, 0.4, 0.6), (20, 21, 22)),
        Grid((20.0, 0.0, 0.5), (0.4, 2.2, 0.9), (20, 21, 22)),
    ]
    found, covers = crop_and_resize_together(volume, grids, boxes.astype(float))
    assert (found[2] == -1024).all()
    for i, grid in enumerate(grids):
        alone, cover = crop_and_resize(volume[i], grid, boxes[i].astype(float))
        assert torch.allclose(found[i], alone, atol=2e-3)
        for one, other in zip(covers[i], cover, strict=True):
            assert np.allclose(one, other, atol=1e-5) or (found[i] == -1024).all()


def test_views_of_a_gpu_are_those_of_a_cpu(
    make_batch: MakeBatch, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of several samples at once, taken on this CPU: with rotations in some chunks and none in others."""
    batch, spec = make_batch(random_volumes(6), samples=list(range(6))), make_spec()
    for settings_of_views in (EVERYTHING, ViewSettings(local_count=1, local_shape=(8, 8, 8), window_probability=0.5)):
        plan = view_plan(settings_of_views, spec)
        expected = make_views(batch, plan, spec)
        monkeypatch.setattr(cut, "_at_once", lambda device: 4)
        found = make_views(batch, plan, spec)
        monkeypatch.undo()
        for name in expected.groups:
            for one, other in zip(found.groups[name], expected.groups[name], strict=True):
                assert torch.allclose(one, other, atol=1e-3)
            for one, other in zip(found.inside[name], expected.inside[name], strict=True):
                assert torch.allclose(one, other, atol=1e-5)
            assert torch.allclose(found.foreground[name], expected.foreground[name], atol=0.01)


def test_a_view_does_not_depend_on_batch_mates_padding_or_random_state(
    make_batch: MakeBatch, make_spec: MakeSpec
) -> None:
    """Eight scans at once and each of them alone, with every augmentation."""
    spec, plan = make_spec(), view_plan(EVERYTHING, make_spec())
    boxes = [
        ((0, 30), (0, 34), (0, 28)),
        ((2, 20), (0, 34), (3, 25)),
        ((0, 9), (0, 11), (0, 8)),
        ((5, 30), (1, 30), (0, 28)),
    ] * 2
    heads = [
        ((2, 28), (3, 30), (4, 24)),
        ((3, 19), (3, 30), (4, 24)),
        ((1, 8), (1, 10), (1, 7)),
        ((6, 30), (2, 28), (2, 26)),
    ] * 2
    volumes, samples = random_volumes(8), [7, 3, 11, 0, 4, 9, 2, 5]
    together = make_views(make_batch(volumes, boxes, heads, samples=samples, seed=5, epoch=2), plan, spec)
    for i, sample in enumerate(samples):
        torch.manual_seed(i)
        wide = np.pad(volumes[i : i + 1], ((0, 0), (0, 6), (0, 3), (0, 9)), constant_values=99)
        alone = make_views(make_batch(wide, [boxes[i]], [heads[i]], samples=[sample], seed=5, epoch=2), plan, spec)
        for name in together.groups:
            for many, one in zip(together.groups[name], alone.groups[name], strict=True):
                assert torch.equal(many[i], one[0])
            for many, one in zip(together.inside[name], alone.inside[name], strict=True):
                assert torch.equal(many[i], one[0])
            assert torch.equal(together.foreground[name][:, i], alone.foreground[name][:, 0])
    for seed, epoch in ((5, 3), (6, 2)):
        other = make_views(make_batch(volumes, boxes, heads, samples=samples, seed=seed, epoch=epoch), plan, spec)
        assert not torch.equal(other.groups["global"][0], together.groups["global"][0])


def test_shapes_range_and_no_aliasing(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    spec, plan = make_spec(), view_plan(EVERYTHING, make_spec())
    batch = make_batch(random_volumes(3))
    before = batch.volume.clone()
    views = make_views(batch, plan, spec)
    assert torch.equal(batch.volume, before)
    assert {name: len(group) for name, group in views.groups.items()} == {"global": 2, "local": 2}
    tensors = []
    for name, shape in (("global", (16, 16, 16)), ("local", (8, 8, 8))):
        for view, inside in zip(views.groups[name], views.inside[name], strict=True):
            assert view.shape == (3, 2, *shape)
            assert inside.shape == (3, 1, *shape)
            assert view.dtype == inside.dtype == torch.float32
            assert view.min() >= 0
            assert view.max() <= 1
            assert inside.min() >= 0
            assert inside.max() <= 1
            tensors += [view, inside]
        assert views.foreground[name].shape == (2, 3)
    storages = {t.untyped_storage().data_ptr() for t in (*tensors, batch.volume)}
    assert len(storages) == len(tensors) + 1, "no view shares memory with another or with the batch"
    assert not any(t.requires_grad for t in tensors)


def test_autocast_and_reduced_precision_stay_outside(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    batch, plan, spec = make_batch(random_volumes(1)), view_plan(EVERYTHING, make_spec()), make_spec()
    plain = make_views(batch, plan, spec)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = make_views(batch, plan, spec)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    for name in plain.groups:
        assert all(torch.equal(a, b) for a, b in zip(plain.groups[name], inside.groups[name], strict=True))


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("rule", ["fixed_spacing", "stretch_to_shape"])
def test_a_landmark_lands_where_the_draw_says(
    make_batch: MakeBatch, make_spec: MakeSpec, rotated: bool, rule: str
) -> None:
    """A ball drawn at a known place of the head is found where crop, flip and rotation carry it."""
    mm, head = (1.5, 1.0, 1.25), ((4, 40), (2, 58), (6, 46))
    spec = make_spec((24, 24, 24), (2.0, 2.4, 2.2), rule)
    group = ViewGroup("global", 2, (24, 24, 24), (0.7, 1.0), flip_probability=(0.5, 0.5, 0.5))
    group = replace(group, rotate_probability=1.0, rotate_degrees=20.0) if rotated else group
    seen = 0
    for sample, place in itertools.product(range(4), [(20, 30, 25), (28, 22, 33), (14, 40, 18)]):
        volume = np.full((44, 60, 52), 20, np.int16)
        z, y, x = (np.arange(n) - p for n, p in zip(volume.shape, place, strict=True))
        ball = (z[:, None, None] * mm[0]) ** 2 + (y[:, None] * mm[1]) ** 2 + (x * mm[2]) ** 2 < 5.0**2
        volume[ball] = 2000
        batch = make_batch(volume[None], None, [head], spacing=mm, samples=[sample], seed=9)
        views = make_views(batch, ViewPlan((group,)), spec)
        generator = sample_generator(9, 0, sample, "view")
        frame = frame_of(np.asarray(head, float), np.asarray(mm), spec)
        for position, view in enumerate(views.groups["global"]):
            draw = draw_view(group, position, frame, np.asarray(head, float), generator)
            expected = (np.asarray(place) - draw.grid.start) / draw.grid.step
            expected = np.where(draw.grid.flip, 23 - expected, expected)
            if draw.rotation_deg is not None:
                voxel = np.asarray(draw.grid.step) * np.asarray(mm)
                expected = rotation_matrix(draw.rotation_deg) @ ((expected - 11.5) * voxel) / voxel + 11.5
            if (expected < 4).any() or (expected > 19).any():
                continue  # the ball is not wholly in this view
            bone = view[0, 1].numpy() - (20 + 800) / 2800
            bone[bone < 0.05] = 0
            found = [np.average(np.arange(24), weights=bone.sum(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
            assert np.abs(found - expected).max() < 0.1, f"sample {sample}, view {position}"
            seen += 1
    assert seen >= 10


def test_rotation_shows_no_empty_corners(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    volume = np.full((1, 60, 60, 60), 700, np.int16)
    group = ViewGroup("global", 4, (16, 16, 16), (0.5, 0.6), rotate_probability=1.0, rotate_degrees=30.0)
    spec = make_spec((16, 16, 16), 2.0)
    head = ((14, 46), (14, 46), (14, 46))
    views = make_views(make_batch(volume, None, [head]), ViewPlan((group,)), spec)
    for view, inside in zip(views.groups["global"], views.inside["global"], strict=True):
        assert torch.allclose(view[:, 1], torch.tensor((700 + 800) / 2800), atol=1e-5)
        assert inside.min() > 0.999


def test_inside_is_the_resampled_mask(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    box = ((3, 25), (5, 34), (0, 20))
    batch = make_batch(random_volumes(2), [box, ((0, 10), (0, 12), (0, 9))], [box, ((1, 9), (1, 11), (1, 8))])
    group = ViewGroup("global", 3, (12, 12, 12), (0.6, 1.0), flip_probability=(0.5, 0.5, 0.5))
    views = make_views(batch, ViewPlan((group,)), make_spec((12, 12, 12), 4.0))
    # The same views of a volume that is 1,000 HU where a voxel was stored and air elsewhere.
    as_hu = torch.where(batch.inside, 376, -1024).to(torch.int16)
    spec = InputSpec.model_validate(
        make_spec((12, 12, 12), 4.0).model_dump() | {"windows": [{"level": -324, "width": 1400}]}
    )
    masks = make_views(replace(batch, volume=as_hu), ViewPlan((group,)), spec)
    for inside, mask in zip(views.inside["global"], masks.groups["global"], strict=True):
        assert torch.allclose(inside, mask, atol=1e-5)
        assert 0.02 < inside.mean() < 0.98


def ellipsoid_head(shape: tuple[int, int, int] = (56, 70, 60)) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """A head-sized ellipsoid of 30 HU in a box of air with 6 voxels of margin, at 3 mm."""
    z, y, x = (np.linspace(-1, 1, n) * n / (n - 12) for n in shape)
    head = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= 1
    return np.where(head, 30, -1000).astype(np.int16), tuple((6, n - 6) for n in shape)


def test_views_are_mostly_head(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    """An ellipsoid fills 52 % of its box; crops that hold the head must not fall far below that."""
    volume, head = ellipsoid_head()
    spec = make_spec((16, 16, 16), (10.5, 13.1, 11.2))
    count = 30
    batch = make_batch(np.stack([volume] * count), None, [head] * count, spacing=(3.0, 3.0, 3.0))
    views = make_views(batch, view_plan(ViewSettings(local_count=2, local_shape=(16, 16, 16)), spec), spec)
    assert float(views.foreground["local"].mean()) > 0.55
    assert float(views.foreground["global"].mean()) > 0.5
    for name, group in views.groups.items():
        share = torch.stack(list(views.inside[name])).mean()
        assert share > 0.97
        assert group[0].std() > 0.1
    whole = whole_head_view(batch, spec)
    expected = (volume > -500).mean() * volume.size * 27 / np.prod(spec.field_of_view_mm)
    assert abs(float(whole.foreground["global"].mean()) - expected) < 0.03


def test_whole_head_is_deterministic_and_centred(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    volume, head = ellipsoid_head((40, 50, 44))
    spec = make_spec((32, 32, 32), 5.0)
    batch = make_batch(volume[None], None, [head], spacing=(2.0, 2.0, 2.0))
    one = whole_head_view(batch, spec)
    two = whole_head_view(replace(batch, seed=4, epoch=3, sample_index=torch.tensor([9])), spec)
    view = one.groups["global"][0]
    assert torch.equal(view, two.groups["global"][0])
    assert len(one.groups["global"]) == 1
    assert view.shape == (1, 2, 32, 32, 32)
    # 28 voxels of 2 mm = 56 mm = 11.2 voxels of 5 mm along z, centred.
    for axis, side in ((0, 28 * 2 / 5), (1, 38 * 2 / 5), (2, 32 * 2 / 5)):
        others = tuple(a for a in range(3) if a != axis)
        profile = view[0, 1].amax(dim=others) > 0.1
        places = torch.nonzero(profile).flatten()
        assert abs(float(places[-1] - places[0] + 1) - side) <= 1.5
        assert abs(float(places.double().mean()) - 15.5) <= 0.5


def test_whole_head_larger_than_the_field_of_view_is_scaled_down_alike_on_all_axes(
    make_batch: MakeBatch, make_spec: MakeSpec
) -> None:
    volume, head = ellipsoid_head((52, 92, 62))  # head of 40 x 80 x 50 voxels
    spec = make_spec((20, 20, 20), 2.0)  # 40 mm of view for 80 mm of head
    view = whole_head_view(make_batch(volume[None], None, [head]), spec).groups["global"][0][0, 1]
    for axis, side in enumerate((10, 20, 12.5)):
        others = tuple(a for a in range(3) if a != axis)
        places = torch.nonzero(view.amax(dim=others) > 0.1).flatten()
        assert abs(float(places[-1] - places[0] + 1) - side) <= 1.5
    stretched = whole_head_view(
        make_batch(volume[None], None, [head]), make_spec((20, 20, 20), 2.0, "stretch_to_shape")
    ).groups["global"][0][0, 1]
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        assert (stretched.amax(dim=others) > 0.03).all(), "the head touches all six sides"


def test_whole_head_of_a_volume_of_any_shape_equals_that_of_its_padded_copy(
    make_batch: MakeBatch, make_spec: MakeSpec
) -> None:
    volume, head = ellipsoid_head((33, 47, 41))
    spec = make_spec((24, 16, 20), (3.0, 4.0, 4.0))
    exact = whole_head_view(make_batch(volume[None], None, [head]), spec)
    padded = np.pad(volume, ((4, 7), (9, 2), (3, 3)), constant_values=-1024)
    box = ((4, 37), (9, 56), (3, 44))
    moved = tuple((a + s, b + s) for (a, b), s in zip(head, (4, 9, 3), strict=True))
    other = whole_head_view(make_batch(padded[None], [box], [moved]), spec)
    assert torch.allclose(exact.groups["global"][0], other.groups["global"][0], atol=1e-5)
    assert torch.allclose(exact.inside["global"][0], other.inside["global"][0], atol=1e-6)


def test_windows_that_moved_show_what_was_clipped(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    """The reference: the same view in Hounsfield units through the drawn window, number by number."""
    spec = make_spec()
    group = ViewGroup(
        "global", 2, (16, 16, 16), (0.6, 1.0), window_probability=0.7, window_shift=0.3, window_stretch=0.5
    )
    samples = list(range(6))
    batch = make_batch(random_volumes(6), samples=samples, seed=3)
    views = make_views(batch, ViewPlan((group,)), spec)
    # A window as wide as all of int16 gives the Hounsfield units back.
    low, width = -2048.0, 8192.0
    wide = InputSpec.model_validate(spec.model_dump() | {"windows": [{"level": low + width / 2, "width": width}]})
    plain = make_views(batch, ViewPlan((replace(group, window_probability=0.0),)), wide)
    moved = 0
    for sample in samples:
        generator, head = sample_generator(3, 0, sample, "view"), batch.head_box[sample].double().numpy()
        frame = frame_of(head, np.ones(3), spec)
        for position in range(group.count):
            draw = draw_view(group, position, frame, head, generator)
            hu = plain.groups["global"][position][sample, 0].double().numpy() * width + low
            for channel, window in enumerate(spec.windows):
                size = window.width * draw.window_stretch
                lowest = window.level + draw.window_shift * window.width - size / 2
                expected = np.clip((hu - lowest) / size, 0, 1)
                found = views.groups["global"][position][sample, channel].numpy()
                assert np.abs(found - expected).max() < 2e-3 * 80 / size + 1e-4
            moved += draw.window_shift != 0
    assert 4 <= moved <= 11


def test_the_share_of_stored_voxels_is_made_when_it_is_asked_for(make_batch: MakeBatch, make_spec: MakeSpec) -> None:
    views = make_views(make_batch(random_volumes(2)), view_plan(EVERYTHING, make_spec()), make_spec())
    shares = views.inside["global"]
    assert len(shares) == 2
    assert shares[0] is shares[0], "made once"
    assert shares[-1] is shares[1]
    assert [share.shape for share in shares[:2]] == [(2, 1, 16, 16, 16)] * 2
    with pytest.raises(IndexError):
        shares[2]
