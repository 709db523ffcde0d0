"""Resampling and orientation: exact where they must be, free of aliasing, equal to a slow reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.volume.geometry import Kernel, axis_weights, is_straight, spacing_of, to_spl
from headctssl.volume.resample import resample, resample_to_hu, resample_to_mask

quick = settings(max_examples=30, deadline=None)
kernels = st.sampled_from(["linear", "cubic"])


def keys(x: float) -> float:
    """Keys 1981, equation 15."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_row(n_in: int, position: float, size: float, kernel: str) -> list[float]:
    """One row of `axis_weights` by its definition, number by number."""
    half = max(1.0, size)
    tent = [max(0.0, 1.0 - abs(i - position) / half) for i in range(n_in)]
    weights = [keys((i - position) / half) for i in range(n_in)] if kernel == "cubic" else tent
    reach = half * (2 if kernel == "cubic" else 1)
    if half > 1 and position - reach >= -1 and position + reach <= n_in:
        first = sum(w * (i - position) for i, w in enumerate(weights))
        second = sum(w * (i - position) ** 2 for i, w in enumerate(tent))
        weights = [w - first / second * t * (i - position) for i, (w, t) in enumerate(zip(weights, tent, strict=True))]
    on_input = min(position + size / 2, n_in - 0.5) - max(position - size / 2, -0.5)
    share = min(1.0, max(0.0, on_input / size))
    total = sum(weights)
    return [w / total * share if total > 0 else 0.0 for w in weights]


@quick
@given(st.integers(1, 30), st.integers(1, 20), st.floats(-40, 40), st.floats(0.1, 6), st.booleans(), kernels)
def test_axis_weights_equal_the_slow_reference(
    n_in: int, n_out: int, start: float, step: float, flip: bool, kernel: Kernel
) -> None:
    step = -step if flip else step
    expected = [slow_row(n_in, start + j * step, abs(step), kernel) for j in range(n_out)]
    got = axis_weights(n_in, n_out, start, step, kernel=kernel)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.reshape(expected, (n_out, n_in)), atol=2e-6)


@quick
@given(st.lists(st.tuples(st.floats(-5, 20), st.floats(0.2, 4)), min_size=1, max_size=4))
def test_a_batch_of_weights_is_the_single_ones(samples: list[tuple[float, float]]) -> None:
    starts, steps = np.array(samples).T
    batch = axis_weights(16, 7, starts, steps)
    assert batch.shape == (len(samples), 7, 16)
    for row, start, step in zip(batch, starts, steps, strict=True):
        np.testing.assert_array_equal(row, axis_weights(16, 7, start, step))


@quick
@given(st.integers(1, 40), st.floats(-60, 60), st.floats(0.05, 9), kernels)
def test_rows_are_a_share_and_sum_to_one_inside(n_in: int, start: float, step: float, kernel: Kernel) -> None:
    W = axis_weights(n_in, 25, start, step, kernel=kernel)
    position = start + step * np.arange(25)
    sums = W.sum(axis=1)
    assert W.min() >= (0 if kernel == "linear" else -0.2)
    assert sums.max() <= 1 + 1e-5
    inside = (position - step / 2 >= -0.5) & (position + step / 2 <= n_in - 0.5)
    outside = (position - step / 2 >= n_in - 0.5) | (position + step / 2 <= -0.5)
    np.testing.assert_allclose(sums[inside], 1.0, atol=1e-5)
    np.testing.assert_array_equal(W[outside], 0.0)


@quick
@given(st.floats(0.05, 8), kernels)
def test_a_ramp_is_exact_inside(step: float, kernel: Kernel) -> None:
    n_in, reach = 120, max(1.0, step) * (2 if kernel == "cubic" else 1)
    n_out = int((n_in - 1 - 2 * reach) / step) + 1
    position = reach + step * np.arange(n_out)
    np.testing.assert_allclose(
        axis_weights(n_in, n_out, reach, step, kernel=kernel) @ np.arange(n_in), position, atol=1e-3
    )


