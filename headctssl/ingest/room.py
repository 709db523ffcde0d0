"""Room: a full disk stops a conversion with one sentence, for it says nothing of the scans."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headctssl.errors import UsageError

__all__ = ["NoRoomError", "needs_room"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(UsageError):
    """The disk that a dataset is written to is full."""


@contextmanager
def needs_room(folder: Path) -> Iterator[None]:
    """Writing under a folder.

    Raises:
        NoRoomError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NoRoomError(
            "There is no room for the dataset.",
            got=f"{folder}: {error.strerror}",
            expected="room for one image per scan",
            do="Make room and give the same command again: it goes on where it stopped.",
        ) from None
