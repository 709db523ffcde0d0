"""DICOM tree: every file of a folder tree is opened once, up to its pixels, in parallel."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headctssl.console import progress
from headctssl.dataset.dicom_header import HeaderError, is_dicom
from headctssl.dataset.dicom_series import DICOM_SUFFIXES
from headctssl.dataset.dicom_slices import Cache, Common, Slice, slices_of
from headctssl.dataset.parallel import map_items
from headctssl.errors import HeadCTSSLError

__all__ = ["Tree", "read_tree"]

_CHUNK = 256  # files per piece of work: small beside a tree, large beside the cost of sending it to a process

_MANY = 10  # such pieces; fewer are read in some seconds


@dataclass
class Tree:
    """What a folder tree holds. About half a kilobyte is kept per slice."""

    slices: list[Slice] = field(default_factory=list)  # in the order of the paths
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (path below the source, what is wrong)
    ignored: Counter[str] = field(default_factory=Counter)  # what is no DICOM picture -> how many files


def read_tree(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Tree:
    """Read the headers of a tree.

    Links are followed, each folder is entered once: a link to a folder above makes no loop. Names that begin with a
    point are passed over. A DICOMDIR is told and not used: it lists the files that are read, and often too few.

    Args:
        source: the folder.
        num_workers: processes; None = one per core where there are files enough.
        quiet: print no progress.

    Raises:
        HeadCTSSLError: a worker process died.
    """
    tree = Tree()
    files = list(_files(source, tree.ignored))
    chunks = [files[at : at + _CHUNK] for at in range(0, len(files), _CHUNK)]
    parts: list[Tree | None] = [None] * len(chunks)
    shared: dict[Common, Common] = {}
    results = map_items(partial(_read_chunk, source), chunks, num_workers)
    told = f"headers read of {len(files):,} files, in lots of {_CHUNK}"
    for position, part in progress(results, told, len(chunks), quiet=quiet or len(chunks) < _MANY):
        if isinstance(part, HeadCTSSLError):
            raise part
        part.slices = [one._replace(common=shared.setdefault(one.common, one.common)) for one in part.slices]
        parts[position] = part
    for done in parts:
        assert done is not None, "map_items gives a result for every item"
        tree.slices += done.slices
        tree.unreadable += done.unreadable
        tree.ignored += done.ignored
    return tree


def _files(source: Path, ignored: Counter[str]) -> Iterator[str]:
    """Paths below the source, sorted within each folder."""
    waiting = [""]
    entered: set[tuple[int, int]] = set()
    while waiting:
        folder = waiting.pop()
        try:
            state = os.stat(source / folder)
            entries = sorted(os.scandir(source / folder), key=lambda entry: entry.name)
        except OSError:
            ignored["folders that cannot be opened"] += 1
            continue
        if (state.st_dev, state.st_ino) in entered:
            ignored["links to a folder that was entered already"] += 1
            continue
        entered.add((state.st_dev, state.st_ino))
        folders: list[str] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            if os.path.isdir(source / path):  # entry.is_dir() raises for a link to itself
                folders.append(path)
            elif not os.path.isfile(source / path):  # to open a pipe would wait for ever
                ignored["links that lead nowhere, or special files"] += 1
            elif entry.name.upper() == "DICOMDIR":
                ignored["DICOMDIR (an index; the files themselves are read)"] += 1
            else:
                yield path
        waiting += reversed(folders)


def _read_chunk(source: Path, files: list[str]) -> Tree:
    """The headers of some files (in a worker process)."""
    part = Tree()
    cache: Cache = {}
    for name in files:
        path = os.path.join(source, name)
        try:
            part.slices += slices_of(path, cache)
        except HeaderError as error:
            _note_unreadable(part, name, path, str(error))
    return part


def _note_unreadable(part: Tree, name: str, path: str, reason: str) -> None:
    if not os.access(path, os.R_OK):
        part.ignored["files that cannot be opened"] += 1
    elif name.lower().endswith(DICOM_SUFFIXES) or is_dicom(Path(path)):
        part.unreadable.append((Path(name).as_posix(), reason.replace(path, "the file")))
    else:
        part.ignored["files that are not DICOM"] += 1
