"""Learning jobs: rows that are measured by single-threaded processes side by side, each row by one of them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.rows import ONE_THREAD


def arguments(prog: str, description: str, *words: str) -> argparse.ArgumentParser:
    """The options of a program that works through rows.

    Args:
        prog: as it is called.
        description: one line.
        words: what names a row, in capitals.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--hours", type=float, default=6.0, help="no job is begun after this")
    parser.add_argument("--jobs", type=int, help="end after so many jobs")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes side by side")
    parser.add_argument("--one", nargs=len(words), metavar=words, help=argparse.SUPPRESS)
    return parser


def work_through(
    module: str, options: argparse.Namespace, jobs: Sequence[Sequence[str]], is_open: Callable[[Sequence[str]], bool]
) -> int:
    """Start a process for every open row, ``python -m MODULE --one WORDS``, as far as the time goes.

    Args:
        module: as ``python -m`` takes it.
        options: of `arguments`.
        jobs: the words that name each row, in their order.
        is_open: whether a row is missing and no other process has it; asked just before it would be started.

    Returns:
        1 when a process failed, else 0.
    """
    begun, started, failed = time.monotonic(), 0, False
    running: list[subprocess.Popen[bytes]] = []
    waiting = list(jobs)
    while running or waiting:
        ended = [process for process in running if process.poll() is not None]
        failed |= any(process.returncode for process in ended)
        running = [process for process in running if process not in ended]
        if time.monotonic() - begun > 3600 * options.hours or started == options.jobs:
            waiting = []
        if len(running) >= options.workers or not waiting:
            time.sleep(0.5)
            continue
        words = waiting.pop(0)
        if is_open(words):
            started += 1
            command = [sys.executable, "-m", module, "--one", *words]
            running.append(subprocess.Popen(command, env={**os.environ, **ONE_THREAD}))
            time.sleep(2)  # until it has claimed the row
    return int(failed)


def claimed(lock: Path) -> bool:
    """Whether another process measures a row.

    Args:
        lock: its file.
    """
    from headctssl.locks import lock_file

    try:
        lock_file(lock).close()
    except BlockingIOError:
        return True
    return False
