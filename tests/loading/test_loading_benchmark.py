"""The benchmark of the input: what it reports, without its minutes of measuring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_rows_say_whether_the_target_was_reached(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.input import _alternate, _row

    row = _row("views", [1.0, 9.0, 2.0], [30.0, 16.0, 10.0], target=8.0)
    assert (row.ours_seconds, row.monai_seconds, row.ratio, row.verdict) == (2.0, 16.0, 8.0, "reached")
    assert _row("views", [2.0], [15.0], target=8.0).verdict == "MISSED"
    assert _row("views", [2.0], [15.0]).verdict == ""
    log: list[str] = []
    assert _alternate(2, lambda: log.append("a"), lambda: log.append("b")) == [[None, None], [None, None]]
    assert log == ["a", "b", "a", "b"]


def test_it_explains_itself() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.input", "--help"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "MONAI" in run.stdout
    assert "--runs" in run.stdout
