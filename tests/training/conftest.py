"""Fixtures: data roots, a small planned and preprocessed dataset, lines of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from training_helpers import make_stored_dataset


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three empty data roots; returns the folder that holds them."""
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
        (tmp_path / kind).mkdir()
    return tmp_path


@pytest.fixture
def dataset(roots: Path) -> Path:
    """Dataset 1 under the roots, six cases, the last one held out."""
    return make_stored_dataset(roots / "preprocessed")


@pytest.fixture
def lines_of() -> Callable[[Path], list[dict[str, float]]]:
    """Reads metrics.jsonl of a run folder."""

    def read(folder: Path) -> list[dict[str, float]]:
        return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]

    return read
