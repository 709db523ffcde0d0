"""Dying measure: what a measuring process does when the system kills it."""

from __future__ import annotations

import os
import signal


def be_killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
