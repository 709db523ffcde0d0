"""Dying: a job for worker processes that ends some of them; it imports nothing, so that they start quickly."""

from __future__ import annotations

import os
import signal


def dies_at_a_multiple_of_7(number: int) -> int:
    """Give the number back, or end the process."""
    if number % 7 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
