"""Preprocessing jobs: functions that worker processes can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def double(number: int) -> int:
    """Twice the number; 13 kills its process."""
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def refuse_7(number: int) -> int:
    """The number; 7 raises."""
    if number == 7:
        raise ValueError("7 is refused")
    return number


def kill_once(item: tuple[int, Path]) -> int:
    """The number; 3 kills its process the first time, which the file of the item remembers."""
    return _kill(item, 1)


def kill_twice(item: tuple[int, Path]) -> int:
    """The number; 3 kills its process twice."""
    return _kill(item, 2)


def _kill(item: tuple[int, Path], times: int) -> int:
    number, path = item
    if number == 3:
        before = path.stat().st_size if path.exists() else 0
        if before < times:
            path.write_bytes(bytes(before + 1))
            os.kill(os.getpid(), signal.SIGKILL)
    return number
