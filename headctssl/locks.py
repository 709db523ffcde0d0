"""Locks: a file that one process at a time holds; the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

__all__ = ["lock_file"]


def lock_file(path: Path, *, wait: bool = False, shared: bool = False) -> TextIO:
    """Open a file for reading and appending and lock it until it is closed.

    Who removes such a file does so while holding it; one who waited for it then makes it anew.

    Args:
        path: the file; made when missing.
        wait: wait until it is free.
        shared: make it as any other file, for all whom the umask lets in; else for its owner's eyes only.

    Raises:
        BlockingIOError: another process has locked it, and this one is not to wait.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666 if shared else 0o600)
        file = os.fdopen(handle, "a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was removed by who had locked it
