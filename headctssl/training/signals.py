"""Signals: SIGTERM, SIGINT and SIGUSR1 become a flag that the loop looks at, and outside of the loop an error."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from headctssl.errors import StoppedError

__all__ = ["GO_ON", "Advice", "StopFlag", "StopSignal", "hold_signals", "stop_at_once", "stop_flag"]

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


GO_ON = "Start the same command again with --continue (instead of --overwrite, where that was given)."
"""What to do with a run that has begun: what was there before is removed."""


class Advice:
    """What to do after a stop; as long as a run has not begun, --continue would go on with an older one."""

    def __init__(self) -> None:
        self.do = "Start the same command again."

    def begun(self) -> None:
        """From here on the run folder is this run's."""
        self.do = GO_ON


class StopFlag:
    """Which signal asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Watch for a signal within the block; a second SIGINT stops at once, without a checkpoint.

    Outside the main thread Python allows no handlers: the flag then stays down.
    """
    flag = StopFlag()

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name

    with _handled_by(note):
        yield flag


class StopSignal(KeyboardInterrupt):
    """A signal asked to stop, within `stop_at_once`; like Ctrl-C it passes every `except Exception`.

    Args:
        error: what is to be said of it.
    """

    def __init__(self, error: StoppedError) -> None:
        super().__init__(error.what)
        self.error = error


@contextmanager
def stop_at_once() -> Iterator[Advice]:
    """Let a signal within the block end the run where it is, with the exit code of a run that can be continued.

    For the time before the first step and after the last one: what is needed to go on lies on the disk. `stop_flag`
    takes over for the steps between.

    Yields:
        What the error will advise; the block says when the run has begun.

    Raises:
        StoppedError: a signal came.
    """
    owner, advice = os.getpid(), Advice()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a child that was forked within the block dies of a signal, as without the block
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise StopSignal(
            StoppedError(
                f"The run was stopped by {signal.Signals(number).name} outside of its training steps.",
                do=advice.do,
            )
        )

    try:
        with _handled_by(stop):
            yield advice
    except StopSignal as told:
        raise told.error from None


@contextmanager
def hold_signals() -> Iterator[None]:
    """Let what several processes do together come to its end: a signal within the block counts when it is left."""
    came: list[int] = []
    try:
        with _handled_by(lambda number, _frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _WATCHED}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
