"""Signals: SIGTERM, SIGINT and SIGUSR1 become a flag that the loop looks at after each step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopFlag", "stop_flag"]

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, note) for number in _WATCHED}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
