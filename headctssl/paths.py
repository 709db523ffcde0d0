"""Paths: data roots read from the environment when used, dataset folders, atomic writing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from headctssl.errors import UsageError

__all__ = [
    "atomic_path",
    "data_root",
    "dataset_folder_name",
    "find_dataset",
    "preprocessed_dataset",
    "raw_dataset",
    "results_dataset",
]

RootKind = Literal["raw", "preprocessed", "results"]
ROOT_KINDS: tuple[RootKind, ...] = ("raw", "preprocessed", "results")
_HOLDS = {"raw": "raw datasets", "preprocessed": "plans and preprocessed scans", "results": "runs and their results"}
_FOLDER = re.compile(r"^Dataset(\d{3,})_([A-Za-z0-9][A-Za-z0-9_.-]*)$")


def data_root(kind: RootKind) -> Path:
    """The folder that ``headctssl_raw``, ``headctssl_preprocessed`` or ``headctssl_results`` names.

    Args:
        kind: which of the three roots.

    Raises:
        UsageError: the variable is unset, or names a file or a folder that may not be entered.
    """
    variable = f"headctssl_{kind}"
    value = os.environ.get(variable, "")
    if not value.strip():
        exports = "\n".join(f"    export headctssl_{k}=/path/to/{k}" for k in ROOT_KINDS)
        raise UsageError(
            f"The environment variable {variable} is not set.",
            got="nothing",
            expected=f"the folder for {_HOLDS[kind]}",
            do="Set the three data roots and run again:\n" + exports,
        )
    root = Path(value).expanduser()
    try:
        is_other = root.exists() and not root.is_dir()
    except PermissionError as error:
        raise UsageError(
            f"The folder that {variable} names may not be looked at.",
            got=root,
            expected="a folder this user may enter",
            do="Ask its owner for access, or name another folder.",
        ) from error
    if is_other:
        raise UsageError(
            f"{variable} does not name a folder.", got=root, expected="a folder", do=f"Correct {variable}."
        )
    return root


def dataset_folder_name(dataset_id: int, name: str) -> str:
    """The folder name of a dataset, e.g. ``Dataset001_Phantom``.

    Args:
        dataset_id: 1 or more.
        name: letters, digits, ``_ . -``, beginning with a letter or digit.

    Raises:
        UsageError: the id or the name is not allowed.
    """
    folder = f"Dataset{dataset_id:03d}_{name}"
    if dataset_id < 1 or not _FOLDER.match(folder):
        raise UsageError(
            "A dataset needs a positive number and a plain name.",
            got=f"-d {dataset_id}, name '{name}'",
            expected="a number >= 1 and a name of letters, digits, '_', '.' or '-'",
            do="Choose another number or name.",
        )
    return folder


def find_dataset(dataset_id: int, kinds: tuple[RootKind, ...] = ROOT_KINDS) -> str | None:
    """The folder name of a dataset wherever one of the roots has it, or None.

    Args:
        dataset_id: the number in ``DatasetNNN_Name``.
        kinds: the roots to look in, in this order; roots that are unset are passed over,
            except the first, which is required.

    Raises:
        UsageError: two folders of one root carry the number.
    """
    for position, kind in enumerate(kinds):
        if position and not os.environ.get(f"headctssl_{kind}", "").strip():
            continue
        root = data_root(kind)
        found = sorted(
            entry.name
            for entry in (root.iterdir() if root.is_dir() else ())
            if entry.is_dir() and (m := _FOLDER.match(entry.name)) and int(m.group(1)) == dataset_id
        )
        if len(found) > 1:
            raise UsageError(
                f"Two datasets carry the number {dataset_id} in headctssl_{kind}.",
                got=", ".join(found),
                expected="one folder per number",
                do="Rename one of them.",
            )
        if found:
            return found[0]
    return None


def raw_dataset(dataset_id: int) -> Path:
    """The folder of an existing raw dataset.

    Raises:
        UsageError: no raw dataset has this number; the known ones are listed.
    """
    name = find_dataset(dataset_id, ("raw",))
    if name is None:
        root = data_root("raw")
        known = sorted(e.name for e in (root.iterdir() if root.is_dir() else ()) if _FOLDER.match(e.name))
        raise UsageError(
            f"There is no raw dataset number {dataset_id}.",
            got=f"headctssl_raw={root}, {_content(root, known)}",
            expected=f"a folder Dataset{dataset_id:03d}_NAME",
            do=f"Make it with headct_convert SOURCE -d {dataset_id} or headct_make_phantom -d {dataset_id}.",
        )
    return data_root("raw") / name


def _content(root: Path, known: list[str]) -> str:
    """What a data root has, in words."""
    if not root.is_dir():
        return "a folder that does not exist"
    return f"which has {', '.join(known) if known else 'no datasets'}"


def preprocessed_dataset(dataset_id: int) -> Path:
    """The folder of a dataset under ``headctssl_preprocessed``; it need not exist yet.

    Raises:
        UsageError: no root knows a dataset with this number.
    """
    return data_root("preprocessed") / _known(dataset_id, ("preprocessed", "raw"))


def results_dataset(dataset_id: int) -> Path:
    """The folder of a dataset under ``headctssl_results``; it need not exist yet.

    Raises:
        UsageError: no root knows a dataset with this number.
    """
    return data_root("results") / _known(dataset_id, ("results", "preprocessed", "raw"))


def _known(dataset_id: int, kinds: tuple[RootKind, ...]) -> str:
    name = find_dataset(dataset_id, kinds)
    return name if name is not None else raw_dataset(dataset_id).name


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; rename it to ``path`` when the block ends well.

    The file (or folder) either has its whole content or keeps the old one: it is flushed to the
    disk before the rename. On an error the temporary file is removed.

    Args:
        path: the final name; its parent folder is made when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
