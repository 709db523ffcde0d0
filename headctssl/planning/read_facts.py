"""Read facts: headers of all cases in threads or processes, voxels of a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headctssl.console import progress
from headctssl.dataset.image_io import ImageHeader, read, read_header, source_state
from headctssl.dataset.manifest import RawDataset
from headctssl.dataset.parallel import map_items
from headctssl.errors import DataError, HeadCTSSLError
from headctssl.planning.case_facts import CaseFacts
from headctssl.planning.usable import require_hounsfield
from headctssl.seeding import derive_seed
from headctssl.volume.head import find_head

__all__ = ["SAMPLE_CASES", "look_at_sources", "read_headers", "read_sample"]

SAMPLE_CASES = 25
"""Volumes that are read; headers are read of all cases. 25 pin the 95th percentile of head sizes to a few mm."""

_VOXELS_PER_CASE = 50_000
_AT_ONCE = 256  # headers read by one thread or process before it reports
_WORTH_PROCESSES = 4096  # headers: below, threads are done before processes have started

Item = TypeVar("Item")
Result = TypeVar("Result")


def _threads(
    job: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str = "", *, quiet: bool = True
) -> Iterator[tuple[Item, Result]]:
    """Run a job per item in threads: reading waits for the disk and for gzip, both outside the interpreter lock."""
    with ThreadPoolExecutor(max_workers=min(workers, max(1, len(items)))) as pool:
        results = progress(pool.map(job, items), what, len(items), quiet=quiet)
        yield from zip(items, results, strict=True)


def _parts(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]


def look_at_sources(raw: RawDataset, facts: CaseFacts, workers: int) -> None:
    """Note size and modification time of every image that is there.

    Args:
        raw: the dataset.
        facts: its cases.
        workers: threads.
    """

    def job(part: Sequence[int]) -> list[tuple[int, int]]:
        return [_state(raw.folder / facts.images[row]) for row in part]

    for part, states in _threads(job, _parts(range(len(facts.case_ids))), workers):
        facts.states[list(part)] = states


def _state(path: Path) -> tuple[int, int]:
    try:
        return source_state(path)
    except (OSError, HeadCTSSLError):
        return (-1, -1)  # reading its header will tell


def read_headers(raw: RawDataset, facts: CaseFacts, rows: NDArray[np.int64], workers: int, *, quiet: bool) -> None:
    """Read headers and note what they say, or why they cannot be read.

    Args:
        raw: the dataset.
        facts: its cases.
        rows: those whose header is read.
        workers: threads, or processes where there are thousands to read.
        quiet: show no progress.
    """
    parts = _parts(rows.tolist())
    if len(rows) < _WORTH_PROCESSES or workers == 1:
        paths = [_paths(raw, facts, part) for part in parts]
        found = zip(parts, (outcomes for _, outcomes in _threads(_headers, paths, workers)), strict=True)
        for part, outcomes in progress(found, f"headers, {_AT_ONCE} at a time", len(parts), quiet=quiet):
            _put(facts, part, outcomes)
        return
    lost = _in_processes(raw, facts, parts, workers, quiet=quiet)
    # A file that ends its process takes those beside it along; where every process ends, files are not the reason.
    alone = [[row] for part in lost for row in part] if len(lost) < len(parts) else []
    if alone:
        _in_processes(raw, facts, alone, workers, quiet=quiet)


def _in_processes(
    raw: RawDataset, facts: CaseFacts, parts: Sequence[Sequence[int]], workers: int, *, quiet: bool
) -> list[Sequence[int]]:
    """Read the headers of every part in one go of a process; gives the parts that were lost with their process."""
    lost = []
    results = map_items(_headers, [_paths(raw, facts, part) for part in parts], workers)
    for position, outcomes in progress(results, f"headers, {len(parts[0])} at a time", len(parts), quiet=quiet):
        _put(facts, parts[position], outcomes)
        if isinstance(outcomes, HeadCTSSLError):
            lost.append(parts[position])
    return lost


def _paths(raw: RawDataset, facts: CaseFacts, rows: Sequence[int]) -> list[Path]:
    return [raw.folder / facts.images[row] for row in rows]


def _put(facts: CaseFacts, rows: Sequence[int], outcomes: list[ImageHeader | HeadCTSSLError] | HeadCTSSLError) -> None:
    for at, row in enumerate(rows):
        facts.put(row, outcomes if isinstance(outcomes, HeadCTSSLError) else outcomes[at])


def _headers(paths: Sequence[Path]) -> list[ImageHeader | HeadCTSSLError]:
    """The header of every image, or why it cannot be read."""
    outcomes: list[ImageHeader | HeadCTSSLError] = []
    for path in paths:
        try:
            outcomes.append(read_header(path))
        except Exception as error:  # whatever one file does to a reader must not cost the other cases
            outcomes.append(_fault(error))
    return outcomes


def read_sample(raw: RawDataset, facts: CaseFacts, workers: int, *, quiet: bool) -> list[NDArray[np.int16]]:
    """Read the voxels of a sample that depends on the case ids alone; a case that fails gives way to the next.

    Args:
        raw: the dataset.
        facts: its cases; extents, notes and faults of the sampled ones are noted.
        workers: threads.
        quiet: show no progress.

    Returns:
        Values in the head, a bounded number of each case.
    """
    order = sorted(facts.good.tolist(), key=lambda row: derive_seed("fingerprint", facts.case_ids[row]))
    kept: dict[int, NDArray[np.int16]] = {}
    job = partial(_head_values, raw, facts)
    position = 0
    while len(kept) < SAMPLE_CASES and position < len(order):
        part = order[position : position + SAMPLE_CASES - len(kept)]
        position += len(part)
        for row, outcome in _threads(job, part, workers, "volumes", quiet=quiet):
            if isinstance(outcome, HeadCTSSLError):
                facts.faults[row] = outcome
            else:
                kept[row] = outcome
    return [kept[row] for row in sorted(kept)]


def _head_values(raw: RawDataset, facts: CaseFacts, row: int) -> NDArray[np.int16] | HeadCTSSLError:
    """Values in the head of one case; notes its extent and what was noticed."""
    try:
        volume = read(raw.folder / facts.images[row])
        doubt = require_hounsfield(volume)
        head = find_head(volume.hu, volume.spacing_mm)
    except Exception as error:  # whatever one file does to a reader must not cost the other cases
        return _fault(error)
    if doubt:
        facts.notes[row] = doubt
    sides = [(high - low) * s for (low, high), s in zip(head.box, volume.spacing_mm, strict=True)]
    facts.extents_mm[row] = (sides[0], sides[1], sides[2])
    return _some(volume.hu[tuple(slice(None, None, n) for n in head.stride)][head.coarse_mask])


def _fault(error: Exception) -> HeadCTSSLError:
    """The error of one case as one that users read: a file that is away, too little memory or a fault of ours."""
    if isinstance(error, HeadCTSSLError):
        return error
    return DataError(
        f"The image cannot be read: {type(error).__name__}.",
        got=str(error) or type(error).__name__,
        expected="a readable image",
        do="Check the file and run again; when it is sound, report this without patient data.",
    )


def _some(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """At most 50,000 evenly chosen values."""
    return values[:: max(1, -(-values.size // _VOXELS_PER_CASE))].copy()
