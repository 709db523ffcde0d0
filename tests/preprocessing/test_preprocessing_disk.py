"""Tests of disks that are full, read-only, fail in passing or change bits, and of rights that are missing."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_heads import STORAGE, make_dataset

from headctssl.dataset.image_io import read
from headctssl.errors import CorruptCaseError, DataError, ImageReadError
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.index import CaseIndex, case_path, mask_path
from headctssl.preprocessing.output import UnwritableError
from headctssl.preprocessing.preprocess import preprocess
from headctssl.preprocessing.report import PreprocessingReport
from headctssl.types import Volume
from headctssl.volume.mask_store import StoredMask
from headctssl.volume.store import StoredArray, StoredCase

Command = Callable[..., tuple[int, str, str]]


def storage() -> Path:
    return preprocessed_dataset(7) / STORAGE.storage_id


def run(**more: Any) -> PreprocessingReport:
    return preprocess(7, rule=STORAGE, num_workers=1, quiet=True, **more)


def files() -> dict[str, bytes]:
    return {str(p.relative_to(storage())): p.read_bytes() for p in storage().rglob("*") if p.is_file()}


def mount(*arguments: object) -> None:
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(roots: Path) -> Iterator[Path]:
    """headctssl_preprocessed is a disk of its own of 192 kB."""
    disk = roots / "preprocessed"
    mount("mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_told_and_with_more_room_it_goes_on(
    small_disk: Path, command: Command, num_workers: int
) -> None:
    make_dataset(7, 12)
    with pytest.raises(UnwritableError, match="disk is full") as told:
        preprocess(7, rule=STORAGE, num_workers=num_workers, quiet=True)
    assert "MB free" in str(told.value.got)
    assert "Make room" in str(told.value.do)
    stored = list(storage().glob("??/*.b2nd"))
    assert 0 < len(stored) < 24
    for path in stored:
        StoredArray(path).verify()
    assert not (storage() / "cases.csv").exists()
    assert {path.name for path in storage().iterdir()} == {path.parent.name for path in stored}
    mount("mount", "-o", "remount,size=16m", small_disk)
    report = run()
    assert report.num_written + report.num_kept == 12
    assert report.num_kept >= len(stored) // 2 - 1
    assert len(CaseIndex.open(storage())) == 12


def test_a_full_disk_costs_no_stored_case(small_disk: Path) -> None:
    make_dataset(7, 2)
    run()
    before = files()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2**20))
    with pytest.raises(UnwritableError, match="disk is full"):
        run(overwrite=True)
    assert files() == before
    filler.unlink()
    assert run().num_kept == 2


def test_the_command_says_in_one_message_that_the_disk_is_full(small_disk: Path, command: Command) -> None:
    make_dataset(7, 12)
    code, _, err = command("plan_and_preprocess", "-d", 7, "--num_workers", 1)
    assert code == 2
    assert "The disk is full" in err
    assert "Traceback" not in err


def test_a_read_only_disk_is_told(small_disk: Path, command: Command) -> None:
    make_dataset(7, 2)
    run()
    before = files()
    mount("mount", "-o", "remount,ro", small_disk)
    for name in ("preprocess", "plan_and_preprocess"):
        code, _, err = command(name, "-d", 7, "--num_workers", 1)
        assert code == 2
        if name == "plan_and_preprocess":
            assert "The disk is read-only" in err
        assert "Traceback" not in err
    with pytest.raises(UnwritableError, match="read-only"):
        run()
    assert files() == before


def test_a_file_that_may_not_grow_is_told(roots: Path) -> None:
    make_dataset(7, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UnwritableError, match="larger than this system"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not files()
    assert run().num_written == 2


def test_a_folder_without_the_right_to_write_is_told(roots: Path, command: Command) -> None:
    make_dataset(7, 2)
    for name in ("plan_and_preprocess", "preprocess"):
        assert command(name, "-d", 7, "--num_workers", 1)[0] == 0
    folder = preprocessed_dataset(7)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if os.geteuid() == 0:  # who may write everywhere, and so becomes another user
        for parent in roots.parents:
            if parent.name.startswith(("pytest", "popen")):  # one folder more when tests run in several processes
                parent.chmod(0o711)
        roots.chmod(0o711)
        os.seteuid(65534)
    else:
        folder.chmod(0o555)
    try:
        code, _, err = command("preprocess", "-d", 7, "--num_workers", 1)
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o755)
    assert code == 2, err
    assert "Writing is not allowed" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_one_write_meets_stops_the_command(roots: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    make_dataset(7, 2)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("headctssl.preprocessing.case_job.write_case", fail)
    with pytest.raises(UnwritableError, match="nothing more can be stored"):
        run()
    assert not files()


@pytest.fixture
def hiccups(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Let the first so many readings of case7_01 fail."""
    monkeypatch.setattr("headctssl.preprocessing.executors._PAUSE_S", 0.0)

    def install(times: int, error: Exception) -> None:
        left = [times]

        def shaky(path: Path) -> Volume:
            if "case7_01" in path.name and left[0]:
                left[0] -= 1
                raise error
            return read(path)

        monkeypatch.setattr("headctssl.preprocessing.case_job.read", shaky)

    return install