@quick
@given(st.tuples(*[st.floats(0.3, 3)] * 3), st.tuples(*[st.integers(-20, 20)] * 3))
def test_a_plane_in_space_is_exact_inside(step: tuple[float, float, float], slope: tuple[int, int, int]) -> None:
    grid = np.indices((26, 28, 30))
    hu = np.tensordot(slope, grid, 1).astype(np.int16)
    reach = [2 * max(1.0, s) for s in step]
    shape = tuple(int((n - 1 - 2 * r) / s) + 1 for n, r, s in zip(hu.shape, reach, step, strict=True))
    out = resample(hu, (reach[0], reach[1], reach[2]), step, (shape[0], shape[1], shape[2]))
    places = [r + s * i for r, s, i in zip(reach, step, np.indices(shape), strict=True)]
    np.testing.assert_allclose(out, sum(a * p for a, p in zip(slope, places, strict=True)), atol=0.02)


@quick
@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(0, 2**32 - 1))
def test_the_identity_is_exact(shape: tuple[int, int, int], seed: int) -> None:
    hu = np.random.default_rng(seed).integers(-32768, 32767, shape).astype(np.int16)
    out = resample(hu, (0, 0, 0), (1, 1, 1), shape)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, hu)
    flipped = resample(hu, tuple(n - 1.0 for n in shape), (-1, -1, -1), shape)  # type: ignore[arg-type]
    np.testing.assert_array_equal(flipped, hu[::-1, ::-1, ::-1])


axes = st.tuples(st.integers(1, 12), st.floats(-6, 15), st.floats(0.1, 5), st.booleans(), st.integers(1, 20))


@quick
@given(st.tuples(axes, axes, axes), st.integers(0, 2**32 - 1))
def test_resample_equals_the_slow_reference(sides: tuple[tuple[int, float, float, bool, int], ...], seed: int) -> None:
    """Of single slices, of grids that reach beyond the input or miss it, flipped, and of every number of int16."""
    hu = np.random.default_rng(seed).integers(-32768, 32767, [n for n, *_ in sides], endpoint=True).astype(np.int16)
    start = (sides[0][1], sides[1][1], sides[2][1])
    steps = [-size if flip else size for _, _, size, flip, _ in sides]
    shape = (sides[0][4], sides[1][4], sides[2][4])
    weights = [
        np.array([slow_row(n, first + k * step, abs(step), "cubic") for k in range(count)])
        for (n, first, _, _, count), step in zip(sides, steps, strict=True)
    ]
    expected = np.einsum("az,by,cx,zyx->abc", *weights, hu.astype(float) + 1024, optimize=True) - 1024
    got = resample(hu, start, (steps[0], steps[1], steps[2]), shape)
    np.testing.assert_allclose(got, expected, atol=0.5)


