"""Lock: one preprocessing run at a time on a dataset, or the parts of one job array together.

Every run has a file of its own that it holds with a lock of the system, which ends with its process, however that ends.
Locks of network file systems may reach no further than one machine, so a run also touches its file every few seconds:
a file of another machine that is not held is watched before it is taken for a leftover. No clocks are compared.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from pydantic import Field, ValidationError

from headctssl.console import say, warn
from headctssl.errors import UsageError
from headctssl.locks import lock_file
from headctssl.preprocessing.parts import Part
from headctssl.settings import Settings

__all__ = ["BusyError", "alone", "run_lock", "wait_until_free"]

BEAT_S = 5.0
"""How often a run touches its file."""

WATCH_S = 17.0
"""How long the file of another machine must lie untouched: three beats and some slack."""

_GUARD = ".preprocessing.lock"
_MARK = re.compile(r"^\.preprocessing_(\d+)_of_(\d+)\.lock$")
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_POLL_S = 1.0


class BusyError(UsageError):
    """Another run is preprocessing the dataset."""


class Mark(Settings):
    """Who holds a lock file; it is gone when the run is over."""

    host: str = Field(description="Name of the machine.")
    pid: int = Field(description="Process.")
    since: str = Field(description="Local time of its start.")


@contextmanager
def run_lock(folder: Path, part: Part) -> Iterator[None]:
    """Hold a dataset while it is preprocessed.

    Args:
        folder: the dataset's folder under headctssl_preprocessed, made when missing.
        part: what is preprocessed; parts of one array share the dataset, everything else excludes each other.

    Raises:
        BusyError: another run holds it; machine, process and part are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".preprocessing_{part.number}_of_{part.of}.lock"
    with alone(folder) as has_locks:
        file = _take(folder, mark, part) if has_locks else None
    if file is None:
        yield
        return
    over = threading.Event()
    beat = threading.Thread(target=_touch, args=(mark, over), daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        mark.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        file.close()


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Wait until no other process is in such a block of a dataset; False where the file system has no locks.

    Raises:
        UsageError: a file of another user's run is in the way and may not be opened.
    """
    path = folder / _GUARD
    try:
        guard = lock_file(path, wait=True, shared=True)
    except PermissionError:
        if not path.exists():
            raise
        raise _foreign(path) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        warn(f"{folder} is on a file system without locks: two runs at once on a dataset would not be noticed")
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        guard.close()


def wait_until_free(folder: Path, *, quiet: bool = False) -> None:
    """Wait until nothing preprocesses a dataset."""
    told = False
    while True:
        with alone(folder):
            busy = _running(_others(folder, None))
        if not busy:
            return
        if not told:
            say(f"waiting: {_names(busy)} is preprocessing {folder.name}", quiet=quiet)
            told = True
        time.sleep(_POLL_S)


def _take(folder: Path, mark: Path, part: Part) -> TextIO:
    """Remove the marks of dead runs that are in the way, and make our own."""
    others = _others(folder, part)
    busy = _running(others)
    if busy:
        raise BusyError(
            f"{folder.name} is being preprocessed by another run.",
            got=_names(busy),
            expected="one run at a time on a dataset, or the parts of one array together",
            do="Wait for it to end, or end it. A run that was killed needs nothing done: this is noticed.",
        )
    for path in others:
        path.unlink(missing_ok=True)
    file = lock_file(mark, shared=True)
    content = Mark(host=socket.gethostname(), pid=os.getpid(), since=datetime.now().isoformat(" ", "seconds"))
    try:
        file.write(content.model_dump_json())
        file.flush()
    except OSError:  # a full disk
        mark.unlink()
        raise
    return file


def _others(folder: Path, part: Part | None) -> list[Path]:
    """The files of runs that a part cannot be beside; of all runs for None."""
    found = []
    for path in sorted(folder.iterdir()):
        match = _MARK.match(path.name)
        if match is None:
            continue
        other = Part(int(match[1]), int(match[2]))
        if part is None or other.of != part.of or other.number == part.number:
            found.append(path)
    return found


def _running(paths: Sequence[Path]) -> list[Path]:
    """Those of some files whose run lives: the lock is held, or another machine goes on touching the file."""
    held = [path for path in paths if _is_held(path)]
    own = socket.gethostname()
    before = {path: _touched(path) for path in paths if path not in held and _host(path) != own}
    if before:
        say(f"looking for {WATCH_S:.0f} s whether {_names(list(before))} lives")
        time.sleep(WATCH_S)
    return held + [path for path, then in before.items() if _touched(path) not in (None, then)]


def _is_held(path: Path) -> bool:
    try:
        with open(path, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except PermissionError:
        raise _foreign(path) from None
    return False


def _foreign(path: Path) -> UsageError:
    """Of a lock file that this user may not open, so that nothing can be said of its run."""
    return UsageError(
        "Another user's preprocessing run has left or holds a file that you may not open.",
        got=f"{path} of user {path.stat().st_uid}",
        expected="a lock file that you may read and write",
        do="When that run is over, remove the file, or let its owner do so. For a folder that several users"
        " preprocess in, give them a common group and umask 002.",
    )


def _touched(path: Path) -> int | None:
    """When a file was touched in ns; it is opened, for a network file system asks its server then."""
    try:
        with open(path, encoding="utf-8") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _touch(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        try:
            os.utime(path)
        except FileNotFoundError:  # someone removed it by hand: the lock itself stays
            return


def _host(path: Path) -> str | None:
    mark = _mark(path)
    return None if mark is None else mark.host


def _mark(path: Path) -> Mark | None:
    try:
        return Mark.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError, UnicodeDecodeError):  # gone, or its run died while it wrote
        return None


def _names(paths: Sequence[Path]) -> str:
    """Process, machine and start of each run, and its part."""
    names = []
    for path in paths:
        mark, match = _mark(path), _MARK.match(path.name)
        name = "a run" if mark is None else f"process {mark.pid} on {mark.host} since {mark.since}"
        part = Part(int(match[1]), int(match[2])) if match else Part()
        names.append(name if part.whole else f"{name} ({part})")
    return "; ".join(names)
