"""Tracking: what trackers get and do not get, that one that fails or hangs is said once and stops nothing."""

from __future__ import annotations

import getpass
import json
import os
import platform
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from training_helpers import TINY

import headctssl
from headctssl.cli.common import add_track
from headctssl.errors import StoppedError, UsageError
from headctssl.settings import read_json
from headctssl.training import trackers, tracking
from headctssl.training.pretrain import pretrain
from headctssl.training.run_log import RunLog
from headctssl.training.trackers import Tracked, check_trackers

LINE = {"step": 1, "epoch": 0, "loss": 0.5, "lr": 0.1, "scans_per_second": 2.0, "data_wait": 0.0, "seconds": 1.0}


class Spy:
    """A tracker that notes its calls."""

    seen: list[tuple[str, object]]
    fails_at = ""
    hold: threading.Event | None = None

    def __init__(self) -> None:
        Spy.seen = []

    def load(self) -> None:
        self._note("load", None)

    def begin(self, run: Tracked) -> None:
        self._note("begin", run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._note("scalars", (step, dict(values)))

    def end(self, *, finished: bool) -> None:
        self._note("end", finished)

    def _note(self, what: str, value: object) -> None:
        Spy.seen.append((what, value))
        if what == self.fails_at:
            raise ConnectionError(f"no way at {what}\nwith a second line")
        if self.hold is not None and what == "scalars":
            self.hold.wait(20)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    monkeypatch.setitem(trackers.TRACKERS, "json", f"{__name__}:Spy")  # 'json' is a package that is there
    monkeypatch.setattr(trackers.importlib, "import_module", lambda name: __import__("sys").modules[__name__])
    monkeypatch.setattr(Spy, "fails_at", "")
    monkeypatch.setattr(Spy, "hold", None)
    return Spy


def log_lines(folder: Path, steps: int, total: int) -> str:
    log = RunLog(folder, quiet=True, track=("json",), settings={"lr": 1})
    log.open(0)
    for step in range(1, steps + 1):
        log.metrics({**LINE, "step": step}, total)
    log.close()
    text = folder / "train.log"
    return text.read_text() if text.exists() else ""


def test_a_tracker_gets_every_line_and_how_it_ended(tmp_path: Path, spy: type[Spy]) -> None:
    assert log_lines(tmp_path, 3, 3) == ""
    names = [name for name, _ in spy.seen]
    assert names == ["load", "begin", "scalars", "scalars", "scalars", "end"]
    assert spy.seen[2][1] == (1, {k: float(v) for k, v in LINE.items() if k != "step"})
    assert spy.seen[-1][1] is True
    first = spy.seen[1][1]
    assert len(read_json(tmp_path / "tracking.json", tracking._TrackingFile).id) == 16
    log_lines(tmp_path, 1, 3)
    again = spy.seen[1][1]
    assert isinstance(first, Tracked)
    assert isinstance(again, Tracked)
    assert first.id == again.id  # the same run after --continue
    assert spy.seen[-1][1] is False


@pytest.mark.parametrize("at", ["load", "begin", "scalars", "end"])
def test_a_failing_tracker_is_said_once_and_stops_nothing(
    at: str, tmp_path: Path, spy: type[Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spy, "fails_at", at)
    said = log_lines(tmp_path, 5, 5)
    assert said.count("tracking by json stopped, the run goes on") == 1
    assert f"ConnectionError: no way at {at} (" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, spy: type[Spy], monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(Spy, "hold", held)
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.05)
    said = log_lines(tmp_path, 3, 3)
    held.set()
    assert said.count("did not finish within") == 1


def test_a_tracker_far_behind_is_given_up(tmp_path: Path, spy: type[Spy], monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(Spy, "hold", held)
    monkeypatch.setattr(tracking, "_MOST_WAITING", 2)
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.05)
    said = log_lines(tmp_path, 9, 9)
    held.set()
    assert said.count("it is 2 lines behind") == 1


def test_unknown_and_missing_trackers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Unknown tracker 'wandv'") as wrong:
        check_trackers(("wandv",))
    assert "Did you mean 'wandb'" in str(wrong.value)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"headctssl\[tracking\]"):
        check_trackers(("mlflow",))


def test_several_trackers_are_separated_by_commas() -> None:
    from argparse import ArgumentParser

    parser = ArgumentParser()
    add_track(parser)
    assert parser.parse_args(["--track", "wandb, mlflow"]).track == ("wandb", "mlflow")
    assert parser.parse_args([]).track == ()


def run_tracked(name: str, **options: object) -> Path:
    sets = (*TINY, "training.num_steps=3", "method.decoder_width=48", "method.decoder_heads=3")
    sets = tuple(text for text in sets if text != "training.num_steps=6")
    return pretrain(  # type: ignore[arg-type]  # options of a test
        1, "mae", config="vit_test", device="cpu", quiet=True, overrides=sets, track=(name,), **options
    )


def identifying(roots: Path) -> set[str]:
    words = {"SECRET", "Tiny", str(roots), platform.node(), getpass.getuser(), str(Path.home()), str(Path.cwd())}
    return {word for word in words if len(word) >= 3} | {str(Path(headctssl.__file__).parent)}


def test_wandb_offline_holds_scalars_and_settings_only(
    dataset: Path, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run_tracked("wandb")
    assert "tracking by" not in (folder / "train.log").read_text()
    (sent,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = sent.read_bytes()
    assert b"scans_per_second" in content
    assert b"weight_decay" in content
    # What is uploaded later is that file and files/; the logs beside them stay.
    for path in [sent, *(p for p in sent.parent.glob("files/**/*") if p.is_file())]:
        for word in identifying(roots):
            assert word.encode() not in path.read_bytes(), f"{word!r} in {path.name}"


def test_mlflow_without_a_server_holds_scalars_and_settings_only(
    dataset: Path, roots: Path, monkeypatch: pytest.MonkeyPatch, stop: Callable[[int], None]
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stop(2)
    with pytest.raises(StoppedError):
        run_tracked("mlflow")
    folder = run_tracked("mlflow", resume=True)
    assert "tracking by" not in (folder / "train.log").read_text()
    with sqlite3.connect(roots / "results" / "mlflow.db") as db:
        assert db.execute("select name, status from runs").fetchall() == [(folder.name, "FINISHED")]
        steps = [row[0] for row in db.execute("select step from metrics where key = 'loss' order by step")]
        assert steps == [1, 2, 3]
        params = dict(db.execute("select key, value from params").fetchall())
        assert params["training.num_steps"] == "3"
        tables = ("params", "tags", "metrics", "latest_metrics", "experiment_tags")
        everything = json.dumps([db.execute(f"select * from {table}").fetchall() for table in tables])
        everything += json.dumps(db.execute("select name, source_name, entry_point_name, user_id from runs").fetchall())
    for word in identifying(roots):
        assert word not in everything, word


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends this process SIGTERM in a step, once."""
    import signal

    from headctssl.training.trainer import Trainer

    def at(step: int) -> None:
        real, sent = Trainer._clip, list[int]()

        def clip(self: Trainer) -> object:
            if self.step == step - 1 and not sent:
                sent.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self)

        monkeypatch.setattr(Trainer, "_clip", clip)

    return at
