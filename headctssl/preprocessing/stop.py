"""Stop: a signal ends preprocessing between two files, and the error says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from headctssl.errors import StoppedError

__all__ = ["stoppable"]

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # of a scheduler, of Ctrl-C, and of Slurm's --signal=USR1


class _Stop(KeyboardInterrupt):
    """A signal asked to stop; like Ctrl-C it passes every `except Exception`."""


@contextmanager
def stoppable(what: str) -> Iterator[None]:
    """Let a signal end the block: what is under way is finished or dropped, and every file is whole or not there.

    Outside the main thread Python allows no handlers: signals then do what they did.

    Args:
        what: what is stopped, for the message, as "Preprocessing of Dataset001_Name".

    Raises:
        StoppedError: a signal came; it says that the same command goes on.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Stop(signal.Signals(number).name)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in _WATCHED} if in_main else {}
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError(
            f"{what} was stopped by {error or 'the user'}.",
            got="a signal",
            expected="to run to the end",
            do="Run the same command again: what is stored is kept.",
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
