"""Tests of two runs at once on one dataset, and of what killed runs leave."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from small_heads import STORAGE, make_dataset

from headctssl.errors import UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing import lock
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.lock import BusyError, run_lock
from headctssl.preprocessing.parts import Part
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.preprocessing.preprocess import preprocess

Command = Callable[..., tuple[int, str, str]]

HOLD = """
import sys
from pathlib import Path
from headctssl.preprocessing.lock import run_lock
from headctssl.preprocessing.parts import Part
with run_lock(Path(sys.argv[1]), Part(int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path, part: Part) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a dataset."""
    call = [sys.executable, "-c", HOLD, str(folder), str(part.number), str(part.of)]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mark_of(folder: Path, host: str, part: Part | None = None) -> Path:
    """What a run on some machine left when it was killed."""
    part = part or Part()
    path = folder / f".preprocessing_{part.number}_of_{part.of}.lock"
    path.write_text(lock.Mark(host=host, pid=2**22 + 1, since="2026-01-01 10:00:00").model_dump_json())
    return path


def test_a_second_run_is_told_who_is_at_work(roots: Path, command: Command) -> None:
    make_dataset(7, 2)
    command("plan_and_preprocess", "-d", 7, "--num_workers", 1)
    folder = preprocessed_dataset(7)
    before = names(folder)
    with held_elsewhere(folder, Part()) as other:
        code, _, err = command("preprocess", "-d", 7, "--num_workers", 1)
        assert code == 2
        assert "being preprocessed by another run" in err
        assert f"process {other.pid} on {socket.gethostname()}" in err
        code, _, err = command("preprocess", "-d", 7, "--part", 1, "--parts", 2)
        assert code == 2
    # The kill left the files of the lock, and they are in nobody's way.
    assert command("preprocess", "-d", 7, "--num_workers", 1)[0] == 0
    assert names(folder) == before


def test_parts_of_one_array_run_together_and_nothing_else_does(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, Part(1, 4)), run_lock(tmp_path, Part(2, 4)):
        for part in (Part(1, 4), Part(2, 4), Part(3, 5), Part()):
            with pytest.raises(BusyError, match="another run") as told, run_lock(tmp_path, part):
                pass
        assert "(part 1 of 4); process" in str(told.value.got)
        assert "(part 2 of 4)" in str(told.value.got)
        with run_lock(tmp_path, Part(3, 4)):
            pass
    with run_lock(tmp_path, Part()):
        pass
    assert names(tmp_path) == []


def test_a_run_that_was_killed_on_this_machine_is_no_obstacle(tmp_path: Path) -> None:
    mark_of(tmp_path, socket.gethostname())
    mark_of(tmp_path, socket.gethostname(), Part(2, 3))
    began = time.monotonic()
    with run_lock(tmp_path, Part()):
        assert names(tmp_path) == [".preprocessing_1_of_1.lock"]
    assert time.monotonic() - began < lock.WATCH_S
    assert names(tmp_path) == []


@contextmanager
def another_user(folder: Path) -> Iterator[None]:
    """Who is not the owner of what lies in a folder that all may write in; only for root, who may become one."""
    for parent in (folder, *folder.parents):
        if parent.name.startswith(("pytest", "popen", "test_")):
            parent.chmod(0o777)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


def test_what_another_users_killed_run_left_is_no_obstacle_where_it_may_be_opened(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, Part()):
        mark = tmp_path / ".preprocessing_1_of_1.lock"
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(mark.stat().st_mode) == 0o666 & ~umask, "as any other file"
    mark.chmod(0o666)
    if os.geteuid() == 0:
        with another_user(tmp_path), run_lock(tmp_path, Part()):
            assert mark.stat().st_uid == 65534
        assert names(tmp_path) == []


@pytest.mark.parametrize("name", [".preprocessing_1_of_1.lock", ".preprocessing.lock"])
def test_a_lock_file_that_may_not_be_opened_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch(0o600)
    user = another_user(tmp_path) if os.geteuid() == 0 else nullcontext()
    if os.geteuid() != 0:
        (tmp_path / name).chmod(0)
    with user, pytest.raises(UsageError, match="may not open") as told, run_lock(tmp_path, Part()):
        pass
    assert f"{name} of user {os.getuid()}" in str(told.value.got)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("content", [None, "", "{torn", "\x00\x00"])
def test_a_run_on_another_machine_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = mark_of(tmp_path, "other-machine")
    if content is not None:
        path.write_text(content)
    lives = threading.Event()
    watched: list[float] = []

    def sleep(seconds: float) -> None:
        watched.append(seconds)
        if lives.is_set():
            os.utime(path, ns=(1, time.time_ns() + 10**9))

    monkeypatch.setattr(lock.time, "sleep", sleep)
    lives.set()
    with pytest.raises(BusyError, match="another run") as told, run_lock(tmp_path, Part()):
        pass
    assert ("other-machine" in str(told.value.got)) == (content is None)
    lives.clear()
    with run_lock(tmp_path, Part()):
        pass
    assert watched == [lock.WATCH_S] * 2
    assert lock.WATCH_S > 3 * lock.BEAT_S


def test_a_run_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with run_lock(tmp_path, Part()):
        path = tmp_path / ".preprocessing_1_of_1.lock"
        os.utime(path, ns=(1, 1))
        until = time.monotonic() + 20
        while path.stat().st_mtime_ns == 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns != 1


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with run_lock(tmp_path, Part()):
        pass
    assert "without locks" in capsys.readouterr().err


def test_what_another_run_makes_is_waited_for(roots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(7, 6)
    preprocess(7, rule=STORAGE, num_workers=1, quiet=True)
    folder = preprocessed_dataset(7)
    index = folder / STORAGE.storage_id / "cases.csv"
    aside = index.rename(index.with_name("aside"))
    with held_elsewhere(folder, Part()) as other:

        def finish() -> None:
            time.sleep(0.5)
            aside.rename(index)
            other.kill()

        thread = threading.Thread(target=finish)
        thread.start()
        assert ensure_preprocessed(7, STORAGE, num_workers=1).case_ids == CaseIndex.open(index.parent).case_ids
        thread.join()
    assert f"waiting: process {other.pid}" in capsys.readouterr().out
