"""Models Genesis: each corruption against loops, one curve for all windows, what counts, four scans repaired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.contract import Window
from headctssl.methods.boxes import Boxes
from headctssl.methods.method import Method
from headctssl.methods.models_genesis.intensity import (
    TABLE,
    Curve,
    apply_tables,
    can_invert,
    draw_curve,
    hu_map,
    window_edges,
    window_tables,
)
from headctssl.methods.models_genesis.models_genesis import ModelsGenesis, ModelsGenesisSettings
from headctssl.methods.models_genesis.models_genesis_loss import voxel_error
from headctssl.methods.models_genesis.painting import MARGIN, draw_painting, paint, painted_voxels
from headctssl.methods.models_genesis.shuffling import Shuffle, draw_shuffle, shuffle_sources, shuffle_voxels
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views
from headctssl.volume.windows import to_input

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
Shape = tuple[int, int, int]
CLOCK = Clock(0, 10, 0, 5)
CPU = torch.device("cpu")
HEAD = (Window(level=40, width=80), Window(level=80, width=200), Window(level=600, width=2800))
ONE = (Window(level=0, width=2000),)
SIDE_BY_SIDE = (
    Window(level=-600, width=1500),
    Window(level=40, width=400),
)  # lung and soft tissue: neither in the other


def build(toolbox: Toolbox, preset: str = "vit_test", **kwargs: object) -> ModelsGenesis:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("models_genesis", preset, views={"global_count": 1}, **kwargs))
    assert isinstance(method, ModelsGenesis)
    return method


# Shuffling.


def slow_shuffle(volume: torch.Tensor, shuffle: Shuffle) -> torch.Tensor:
    """Window by window, as the published loop: read from the volume as it was, put over what earlier windows left."""
    out, first = volume.clone(), 0
    for start, stop in zip(shuffle.windows.start, shuffle.windows.stop, strict=True):
        box = (slice(None), *(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)))
        window = volume[box].flatten(1)
        order = np.argsort(shuffle.keys[first : first + window.shape[1]] & 0x7FFFFFFF, kind="stable")
        first += window.shape[1]
        out[box] = window[:, order].view_as(volume[box])
    assert first == len(shuffle.keys)
    return out


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    count=st.integers(1, 80),
    side=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_shuffling_is_the_published_loop(seed: int, shape: Shape, count: int, side: float) -> None:
    generator = np.random.default_rng(seed)
    volume = torch.from_numpy(generator.random((2, *shape)))
    shuffle = draw_shuffle(generator, shape, count, side)
    longest = np.minimum(np.maximum((np.asarray(shape) * side + 1e-9).astype(int), 2), shape)
    assert (shuffle.windows.stop - shuffle.windows.start <= longest).all()
    assert torch.equal(shuffle_voxels(volume, shuffle), slow_shuffle(volume, shuffle))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(2, 24)] * 3))
def test_voxels_stay_in_a_window_that_holds_them(seed: int, shape: Shape) -> None:
    shuffle = draw_shuffle(np.random.default_rng(seed), shape, 30, 0.3)
    sources = np.stack(np.unravel_index(shuffle_sources(shuffle, shape, CPU).numpy(), shape), -1)
    places = np.stack(np.unravel_index(np.arange(len(sources)), shape), -1)
    start, stop = shuffle.windows.start, shuffle.windows.stop
    holds = ((places[:, None] >= start) & (places[:, None] < stop)).all(-1)
    holds_source = ((sources[:, None] >= start) & (sources[:, None] < stop)).all(-1)
    outside = ~holds.any(1)
    assert (sources[outside] == places[outside]).all(), "what no window holds stays"
    last = holds.shape[1] - 1 - holds[:, ::-1].argmax(1)
    assert holds_source[np.arange(len(places)), last][~outside].all(), "the others come from their own window"


def test_one_window_permutes_its_voxels_and_leaves_the_others() -> None:
    windows = Boxes(np.array([[1, 2, 3]]), np.array([[4, 5, 5]]))
    orders = set()
    volume = torch.arange(6 * 6 * 6.0).view(1, 6, 6, 6)
    inside = torch.zeros(6, 6, 6, dtype=torch.bool)
    inside[1:4, 2:5, 3:5] = True
    for seed in range(20):
        keys = np.random.default_rng(seed).integers(0, 2**31, size=18, dtype=np.int32)
        out = shuffle_voxels(volume, Shuffle(windows, keys))
        assert torch.equal(out[0][~inside], volume[0][~inside])
        assert torch.equal(out[0][inside].sort().values, volume[0][inside])
        orders.add(tuple(out[0][inside].tolist()))
    assert len(orders) == 20


def test_published_windows_cover_a_voxel_once_or_twice_whatever_the_size() -> None:
    for shape in ((64, 64, 32), (96, 96, 96)):
        shuffle = draw_shuffle(np.random.default_rng(0), shape, 10_000, 0.1)
        assert 1.2 < len(shuffle.keys) / np.prod(shape) < 2.0


# Intensities.


def slow_bezier(value: float, first: np.ndarray, second: np.ndarray, inverted: bool) -> float:
    """B(t) = (1-t)^3 P0 + 3(1-t)^2 t P1 + 3(1-t) t^2 P2 + t^3 P3 at the t where its x is `value`, by bisection."""

    def at(t: float, axis: int) -> float:
        return float(3 * (1 - t) ** 2 * t * first[axis] + 3 * (1 - t) * t**2 * second[axis] + t**3)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle, 0) < value else (low, middle)
    # The published code sorts x alone to invert: ascending x meets descending y.
    return at(1 - low if inverted else low, 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), inverted=st.booleans())
def test_with_one_window_the_curve_is_the_published_one(seed: int, inverted: bool) -> None:
    points = np.random.default_rng(seed).random((1, 2, 2))
    tables = window_tables(Curve(points, inverted), ONE)
    values = np.linspace(0.03, 0.97, 9)
    got = apply_tables(torch.from_numpy(values).float().view(1, 1, 1, -1), tables).flatten().numpy()
    expected = [slow_bezier(v, points[0, 0], points[0, 1], inverted) for v in values]
    assert np.abs(got - expected).max() < 5e-3
    before, after = hu_map(Curve(points, inverted), window_edges(ONE))
    assert (np.diff(before) >= 0).all()
    assert (np.diff(after) * (-1 if inverted else 1) >= -1e-9).all(), "monotone: no two intensities change their order"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), inverted=st.booleans())
def test_channels_stay_windows_of_one_image(seed: int, inverted: bool) -> None:
    """Remapping each channel is the same as remapping Hounsfield units once and looking through the windows."""
    curve = Curve(np.random.default_rng(seed).random((5, 2, 2)), inverted)
    before, after = hu_map(curve, window_edges(HEAD))
    tables = window_tables(curve, HEAD)
    for channel, window in enumerate(HEAD):
        # Entries of the channel's table, and what its window clips; between entries a steep curve is cut short.
        hu = window.level + window.width * (np.arange(TABLE + 1) / TABLE - 0.5)
        hu = np.concatenate([[-1024, window_edges(HEAD)[0]], hu, [window_edges(HEAD)[-1], 3000]])
        remapped = np.interp(hu, before, after)

        def seen(values: np.ndarray, through: tuple[Window, ...] = (window,)) -> torch.Tensor:
            return to_input(torch.from_numpy(values).view(1, 1, 1, 1, -1), through)[0]

        got = apply_tables(seen(hu), tables[channel : channel + 1])
        assert (got - seen(remapped)).abs().max() < 2e-3


def test_edges_of_windows_stay_or_change_places() -> None:
    assert window_edges(HEAD).tolist() == [-800, -20, 0, 80, 180, 2000]
    points = np.random.default_rng(1).random((5, 2, 2))
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(3, 1, 1, 2)
    assert torch.allclose(apply_tables(ends, window_tables(Curve(points, False), HEAD)), ends)
    assert torch.allclose(apply_tables(ends, window_tables(Curve(points, True), HEAD)), 1 - ends)


def test_windows_that_do_not_nest_are_never_inverted() -> None:
    assert can_invert(HEAD)
    assert can_invert(ONE)
    assert not can_invert(SIDE_BY_SIDE)
    assert not can_invert((Window(level=40, width=80), Window(level=90, width=180))), "a shared edge has two images"
    draws = [draw_curve(np.random.default_rng(s), SIDE_BY_SIDE, 0.5) for s in range(40)]
    assert not any(c.inverted for c in draws)
    share = np.mean([draw_curve(np.random.default_rng(s), HEAD, 0.5).inverted for s in range(400)])
    assert 0.4 < share < 0.6
    tables = window_tables(draws[0], SIDE_BY_SIDE)
    assert (np.diff(tables, axis=1) >= 0).all()
    assert (tables[:, 0] == 0).all()
    assert np.allclose(tables[:, -1], 1)


# Painting.


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(6, 40)] * 3), outside=st.booleans())
def test_painting_is_the_published_loop_and_covers_the_stated_shares(seed: int, shape: Shape, outside: bool) -> None:
    side = (3 / 7, 4 / 7) if outside else (1 / 6, 1 / 3)
    generator = np.random.default_rng(seed)
    painting = draw_painting(generator, shape, outside=outside, most=5, another=0.95, side=side)
    volume = torch.from_numpy(generator.random((3, *shape), dtype=np.float32)) + 2.0
    noise = (torch.from_numpy(painting.noise).float() + 0.5) / 256
    expected = (noise if outside else volume).clone().expand_as(volume).clone()
    for start, stop in zip(painting.boxes.start, painting.boxes.stop, strict=True):
        box = (slice(None), *(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)))
        expected[box] = volume[box] if outside else noise[box[1:]]
    got = paint(volume, painting)
    assert torch.equal(got, expected)
    painted = painted_voxels(painting, CPU)
    assert torch.equal(got[:, ~painted], volume[:, ~painted])
    assert (got[:, painted] < 1).all(), "noise lies in the windows"
    sides = painting.boxes.stop - painting.boxes.start
    for axis, length in enumerate(shape):
        assert (sides[:, axis] >= max(1, int(length * side[0] + 1e-9))).all()
        assert (sides[:, axis] <= max(1, int(length * side[1] + 1e-9))).all()
    room = (np.asarray(shape) - sides) // 2
    assert (painting.boxes.start >= np.minimum(MARGIN, room)).all()
    boxes = len(painting.boxes)
    assert (1 if outside else 0) <= boxes <= 5
    in_boxes = 1 - painted.double().mean() if outside else painted.double().mean()
    assert in_boxes <= boxes * side[1] ** 3 + 1e-9


def test_painted_shares_of_large_views() -> None:
    """Out-painting hides two thirds or so, in-painting a tenth; both as the published numbers make it."""
    shape = (64, 64, 32)
    for outside, side, low, high in ((True, (3 / 7, 4 / 7), 0.55, 0.80), (False, (1 / 6, 1 / 3), 0.04, 0.10)):
        draws = [
            draw_painting(np.random.default_rng(s), shape, outside=outside, most=5, another=0.95, side=side)
            for s in range(60)
        ]
        shares = [float(painted_voxels(p, CPU).double().mean()) for p in draws]
        assert low < np.mean(shares) < high
        assert np.mean([len(p.boxes) for p in draws]) > 4
    alone = draw_painting(np.random.default_rng(0), shape, outside=True, most=5, another=0.0, side=(3 / 7, 4 / 7))
    assert len(alone.boxes) == 1
    none = draw_painting(np.random.default_rng(0), shape, outside=False, most=5, another=0.0, side=(1 / 6, 1 / 3))
    assert not painted_voxels(none, CPU).any()


# The loss.


def slow_error(prediction: torch.Tensor, target: torch.Tensor, counted: torch.Tensor) -> float:
    losses = []
    for b in range(len(target)):
        total, count = 0.0, 0
        for c in range(target.shape[1]):
            for voxel in range(counted[b].numel()):
                if counted[b].flatten()[voxel]:
                    total += float(prediction[b, c].flatten()[voxel] - target[b, c].flatten()[voxel]) ** 2
                    count += 1
        losses.append(total / count if count else 0.0)
    return sum(losses) / len(losses)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_loss_is_the_mean_squared_error_over_what_counts(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand(2, 3, 2, 2, 3, 4, generator=g)
    counted = torch.rand(3, 1, 2, 3, 4, generator=g) < 0.6
    counted[seed % 3] = False
    prediction.requires_grad_()
    loss = voxel_error(prediction, target, counted)
    assert float(loss.detach()) == pytest.approx(slow_error(prediction.detach(), target, counted), rel=1e-5)
    loss.backward()
    assert (prediction.grad[~counted.expand_as(prediction)] == 0).all()
    assert (prediction.grad[counted.expand_as(prediction)] != 0).all()


def test_step_restores_the_view_through_a_sigmoid(toolbox: Toolbox) -> None:
    shape = (12, 24, 36)
    method = build(toolbox, "resenc_test", shape=shape).eval()
    views = toolbox[2](batch=2, global_shapes=(shape,))
    views.inside["global"][0][1, :, :5] = 0.2
    volume = views.groups["global"][0]
    with torch.no_grad():
        corrupted = method.corrupt(volume, views.generators("corrupt"))
        restored = torch.sigmoid(method.decoder(method.encoder(corrupted), corrupted))
        loss = method.training_step(views, CLOCK).loss
    counted = views.inside["global"][0] >= 0.5
    expected = [((restored - volume)[b] ** 2).mean(0, keepdim=True)[counted[b]].mean() for b in range(2)]
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_anonymised_and_unstored_voxels_leave_the_loss(toolbox: Toolbox) -> None:
    """Without corruption, so that what is hidden cannot move into what counts."""
    method = build(toolbox, settings={f"{n}_probability": 0.0 for n in ("shuffle", "intensity", "paint")}).eval()
    views = toolbox[2](global_shapes=((24, 24, 24),))
    half = torch.zeros_like(views.inside["global"][0], dtype=torch.bool)
    half[:, :, :12] = True
    ways = (
        replace(views, anonymised={"global": (half.float() * 1e-6,)}),
        replace(views, inside={"global": (torch.where(half, 0.49, views.inside["global"][0]),)}),
    )
    volume = views.groups["global"][0]
    with torch.no_grad():
        whole = method.training_step(views, CLOCK).loss
        losses = [method.training_step(way, CLOCK).loss for way in ways]
        restored = method.decoder(method.encoder(volume), volume).sigmoid()
    expected = (restored - volume)[:, :, 12:].square().mean()
    assert losses[0] == losses[1] != whole
    assert float(losses[0]) == pytest.approx(float(expected), rel=1e-5)


# The method.


def test_a_view_is_corrupted_by_itself_and_in_the_same_way_again(toolbox: Toolbox) -> None:
    method = build(toolbox)
    views = toolbox[2](batch=4, global_shapes=((24, 24, 24),))
    volume = views.groups["global"][0]
    before = volume.clone()
    torch.manual_seed(1)
    whole = method.corrupt(volume, views.generators("corrupt"))
    torch.manual_seed(2)
    alone = [method.corrupt(volume[i : i + 1], views.generators("corrupt")[i : i + 1])[0] for i in (3, 1, 0, 2)]
    assert torch.equal(whole[[3, 1, 0, 2]], torch.stack(alone))
    assert torch.equal(volume, before), "the view is what is to be restored"
    assert ((whole >= 0) & (whole <= 1)).all()
    later = replace(views, epoch=1)
    assert not torch.equal(method.corrupt(volume, later.generators("corrupt")), whole)


def test_two_views_of_a_scan_are_corrupted_apart(toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(toolbox)
    seen = []
    corrupt = method.corrupt

    def spy(volume: torch.Tensor, generators: list[np.random.Generator]) -> torch.Tensor:
        seen.append(corrupt(volume, generators))
        return seen[-1]

    monkeypatch.setattr(method, "corrupt", spy)
    views = toolbox[2](global_shapes=((24, 24, 24),))
    method.training_step(replace(views, **_twice(views)), CLOCK)
    assert len(seen) == 2
    assert not torch.equal(*seen)


def _twice(views: Views) -> dict[str, dict[str, tuple[torch.Tensor, ...]]]:
    """Each view and what lies under it two times."""
    return {n: {"global": getattr(views, n)["global"] * 2} for n in ("groups", "inside")}


def test_chances_are_kept(toolbox: Toolbox) -> None:
    off = {"shuffle_probability": 0.0, "intensity_probability": 0.0, "paint_probability": 0.0}
    volume = toolbox[2](batch=60, global_shapes=((12, 12, 12),)).groups["global"][0]
    generators = [np.random.default_rng(s) for s in range(60)]

    def changed(**on: float) -> float:
        method = build(toolbox, shape=(12, 12, 12), settings=off | on)
        out = method.corrupt(volume, generators)
        return float((out != volume).flatten(1).any(1).float().mean())

    assert changed() == 0.0
    for name in off:
        assert changed(**{name: 1.0}) > 0.95
        assert 0.3 < changed(**{name: 0.5}) < 0.7
    inside = build(toolbox, shape=(12, 12, 12), settings=off | {"paint_probability": 1.0, "inpaint_share": 1.0})
    outside = build(toolbox, shape=(12, 12, 12), settings=off | {"paint_probability": 1.0, "inpaint_share": 0.0})
    shares = [(m.corrupt(volume, generators) != volume).float().mean() for m in (inside, outside)]
    assert shares[0] < 0.2 < 0.4 < shares[1]


@pytest.mark.parametrize("encoder", ["vit_test", "unet3d_test"])
def test_models_genesis_repairs_four_scans(encoder: str, toolbox: Toolbox) -> None:
    shape, steps, rate = (12, 12, 12), *((100, 5e-3) if encoder == "vit_test" else (80, 1e-2))
    method = build(toolbox, encoder, shape=shape)
    views = toolbox[2](batch=4, global_shapes=(shape,), detail=3)
    optimizer = torch.optim.AdamW(method.parameters(), lr=rate)
    lines = []
    for step in range(steps):
        result = method.training_step(views, Clock(step, steps, 0, steps))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        lines.append({"loss": float(result.loss.detach()), **{k: float(v) for k, v in result.logs.items()}})
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    assert lines[-1]["relative_error"] < 0.25 < lines[-1]["error_before"]


def test_the_decoder_stays_behind(toolbox: Toolbox) -> None:
    method = build(toolbox, "unet3d_test")
    assert method.encoder_to_export() is method.encoder
    assert not method.batch_coupled
    assert not {id(p) for p in method.encoder.parameters()} & {id(p) for p in method.decoder.parameters()}


def test_published_numbers() -> None:
    wanted = ModelsGenesisSettings()
    assert (wanted.shuffle_probability, wanted.shuffle_windows, wanted.shuffle_side) == (0.5, 10_000, 0.1)
    assert (wanted.intensity_probability, wanted.invert_probability) == (0.9, 0.5)
    assert (wanted.paint_probability, wanted.inpaint_share) == (0.9, 0.2)
    assert (wanted.paint_boxes, wanted.paint_another) == (5, 0.95)
    assert (wanted.inpaint_side, wanted.outpaint_side) == ((1 / 6, 1 / 3), (3 / 7, 4 / 7))
    cnn = ModelsGenesis.optimizer_defaults("cnn")
    assert (cnn.optimizer, cnn.lr, cnn.lr_reference_batch, cnn.momentum, cnn.weight_decay) == ("sgd", 1.0, 6, 0.9, 0.0)
    for low, high in ((0.5, 0.4), (0.0, 0.5), (0.5, 1.5)):
        with pytest.raises(ValueError, match="two shares"):
            ModelsGenesisSettings(inpaint_side=(low, high))