def wrapped() -> ImageReadError:
    """An error of reading as a reader tells it: what the system said is behind it."""
    error = ImageReadError("case7_01 cannot be read as a volume.")
    error.__context__ = OSError(errno.ESTALE, "Stale file handle")
    return error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), wrapped()])
def test_a_share_that_fails_in_passing_is_tried_again(
    roots: Path, hiccups: Callable[[int, Exception], None], error: Exception
) -> None:
    make_dataset(7, 3)
    hiccups(1, error)
    assert run(retries=0).failures[0].case_id == "case7_01"
    hiccups(1, error)
    assert (run(overwrite=True).num_written, run().num_kept) == (3, 3)
    hiccups(2, error)
    assert [f.case_id for f in run(overwrite=True).failures] == ["case7_01"]
    hiccups(2, error)
    assert run(retries=2, overwrite=True).num_written == 3


def test_what_will_not_pass_is_not_tried_again(roots: Path, hiccups: Callable[[int, Exception], None]) -> None:
    make_dataset(7, 3)
    hiccups(1, ImageReadError("case7_01 is no image."))
    assert [f.case_id for f in run(retries=5).failures] == ["case7_01"]


def test_no_flipped_bit_is_read_as_whole(roots: Path) -> None:
    make_dataset(7, 3)
    run()
    before = files()
    rng = random.Random(0)
    array, mask = case_path(storage(), "case7_01"), mask_path(storage(), "case7_01", "head")
    readers: dict[Path, Callable[[], object]] = {
        array: lambda: StoredCase(array).read_all(),
        mask: lambda: StoredMask(mask).read_all(),
        storage() / "cases.csv": lambda: CaseIndex.open(storage()),
    }
    for path, reader in readers.items():
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DataError):
                reader()
        for end in (0, 1, len(whole) // 2, len(whole) - 1, whole.rfind(b"\n", 0, -1) + 1):
            path.write_bytes(whole[:end])
            with pytest.raises(DataError):
                reader()
        path.write_bytes(bytes(damaged))
    report = run(verify=True)
    assert {note.case_id for note in report.notes} == {"case7_01"}
    assert (report.num_written, report.num_kept) == (1, 2)
    assert files() == before


def test_a_damaged_mask_alone_is_found_by_verify(roots: Path) -> None:
    make_dataset(7, 2)
    run()
    before = files()
    path = mask_path(storage(), "case7_00", "head")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)
    with pytest.raises(CorruptCaseError):
        StoredMask(path).read_all()
    assert run(verify=True).num_written == 1
    assert files() == before