@pytest.mark.parametrize("view", ["plain", "transposed", "float", "read-only"])
def test_resample_equals_the_dense_product(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headctssl.volume.resample._SLAB_VOXELS", 4 * 70 * 53)  # slabs of 4 planes, the last of 3
    monkeypatch.setattr("headctssl.volume.resample._STRIP", 500)  # strips of columns, the last one shorter
    rng = np.random.default_rng(3)
    hu = rng.integers(-1024, 3000, (31, 70, 53)).astype(np.int16)
    if view == "transposed":
        hu = rng.integers(-1024, 3000, (53, 31, 70)).astype(np.int16).transpose(1, 2, 0)[::-1]
    if view == "float":
        hu = hu.astype(np.float32)
    hu.flags.writeable = view != "read-only"
    before = hu.copy()
    start, step, shape = (-2.3, 3.1, 60.2), (0.7, 2.2, -1.9), (40, 33, 37)
    Wz, Wy, Wx = (axis_weights(*a, kernel="cubic") for a in zip(hu.shape, shape, start, step, strict=True))
    expected = np.einsum("az,by,cx,zyx->abc", Wz, Wy, Wx, hu.astype(float) + 1024, optimize=True) - 1024
    got = resample(hu, start, step, shape)
    np.testing.assert_allclose(got, expected, atol=2e-2)
    rounded = resample_to_hu(hu, start, step, shape, (-900, 1500))
    assert rounded.dtype == np.int16
    means = [W / np.where(W.any(axis=1), W.sum(axis=1), 1.0)[:, None] for W in (Wz, Wy, Wx)]
    measured = np.einsum("az,by,cx,zyx->abc", *means, hu.astype(float) + 1024, optimize=True) - 1024
    np.testing.assert_allclose(rounded, np.clip(measured, -900, 1500), atol=0.51)
    assert (rounded[0] == -900).all(), "wholly outside"
    np.testing.assert_array_equal(hu, before)


def test_a_mask_is_where_half_a_voxel_is_inside() -> None:
    inside = np.random.default_rng(4).integers(0, 2, (9, 21, 17)).astype(np.int16)
    start, step, shape = (-2.3, 3.1, 15.2), (0.7, 1.7, -0.6), (20, 12, 30)
    got = resample_to_mask(inside, start, step, shape)
    Wz, Wy, Wx = (axis_weights(*a) for a in zip(inside.shape, shape, start, step, strict=True))
    share = np.einsum("az,by,cx,zyx->abc", Wz, Wy, Wx, inside.astype(np.float64), optimize=True)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got[np.abs(share - 0.5) > 1e-5], share[np.abs(share - 0.5) > 1e-5] >= 0.5)
    assert 0 < got.mean() < 1


def test_the_error_beside_a_ten_times_finer_reference_is_below_that_of_monai() -> None:
    """Balls and shells of bone and brain with the edges of a scanner, at 0.1 mm; scanned at 0.4 x 0.4 x 0.6 mm."""
    transforms, data = pytest.importorskip("monai.transforms"), pytest.importorskip("monai.data")
    rng, edge = np.random.default_rng(5), 180
    z, y, x = np.meshgrid(*[np.arange(edge, dtype=np.float32)] * 3, indexing="ij", sparse=True)
    fine = np.full((edge,) * 3, -1000.0, np.float32)
    for hu, radius in ((1000, 80), (35, 68), (5, 30), (300, 12), (-1000, 18)):
        centre = edge / 2 + rng.uniform(-1, 1, 3) * min(8.0, 80 - radius)
        distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        cover = 1 / (1 + np.exp(np.clip(distance - radius, -40, 40) / 2.5))
        fine += cover * (hu - fine)
    scan = np.rint(fine.reshape(30, 6, 45, 4, 45, 4).mean(axis=(1, 3, 5))).astype(np.int16)
    # The first output voxel has its centre on that of voxel 3 or 5 of the scan: 21 or 22 tenths of a mm inside.
    truth = fine[16:166, 17:167, 17:167].reshape(15, 10, 15, 10, 15, 10).mean(axis=(1, 3, 5))
    step = (10 / 6, 2.5, 2.5)
    ours = resample(scan, (3, 5, 5), step, (15, 15, 15))
    image = data.MetaTensor(
        torch.from_numpy(scan[3:, 5:, 5:].astype(np.float32))[None], torch.diag(torch.tensor([0.6, 0.4, 0.4, 1.0]))
    )
    theirs = transforms.Spacing(pixdim=(1.0, 1.0, 1.0), mode=3)(image)[0].numpy()[:15, :15, :15]
    inner = (slice(0, 14),) * 3
    error, peer = (float(np.sqrt(np.mean((one[inner] - truth[inner]) ** 2))) for one in (ours, theirs))
    assert error < 0.6 * peer
    assert peer < 50  # of 2000 HU: the grids are the same


