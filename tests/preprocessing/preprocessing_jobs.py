"""Preprocessing jobs: functions that worker processes can import."""

from __future__ import annotations

import os
import signal


def double(number: int) -> int:
    """Twice the number; 13 kills its process."""
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number
