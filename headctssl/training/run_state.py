"""Run state: checkpoint_latest.pt, from which a run goes on; tensors and plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headctssl.errors import DataError
from headctssl.paths import atomic_path

__all__ = ["CHECKPOINT_FILE", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_FILE = "checkpoint_latest.pt"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; the old file is replaced only after the new one was loaded.

    Args:
        path: the file, ``checkpoint_latest.pt``.
        state: nested mappings, lists and tuples of tensors, text, numbers, booleans and None.

    Raises:
        TypeError: a value is of another type; its place is named.
    """
    plain = _plain(state, "state")
    with atomic_path(path) as temporary:
        torch.save(plain, temporary)
        torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise DataError(
            f"The checkpoint {path} cannot be read.",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            expected="a checkpoint written by headctssl",
            do="Start the run again with --overwrite.",
        ) from error
    assert isinstance(state, dict)
    return state


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
