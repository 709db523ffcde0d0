"""Tracking: carries the lines of a run to trackers in threads of their own; none of them can stop or slow the run."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from headctssl.settings import JsonValue, Settings, read_json, write_json
from headctssl.training.trackers import Tracked, Tracker, open_tracker

__all__ = ["TRACKING_FILE", "Tracking"]

TRACKING_FILE = "tracking.json"
_MOST_WAITING = 10_000  # lines; a tracker that is further behind is given up
_CLOSE_SECONDS = 30.0


class _TrackingFile(Settings):
    """tracking.json: under which id a run is tracked."""

    format: Literal[1] = 1
    id: str


class _Carrier:
    """One tracker and the thread that calls it."""

    def __init__(self, name: str, tracker: Tracker, run: Tracked) -> None:
        self.name, self.tracker, self.run = name, tracker, run
        self.lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_MOST_WAITING)
        self.finished = False
        self.failure = ""
        self.told = False
        self.thread = threading.Thread(target=self._carry, name=f"track-{name}", daemon=True)
        try:
            tracker.load()
        except Exception as error:  # a package may be broken in any way
            self.failure = _text(error)
            return
        self.thread.start()

    def put(self, line: tuple[int, dict[str, float]] | None) -> None:
        if self.failure:
            return
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.failure = f"it is {_MOST_WAITING} lines behind"

    def _carry(self) -> None:
        try:
            self.tracker.begin(self.run)
            while (line := self.lines.get()) is not None:
                if self.failure:
                    return
                self.tracker.scalars(*line)
            self.tracker.end(finished=self.finished)
        except Exception as error:  # whatever a service does, the run goes on
            self.failure = _text(error)


class Tracking:
    """The trackers of one run. Only the main process makes one.

    Args:
        names: keys of `TRACKERS`.
        folder: the run folder, which exists; the id of the run is kept there for `--continue`.
        settings: what may be shared of the settings.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, JsonValue]) -> None:
        self.carriers: list[_Carrier] = []
        if not names:
            return
        path = folder / TRACKING_FILE
        if not path.exists():
            write_json(path, _TrackingFile(id=secrets.token_hex(8)))
        run = Tracked(read_json(path, _TrackingFile).id, folder.name, settings, folder)
        self.carriers = [_Carrier(name, open_tracker(name), run) for name in dict.fromkeys(names)]

    def scalars(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Hand a line to every tracker; returns at once.

        Args:
            step: optimiser steps done.
            values: name -> number; None is left out.
        """
        line = {name: float(value) for name, value in values.items() if value is not None}
        for carrier in self.carriers:
            carrier.put((step, line))

    def complaints(self) -> list[str]:
        """One sentence for every tracker that failed since the last call."""
        found = []
        for carrier in self.carriers:
            if carrier.failure and not carrier.told:
                carrier.told = True
                found.append(
                    f"tracking by {carrier.name} stopped, the run goes on: {carrier.failure} "
                    "(metrics.jsonl and tensorboard/ have every line)"
                )
        return found

    def close(self, *, finished: bool) -> list[str]:
        """Let the trackers finish, for half a minute at most in all; returns `complaints`.

        Args:
            finished: whether the run reached its last step.
        """
        for carrier in self.carriers:
            carrier.finished = finished
            carrier.put(None)
        until = time.monotonic() + _CLOSE_SECONDS
        for carrier in self.carriers:
            if carrier.thread.is_alive():
                carrier.thread.join(max(0.0, until - time.monotonic()))
            if carrier.thread.is_alive() and not carrier.failure:
                carrier.failure = f"it did not finish within {_CLOSE_SECONDS:g} s"
        return self.complaints()


def _text(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"
