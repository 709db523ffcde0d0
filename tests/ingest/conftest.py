"""Ingest tests draw their heads and slices with the helpers of tests/dataset."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dataset"))


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty data roots; returns headctssl_raw."""
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    return tmp_path / "raw"