def test_outside_is_the_fill_value() -> None:
    hu = np.full((6, 6, 6), 40, np.int16)
    out = resample(hu, (-3, -3, -3), (1, 1, 1), (12, 12, 12))
    np.testing.assert_array_equal(out[3:9, 3:9, 3:9], 40)
    out[3:9, 3:9, 3:9] = -1024
    np.testing.assert_array_equal(out, -1024)
    for start in ((50, 0, 0), (0, -50, 0), (0, 0, 50), (50, 50, -50)):
        assert (resample(hu, start, (1, 1, 1), (2, 3, 4), fill=7.0) == 7).all()


def test_thick_slices_keep_their_value_to_their_outer_face() -> None:
    hu = np.full((3, 4, 4), 100, np.int16)
    out = resample(hu, (-0.4, 0, 0), (0.2, 1, 1), (15, 4, 4))  # 15 mm of 5 mm slices, at 1 mm
    np.testing.assert_allclose(out, 100, atol=1e-3)


def zone_plate(edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Rings whose frequency grows with the radius to 0.5 cycles per voxel at the edge, and that frequency."""
    y, x = np.mgrid[:edge, :edge] - (edge - 1) / 2
    r2 = x**2 + y**2
    return 1000 * np.cos(np.pi * r2 / edge), np.sqrt(r2) / edge


@pytest.mark.parametrize("step", [2.0, 2.2, 3.3])
def test_a_zone_plate_leaves_no_false_rings(step: float) -> None:
    edge = 256
    plate, frequency = zone_plate(edge)
    n_out = int(edge / step)
    start = (edge - 1) / 2 - (n_out - 1) / 2 * step
    hu = np.broadcast_to(plate.astype(np.float32), (2, edge, edge))
    out = resample(hu, (0, start, start), (1, step, step), (2, n_out, n_out))[0]
    at = np.rint(start + step * np.arange(n_out)).astype(int)
    above = (frequency[np.ix_(at, at)] > 0.75 / step) & (frequency[np.ix_(at, at)] < 0.5)
    below = frequency[np.ix_(at, at)] < 0.1 / step
    assert out[above].std() < 0.08 * 707  # what cannot be shown is gone
    assert out[below].std() > 0.8 * plate[frequency < 0.1 / step].std()  # what can be shown is there
    thinned = plate[np.ix_(at, at)]
    assert thinned[above].std() > 0.9 * 707  # without the filter it would fold back


def random_affine(order: tuple[int, ...], signs: tuple[int, ...], seed: int) -> np.ndarray:
    """A permuted, flipped, slightly rotated affine."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
    rotation *= np.sign(np.diag(rotation))
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, order] * np.array(signs) * rng.uniform(0.3, 5, 3)
    affine[:3, 3] = rng.normal(0, 100, 3)
    return affine


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_to_spl_moves_no_voxel_in_space(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    affine = random_affine(order, signs, seed=5)
    turned, new_affine = to_spl(array, affine)
    assert (np.diag(new_affine)[:3] > 0).all()
    assert (np.abs(new_affine[:3, :3]).argmax(axis=0) == (0, 1, 2)).all()
    index = np.argwhere(np.ones(turned.shape, bool))
    places = np.c_[index, np.ones(len(index))] @ new_affine.T
    old = np.rint(places @ np.linalg.inv(affine).T)[:, :3].astype(int)
    np.testing.assert_array_equal(turned.ravel(), array[tuple(old.T)])
    again, same_affine = to_spl(turned, new_affine)
    np.testing.assert_array_equal(again, turned)
    np.testing.assert_array_equal(same_affine, new_affine)


def test_spacing_and_straightness() -> None:
    affine = np.diag([5.0, 0.5, 0.4, 1.0])
    assert spacing_of(affine) == (5.0, 0.5, 0.4)
    assert is_straight(affine)
    affine[1, 0] = np.tan(np.radians(18.5)) * 5
    assert not is_straight(affine)
