"""The benchmarks of views and loading: that both start, and that what they time is what they say."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

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


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_timed_is_what_is_said(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    views = importlib.import_module("benchmarks.views")
    monkeypatch.setattr(views, "EDGE", 12)
    scan = SimpleNamespace(
        hu=np.random.default_rng(0).integers(-1000, 1500, (1, 30, 34, 28), dtype=np.int16),
        head_box=((2, 28), (2, 32), (3, 25)),
        spacing_mm=(1.0, 1.0, 1.0),
    )
    cut = views._ours(scan, 6, plain=batch == 1, batch=batch)
    cut()  # asserts two views of 12^3 and two of 6^3 ...
    monkeypatch.setattr(views, "EDGE", 13)
    with pytest.raises(AssertionError):
        cut()  # ... and would notice others
