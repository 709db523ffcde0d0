"""Run state: checkpoint_latest.pt, from which a run goes on; tensors and plain values only."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headctssl.errors import DataError, TrainingError
from headctssl.paths import atomic_path
from headctssl.training.room import cannot_write, needing_room

__all__ = ["CHECKPOINT_FILE", "REWIND_FILE", "Checkpoints", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_FILE = "checkpoint_latest.pt"
REWIND_FILE = "checkpoint_rewind.pt"
"""The checkpoint that a run goes back to after steps that were not finite; only with training.on_nonfinite=rewind."""


class Checkpoints:
    """The checkpoints of a run folder: the latest, and where wanted the one that a rewind goes back to.

    Args:
        folder: the run folder.
        digest: names the settings of the run; a checkpoint with another one is refused.
        rewind_every: steps between the checkpoints that a rewind goes back to; None when the run does not rewind.

    Attributes:
        step: of the latest checkpoint; None before there is one.
    """

    def __init__(self, folder: Path, digest: str, rewind_every: int | None) -> None:
        self.folder, self.digest, self.rewind_every = folder, digest, rewind_every
        self.step: int | None = None

    def due(self, step: int) -> bool:
        """Whether a rewind may go back to this step: a matter of the step alone, not of where a run was stopped."""
        return self.rewind_every is not None and step % self.rewind_every == 0

    def write(self, state: Mapping[str, Any]) -> None:
        """Make a state the latest one.

        Args:
            state: with the entry ``step``; otherwise as `save_checkpoint`.

        Raises:
            TrainingError: as `save_checkpoint`.
        """
        save_checkpoint(self.folder / CHECKPOINT_FILE, {"format": 1, "settings": self.digest, **state})
        self.step = state["step"]
        self.keep()

    def read(self) -> dict[str, Any] | None:
        """The latest state; None when there is none.

        Raises:
            DataError: it cannot be read.
            TrainingError: it belongs to other settings.
        """
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return None
        state = load_checkpoint(path)
        if state["settings"] != self.digest:
            raise TrainingError(
                f"The checkpoint {path} was written under other settings.",
                got=state["settings"],
                expected=self.digest,
                do="Start again with --overwrite, or under another name with --tag.",
            )
        self.step = state["step"]
        return state

    def keep(self) -> None:
        """Keep the latest checkpoint as the one to go back to when it is due, as a second name of the same file."""
        if self.step is None or not self.due(self.step):
            return
        path = self.folder / REWIND_FILE
        with needing_room(f"The checkpoint {path}", self.folder), atomic_path(path) as temporary:
            try:
                os.link(self.folder / CHECKPOINT_FILE, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.folder / CHECKPOINT_FILE, temporary)

    def read_to_rewind(self) -> dict[str, Any]:
        """The state to go back to.

        Raises:
            DataError: it cannot be read.
            TrainingError: there is none yet.
        """
        path = self.folder / REWIND_FILE
        if not path.exists():
            raise TrainingError(
                "There is no checkpoint to go back to after steps that were not finite.",
                got=f"fewer than {self.rewind_every} steps",
                expected=f"a checkpoint after {self.rewind_every} steps (training.rewind_every)",
                do="Lower training.lr or set training.precision=float32, and start again with --overwrite.",
            )
        return load_checkpoint(path)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; the old file is replaced only after the new one was read back whole.

    Args:
        path: the file, ``checkpoint_latest.pt``.
        state: nested mappings, lists and tuples of tensors, text, numbers, booleans and None.

    Raises:
        TypeError: a value is of another type; its place is named.
        TrainingError: the file cannot be written, most often because the disk is full; the old one is as it was.
    """
    plain = _plain(state, "state")
    try:
        with atomic_path(path) as temporary:
            torch.save(plain, temporary)
            _load(temporary, mmap=True)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch's writer raises RuntimeError on a full disk
        kept = " beside the one before, which is still there and can be used" if path.exists() else ""
        raise cannot_write(f"The checkpoint {path}", path.parent, error, f"space for it{kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU.

    Raises:
        DataError: the file cannot be read, or its bytes are not those that were written.
    """
    try:
        state = _load(path)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise DataError(
            f"The checkpoint {path} cannot be read.",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
            expected="a checkpoint written by headctssl",
            do="Start the run again with --overwrite.",
        ) from error
    assert isinstance(state, dict)
    return state


def _load(path: Path, *, mmap: bool = False) -> Any:
    """The content of a checkpoint whose checksums are right, which torch writes and never looks at."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds only tensors and plain values")


def _key(key: Any, where: str) -> str | int:
    if type(key) in (str, int):
        return key  # type: ignore[no-any-return]  # narrowed by the type check above
    raise TypeError(f"a key of {where} is a {type(key).__name__}; expected text or a whole number")
