"""The benchmarks' rows: what they say about a target, what a file of them holds, what ends with 1."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import rows

    return rows


def test_a_row_beside_a_peer_is_judged_by_its_ratio(rows) -> None:  # type: ignore[no-untyped-def]
    row = rows.faster("views", [1.0, 9.0, 2.0], [30.0, 16.0, 10.0], "MONAI", target=8.0)
    assert (row.ours, row.peer_or_floor, row.ratio, row.runs, row.verdict) == (2.0, 16.0, 8.0, 3, "reached")
    assert rows.faster("views", [2.0], [15.0], "MONAI", target=8.0).verdict == "MISSED"
    assert rows.faster("views", [2.0], [15.0], "MONAI").verdict == ""


def test_a_row_beside_a_floor_must_not_be_above_it(rows) -> None:  # type: ignore[no-untyped-def]
    assert rows.within("read", [3.0], [2.0], "floor", target=1.6).verdict == "reached"
    missed = rows.within("read", [3.4], [2.0], "floor", target=1.6)
    assert (missed.ratio, missed.verdict, missed.asked) == (1.7, "MISSED", "at most 1.6x")


def test_a_row_by_itself_is_judged_by_its_figure(rows) -> None:  # type: ignore[no-untyped-def]
    assert rows.value("crops", [70.0, 50.0, 61.0], "crops/s", target=60).verdict == "reached"
    assert rows.value("wait", [2.5], "%", target=2, bound="at most").verdict == "MISSED"


def test_sides_are_run_in_turn_by_the_clock_that_is_given(rows) -> None:  # type: ignore[no-untyped-def]
    log: list[str] = []
    assert rows.alternate(2, lambda: log.append("a"), lambda: log.append("b")) == [[None, None], [None, None]]
    assert log == ["a", "b", "a", "b"]
    assert rows.seconds(lambda: time.sleep(0.05))() >= 0.05
    ticks = iter([3.0, 7.5])
    assert rows.seconds(lambda: None, lambda: next(ticks))() == 4.5


def test_the_input_benchmark_runs_and_clocks_what_the_page_says(rows, capsys) -> None:  # type: ignore[no-untyped-def]
    from benchmarks import input as module
    from benchmarks import page

    said = (ROOT / "documentation" / "benchmarks.md").read_text(encoding="utf-8")
    assert "then the store, the\nviews, the loader, the scale and the workers" in said
    assert module.OTHER_PARTS == ("store", "views", "loader", "scale", "workers")
    assert set(module.OTHER_PARTS) < set(page.PARTS)
    spent: dict[str, tuple[float, float]] = {}
    with module._clock("part", spent):
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    clock, processor = spent["part"]
    assert processor > 0, "of a child too"
    assert clock > 0
    module._tell({"store": (12.4, 11.6)})
    assert "12 s" in capsys.readouterr().out


def test_the_error_between_slices_is_that_of_what_is_stored(rows, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With our kernel along z alone, after x and y, as with `resample`; splines go through the slices."""
    from benchmarks import input_accuracy, input_slices

    fine = np.random.default_rng(0).integers(-20, 80, (250, 60, 60)).astype(np.int16)
    monkeypatch.setattr(input_accuracy, "reference", lambda head, place: fine)
    monkeypatch.setattr(input_accuracy, "by_monai", lambda scan, factors, first, shape: np.zeros(shape))
    found = input_slices._at(1, (0.0, 0.0, 0.0))
    clean = input_accuracy.averaged(fine, input_slices.FACTORS)
    truth, first, shape = input_accuracy.truth_of(fine, input_slices.FACTORS, clean.shape)
    direct = input_accuracy._by_us(np.rint(clean).astype(np.int16), input_slices.FACTORS, first, shape)
    assert found.ours == pytest.approx(np.sqrt(np.mean((direct - truth) ** 2)), rel=1e-3)
    assert found.monai == pytest.approx(np.sqrt(np.mean(truth**2)), rel=1e-3)
    positions = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert np.allclose(input_slices._spline(5, positions), np.eye(5), atol=1e-6)
    assert np.allclose(input_slices._kernel(5, positions), np.eye(5), atol=1e-6)


def test_the_file_holds_machine_versions_and_verdicts(rows, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    good = rows.faster("fast", [1.0], [9.0], "MONAI", target=8.0)
    bad = rows.within("slow", [9.0], [1.0], "floor", target=2.0, cause="the disk is slow")
    path = tmp_path / "x.json"
    assert rows.finish("title", [good], path, ["numpy"], time.perf_counter()) == 0
    assert rows.finish("title", [good, bad], path, ["numpy"], time.perf_counter()) == 1
    assert "missed: slow: the disk is slow" in capsys.readouterr().out
    told = json.loads(path.read_text())
    assert set(told["versions"]) == {"headctssl", "numpy"}
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["processor"]
    assert [row["verdict"] for row in told["rows"]] == ["reached", "MISSED"]
    assert {"what", "ours", "peer_or_floor", "ratio", "runs", "target", "verdict"} <= set(told["rows"][0])


def test_one_thread_starts_again_only_where_it_must(rows, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    started: list[list[str]] = []
    monkeypatch.setattr(rows.os, "execve", lambda program, command, environment: started.append(command))
    for name in rows.ONE_THREAD:
        monkeypatch.setenv(name, "1")
    rows.on_one_thread("benchmarks.input", ["--runs", "3"])
    assert started == []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rows.on_one_thread("benchmarks.input", ["--runs", "3"])
    assert started == [[sys.executable, "-m", "benchmarks.input", "--runs", "3"]]


def test_the_benchmark_of_the_input_explains_itself() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.input", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "--runs" in run.stdout
