"""Jobs for tests: functions of a module, since they are sent to other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from headctssl.errors import DataError


def act(task: str) -> None:
    """Do what the first word says, then leave a file of the second word's name."""
    what, _, where = task.partition(" ")
    print(f"doing {what}")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        raise DataError("This cannot be.", got="it", expected="another")
    if what == "crash":
        raise ZeroDivisionError("by nothing")
    if what == "sleep":
        time.sleep(60)
    Path(where).write_text(os.environ.get("headctssl_results", ""))
