"""Output: what happens when the place that cases are stored in cannot be written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headctssl.errors import DataError

__all__ = ["UnwritableError", "writing"]

_DO_ROOM = "Make room, or point headctssl_preprocessed to another disk, and run the same command again: what is stored "
_DO_ROOM += "already is kept."
_DO_RIGHTS = "Ask for the right to write there, or point headctssl_preprocessed to another folder."
_FAULTS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("The disk is full", _DO_ROOM),
    errno.EDQUOT: ("The quota of this disk is used up", _DO_ROOM),
    errno.EFBIG: ("A file became larger than this system or account allows", _DO_ROOM),
    errno.EROFS: ("The disk is read-only", _DO_RIGHTS),
    errno.EACCES: ("Writing is not allowed", _DO_RIGHTS),
    errno.EPERM: ("Writing is not allowed", _DO_RIGHTS),
}


class UnwritableError(DataError):
    """The output cannot be written: no fault of a case, and it stops the command."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the errors of a full, read-only or forbidden disk into one that says so.

    Args:
        folder: what is written into.

    Raises:
        UnwritableError: the block met such an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        what, do = _FAULTS[error.errno]
        raise UnwritableError(
            f"{what}: nothing more can be stored in {folder}.",
            got=f"{error.strerror}{_room(folder)}",
            expected="a folder that can be written, with room for about 5 MB a case at 1 mm",
            do=do,
        ) from error


def _room(folder: Path) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # the folder could not even be made
        return ""
    return f", {free / 1e6:.0f} MB free"
