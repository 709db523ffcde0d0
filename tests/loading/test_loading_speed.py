"""The benchmarks of views and loading: that both start, and that what they time is what they say."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headctssl.volume.geometry import axis_taps

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("name", ["views", "loader"])
def test_it_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    assert "--runs" in capsys.readouterr().out


def small_scan() -> SimpleNamespace:
    return SimpleNamespace(
        hu=np.random.default_rng(0).integers(-1000, 1500, (1, 30, 34, 28), dtype=np.int16),
        head_box=((2, 28), (2, 32), (3, 25)),
        spacing_mm=(1.0, 1.0, 1.0),
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_timed_is_what_is_said(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    views = importlib.import_module("benchmarks.views")
    monkeypatch.setattr(views, "EDGE", 12)
    scan = small_scan()
    cut = views._ours(scan, 6, plain=batch == 1, batch=batch)
    cut()  # asserts two views of 12^3 and two of 6^3 ...
    monkeypatch.setattr(views, "EDGE", 13)
    with pytest.raises(AssertionError):
        cut()  # ... and would notice others


def test_the_floor_is_of_the_views_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same voxels and, but for edges, as many operations as there are weights that are not zero."""
    views, floor = (importlib.import_module(f"benchmarks.{name}") for name in ("views", "views_floor"))
    monkeypatch.setattr(views, "EDGE", 12)
    cut, next_seen = views._ours(small_scan(), 6, plain=True), views._seen(small_scan(), 6)
    for _ in range(3):
        made, seen = cut(), next_seen()
        expected = [box for group in made.boxes.values() for box in group[:, 0].numpy()]
        assert len(seen.grids) == len(expected) == 4
        for grid, box in zip(seen.grids, expected, strict=True):
            assert np.allclose(grid.edges, box, atol=1e-4)
            crop = seen.crop(grid)
            assert np.all(np.abs(np.array(crop.shape) - (box[:, 1] - box[:, 0])) < 2)
            taps = [
                axis_taps(n, count, start, step)[1]
                for n, count, start, step in zip(seen.hu.shape, grid.shape, grid.start, grid.step, strict=True)
            ]
            z, y, x = (np.count_nonzero(weights) for weights in taps)
            (d, h, w), (_, _, width) = grid.shape, crop.shape
            needed = 2.0 * (crop.shape[0] * width * y + crop.shape[0] * h * x + h * w * z)
            assert 0.8 * needed < floor.operations(crop.shape, grid) < 1.3 * needed, (d, h, w)
    assert floor.floor_of(next_seen, 3)() > 0
    assert min(floor.parts_of(next_seen, views._windows())()) > 0
