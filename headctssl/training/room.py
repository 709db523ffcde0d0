"""Room: a file of a run that cannot be written ends the run with what is wrong, what is free and how to go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from headctssl.errors import TrainingError
from headctssl.training.signals import GO_ON

__all__ = ["cannot_write", "needing_room"]


def cannot_write(what: str, folder: Path, error: Exception, expected: str = "space for it") -> TrainingError:
    """An error for what cannot be written, most often because the disk is full.

    Args:
        what: as "The file PATH".
        folder: where it is written.
        error: what writing it gave.
        expected: what would have been right.
    """
    free = shutil.disk_usage(folder).free
    return TrainingError(
        f"{what} cannot be written.",
        got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}; {free / 1e6:.0f} MB free",
        expected=expected,
        do=f"Free some space. {GO_ON}",
    )


@contextmanager
def needing_room(what: str, folder: Path) -> Iterator[None]:
    """Tell a failure to write within the block as `cannot_write` does.

    Args:
        what: as "The file PATH".
        folder: where it is written.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise cannot_write(what, folder, error) from error
