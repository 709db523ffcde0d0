"""Run log: metrics.jsonl, train.log, TensorBoard events, trackers, the progress line and progress.png."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from headctssl.console import say as print_line
from headctssl.paths import atomic_path
from headctssl.settings import JsonValue
from headctssl.training.progress_picture import draw_progress
from headctssl.training.room import needing_room
from headctssl.training.run_lines import read_metrics
from headctssl.training.tracking import Tracking

__all__ = ["RunLog", "read_metrics"]

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_PICTURES = 120.0
Line = Mapping[str, float | int | None]


class RunLog:
    """Everything a run says. Only the main process writes; what cannot be written is a TrainingError.

    Args:
        folder: the run folder, which exists.
        enabled: False on every other process.
        quiet: nothing on the console.
        track: trackers that get the lines too.
        settings: of the run, as far as trackers may see them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        enabled: bool = True,
        quiet: bool = False,
        track: Sequence[str] = (),
        settings: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.folder, self.enabled = folder, enabled
        self.quiet = quiet or not enabled
        self.terminal = sys.stdout.isatty()
        self.line_open = False  # the cursor stands after a progress line
        self.printed_at = self.drawn_at = float("-inf")
        self.session_start: tuple[int, float] | None = None  # step and clock at the first line of this session
        self.events: SummaryWriter | None = None
        self.track, self.settings = tuple(track), dict(settings or {})
        self.tracking: Tracking | None = None
        self.finished = False  # the last step was logged

    def open(self, step: int) -> None:
        """Begin a session at `step`: lines of metrics.jsonl after it are dropped (0 drops all)."""
        self.session_start = (step, time.perf_counter())
        if not self.enabled:
            return
        path = self.folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if int(line["step"] or 0) <= step]
        with self._room("metrics.jsonl"), atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        with self._room("tensorboard"):
            self.events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1 if step else None)
        self.tracking = Tracking(self.track, self.folder, self.settings)

    def say(self, text: str) -> None:
        """One message to train.log and the console."""
        if not self.enabled:
            return
        with self._room("train.log"), open(self.folder / "train.log", "a", encoding="utf-8") as handle:
            handle.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
        self._end_line()
        print_line(text, quiet=self.quiet)

    def metrics(self, line: Line, total_steps: int) -> None:
        """One line of metrics.jsonl, the same numbers to TensorBoard, and the progress line.

        Args:
            line: at least step, epoch, loss, lr, scans_per_second, data_wait, seconds.
            total_steps: steps of the run.
        """
        if not self.enabled:
            return
        plain = {name: _number(value) for name, value in line.items()}
        with self._room("metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(plain) + "\n")
        if self.events is not None:
            with self._room("tensorboard"):
                for name, value in plain.items():
                    if name != "step" and value is not None:
                        self.events.add_scalar(name, value, int(line["step"] or 0))
        self.finished = int(line["step"] or 0) >= total_steps
        if self.tracking is not None:
            self.tracking.scalars(int(line["step"] or 0), {k: v for k, v in plain.items() if k != "step"})
            for complaint in self.tracking.complaints():
                self.say(complaint)
        self._progress(plain, total_steps)

    def picture(self, *, final: bool = False) -> None:
        """Draw progress.png from metrics.jsonl; at most every two minutes unless final."""
        now = time.perf_counter()
        if not self.enabled or (not final and now - self.drawn_at < _SECONDS_BETWEEN_PICTURES):
            return
        self.drawn_at = now
        lines = read_metrics(self.folder / "metrics.jsonl")
        with self._room("progress.png"):
            draw_progress(lines, self.folder / "progress.png")

    def close(self) -> None:
        """End the session."""
        self._end_line()
        events, self.events = self.events, None
        if events is not None:
            with self._room("tensorboard"):
                events.close()
        if self.tracking is not None:
            for complaint in self.tracking.close(finished=self.finished):
                self.say(complaint)
            self.tracking = None

    def _room(self, name: str) -> AbstractContextManager[None]:
        return needing_room(f"{name} of the run {self.folder.name}", self.folder)

    def _progress(self, line: Line, total_steps: int) -> None:
        now = time.perf_counter()
        step = int(line["step"] or 0)
        last = step >= total_steps
        if (
            self.quiet
            or not step
            or (not last and now - self.printed_at < (0.2 if self.terminal else _SECONDS_BETWEEN_LINES))
        ):
            return
        self.printed_at = now
        text = progress_text(line, total_steps, self._seconds_left(step, total_steps, now))
        if self.terminal:
            sys.stdout.write("\r\x1b[2K" + text)
            sys.stdout.flush()
            self.line_open = True
        else:
            print_line(text)
        if last:
            self._end_line()

    def _seconds_left(self, step: int, total_steps: int, now: float) -> float:
        first, at = self.session_start or (0, now)
        return (total_steps - step) * (now - at) / max(1, step - first)

    def _end_line(self) -> None:
        if self.line_open:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self.line_open = False


def progress_text(line: Line, total_steps: int, seconds_left: float) -> str:
    """The progress line: step, loss, speed, share of time spent waiting for data, time left."""
    loss = line["loss"]
    hours, rest = divmod(int(seconds_left), 3600)
    return (
        f"step {line['step']}/{total_steps}  epoch {line['epoch']}  "
        f"loss {'skipped' if loss is None else format(loss, '.4f')}  "
        f"{line['scans_per_second']:.2f} scans/s  data wait {100 * (line['data_wait'] or 0):.1f} %  "
        f"left {hours}:{rest // 60:02d}:{rest % 60:02d}"
    )


def _number(value: float | int | None) -> float | int | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
