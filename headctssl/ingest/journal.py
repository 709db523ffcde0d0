"""Journal: what a conversion has done so far, line by line, so that a killed one goes on where it stopped.

It lies beside the key and not in the dataset, for it names sources.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from headctssl.dataset.table import read_table
from headctssl.errors import UsageError
from headctssl.ingest.report import ScanRecord
from headctssl.locks import lock_file
from headctssl.paths import atomic_path
from headctssl.settings import Settings

__all__ = ["SOURCES_FILE", "Entry", "Journal", "write_sources"]

SOURCES_FILE = "ingest_sources.csv"
_SOURCE_COLUMNS = ("dataset", "case_id", "status", "source", "path")


class Entry(Settings):
    """One finished scan."""

    record: ScanRecord = Field(description="What the report says of it.")
    cells: dict[str, str] = Field({}, description="Its row of cases.csv; empty when it is not in the dataset.")
    source: str = Field("", description="Path relative to the source.")
    path: str = Field("", description="Full path.")


class Journal:
    """The journal of one dataset, held by one conversion at a time; a context manager.

    Args:
        folder: where the key is.
        dataset: name of the dataset's folder.

    Raises:
        UsageError: another conversion into the dataset is running.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        self.path = folder / f".ingest_{dataset}.jsonl"
        self.done = False  # everything is in the files of the dataset, and the journal is no longer needed
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = lock_file(self.path)
        except BlockingIOError:
            raise UsageError(
                f"Another conversion into {dataset} is running.",
                got=f"{self.path} is locked",
                expected="one conversion into a dataset at a time",
                do="Wait for it to end; a killed one leaves no lock.",
            ) from None
        except OSError as error:
            raise UsageError(
                "Nothing can be written beside the key.",
                got=f"{folder}: {error.strerror}",
                expected="a folder for the list of sources and for what is needed to go on",
                do="Put the key into a folder of your own and name it with --key.",
            ) from None

    def __enter__(self) -> Self:
        """The journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the dataset; remove the journal when it is `done`, or empty."""
        self._file.flush()
        if self.done or not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def entries(self) -> list[Entry]:
        """What an interrupted conversion had finished; a last line that was cut off is passed over."""
        self._file.seek(0)
        found: list[Entry] = []
        line = "\n"
        for line in self._file:
            try:
                found.append(Entry.model_validate_json(line))
            except ValidationError:  # the line that was being written: its scan is converted once more
                continue
        if not line.endswith("\n"):
            self._file.write("\n")  # what comes next is a line of its own
        return found

    def add(self, entry: Entry) -> None:
        """Append one scan; it survives whatever happens to this process."""
        self._file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
        self._file.flush()


def write_sources(folder: Path, dataset: str, entries: Sequence[Entry]) -> Path:
    """Update ingest_sources.csv beside the key: where each case came from, for the user's eyes only.

    Conversions into other datasets, which may end at the same moment, wait for each other.

    Args:
        folder: where the key is.
        dataset: name of the dataset's folder.
        entries: scans of this conversion; they take the place of older lines of the same case.
    """
    path, guard = folder / SOURCES_FILE, folder / f".{SOURCES_FILE}.lock"
    with lock_file(guard, wait=True):
        try:
            _write_sources(path, dataset, entries)
        finally:
            guard.unlink(missing_ok=True)
    return path


def _write_sources(path: Path, dataset: str, entries: Sequence[Entry]) -> None:
    old = read_table(path).to_dict("records") if path.exists() else []
    lines = {(str(row["dataset"]), str(row["case_id"])): [str(row[name]) for name in _SOURCE_COLUMNS] for row in old}
    for entry in entries:
        record = entry.record
        lines[dataset, record.case_id] = [dataset, record.case_id, record.status, entry.source, entry.path]
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_SOURCE_COLUMNS)
            writer.writerows(lines.values())
