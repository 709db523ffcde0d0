"""Growing: the raw dataset that scans are added to: opened, checked, and written with what is new."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from headctssl.dataset.manifest import DatasetInfo, cases_from_images, write_raw_dataset
from headctssl.dataset.table import read_table
from headctssl.dataset.table_faults import table_faults
from headctssl.errors import DataError, UsageError
from headctssl.ingest.candidate import Candidate
from headctssl.ingest.journal import Entry, Journal, write_sources
from headctssl.ingest.merging import Change, changed_cells, with_rows
from headctssl.ingest.privacy import key_check
from headctssl.ingest.report import ScanRecord, read_report, write_report
from headctssl.ingest.room import needs_room
from headctssl.ingest.scan import Found
from headctssl.ingest.thumbnail import THUMBNAILS
from headctssl.paths import data_root, dataset_folder_name, find_dataset
from headctssl.settings import read_json

__all__ = ["GrowingDataset", "folder_of", "growing"]

DEFAULT_NAME = "HeadCT"
"""Not the source's name: folder names of exports can identify patients."""


@dataclass
class GrowingDataset:
    """A raw dataset, what it holds, and what has been added to it so far."""

    folder: Path
    info: DatasetInfo
    cases: pd.DataFrame
    records: dict[str, ScanRecord]  # of the report as it was found, by case id
    key: bytes
    key_folder: Path
    journal: Journal | None  # None in a dry run
    entries: list[Entry] = field(default_factory=list)  # finished and not in the files yet
    order: dict[str, int] = field(default_factory=dict)  # case id -> place of its row; workers finish in any order
    files: dict[Path, None] = field(default_factory=dict)  # what was written, in order

    def present(self) -> set[str]:
        """Ids of the cases whose image is there."""
        there = self.cases.reindex(columns=["case_id", "image"], fill_value="")  # `check` tells a missing column
        listed = {str(c): str(i) for c, i in there.itertuples(index=False)}
        listed |= {entry.cells["case_id"]: entry.cells["image"] for entry in self.entries if entry.cells}
        return {case_id for case_id, image in listed.items() if image and (self.folder / image).exists()}

    def known(self) -> dict[str, ScanRecord]:
        """The last decision on every scan, by case id; those of a killed conversion included."""
        return {**self.records, **{entry.record.case_id: entry.record for entry in self.entries}}

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raise for what would make the table unusable, before hours of work.

        Raises:
            DataError: the table there is, or a cell that a scan brings, has a fault.
        """
        faults = list(table_faults(self.cases, self.info.labels))
        if faults:
            told = faults[0].to_error(len(faults) - 1)
            what = f"{self.folder.name} cannot be added to. {told.what}"
            raise DataError(what, got=told.got, expected=told.expected, do=told.do)
        rows = [candidate.cells for candidate in candidates]
        faults = list(table_faults(with_rows(self.cases, rows), self.info.labels))
        if faults:
            sources = {candidate.case_id: candidate.scan.source for candidate in candidates}
            first = faults[0]
            raise replace(first, case_id=sources.get(first.case_id, first.case_id)).to_error(len(faults) - 1)

    def changes(self, candidates: Sequence[Candidate]) -> list[Change]:
        """The labels, splits and subjects of cases that are there which their scans would change.

        Args:
            candidates: scans of cases that are there.
        """
        compared = ("subject_id", "split", *(spec.name for spec in self.info.labels))
        cases = with_rows(self.cases, [entry.cells for entry in self.entries if entry.cells])
        return changed_cells(cases, [candidate.cells for candidate in candidates], compared)

    def add(self, entry: Entry) -> None:
        """Note a finished scan: in the journal at once, in the files with `save`."""
        self.entries.append(entry)
        if self.journal is not None:
            self.journal.add(entry)

    def save(self) -> None:
        """Write dataset.json, cases.csv, ingest_report.json and the list of sources with what is new.

        Nothing is written for a dataset that has no case.
        """
        self.entries.sort(key=lambda entry: self.order.get(entry.record.case_id, -1))
        rows = [entry.cells for entry in self.entries if entry.cells]
        if not self.entries or not (rows or (self.folder / "dataset.json").exists()):
            return
        if rows:
            self.cases = with_rows(self.cases, rows)
            self.files.update(dict.fromkeys(write_raw_dataset(self.folder, self.info, self.cases)))
        self.records.update({entry.record.case_id: entry.record for entry in self.entries})
        self.files[write_report(self.folder, key_check(self.key), self.records.values())] = None
        self.files[write_sources(self.key_folder, self.folder.name, self.entries)] = None
        self.entries = []


def folder_of(dataset_id: int, name: str | None) -> Path:
    """The folder of the dataset, existing or new.

    Raises:
        UsageError: the dataset exists under another name.
    """
    existing = find_dataset(dataset_id)
    if existing and name is not None and existing != dataset_folder_name(dataset_id, name):
        raise UsageError(
            f"Dataset {dataset_id} exists under another name.",
            got=f"--name {name}",
            expected=existing,
            do="Leave --name out to add to it, or choose another number.",
        )
    return data_root("raw") / (existing or dataset_folder_name(dataset_id, name or DEFAULT_NAME))


@contextmanager
def growing(folder: Path, found: Found, key: bytes, key_file: Path, *, dry_run: bool) -> Iterator[GrowingDataset]:
    """Open the dataset to add to, or begin a new one; labels of the source are added to its description.

    While the block runs no other conversion can add to the dataset. What a killed conversion left in its
    journal, and what is new, is put into the files when the block ends, however it ends.

    Args:
        folder: the dataset.
        found: what the source holds.
        key: the secret key.
        key_file: where the key is.
        dry_run: write nothing.

    Raises:
        DataError: the dataset's files cannot be used, or it was made with another key.
        UsageError: another conversion into it is running.
        NoRoomError: the disk is full.
    """
    if dry_run:
        yield _opened(folder, found, key, key_file, None)
        return
    # Held before anything is read: what another conversion adds must not be overwritten by what was there before it.
    with needs_room(folder), Journal(key_file.parent, folder.name) as journal:
        data = _opened(folder, found, key, key_file, journal)
        _clean(folder)
        # Not those of a dataset of the same name elsewhere, nor those whose image was lost with the machine.
        data.entries = [entry for entry in journal.entries() if _is_there(folder, entry)]
        try:
            yield data
        finally:
            data.save()
            journal.done = True
            _remove_empty(folder)


def _opened(folder: Path, found: Found, key: bytes, key_file: Path, journal: Journal | None) -> GrowingDataset:
    """The dataset as it is on disk.

    Raises:
        DataError: its files cannot be used, or it was made with another key.
    """
    report = read_report(folder)
    if report.key_check and report.key_check != key_check(key):
        raise DataError(
            f"{folder.name} was made with another key.",
            got=f"the key in {key_file}" + ("" if key_file.exists() else ", which does not exist"),
            expected="the key of its other scans: with another one the same patients get other ids",
            do="Name its key with --key, or choose another dataset number.",
        )
    info, cases = _contents(folder, found)
    records = {record.case_id: record for record in report.scans}
    return GrowingDataset(folder, info, cases, records, key, key_file.parent, journal)


def _is_there(folder: Path, entry: Entry) -> bool:
    return not entry.cells or (folder / entry.cells["image"]).is_file()


def _clean(folder: Path) -> None:
    """Remove the half-written files that a killed conversion left."""
    for leftover in folder.rglob(".*.tmp*"):
        leftover.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    """Remove the pictures of rejected scans where no dataset came of it."""
    if not (folder / "dataset.json").exists() and (folder / THUMBNAILS).is_dir():
        shutil.rmtree(folder / THUMBNAILS)
        if not any(folder.iterdir()):
            folder.rmdir()


def _contents(folder: Path, found: Found) -> tuple[DatasetInfo, pd.DataFrame]:
    if not (folder / "dataset.json").exists():
        # With the label columns: the scans that bring them may all be rejected.
        empty = pd.DataFrame(columns=["case_id", "image", *(spec.name for spec in found.labels)], dtype=str)
        info = DatasetInfo(
            name=folder.name.partition("_")[2],
            description="Made by headct_convert.",
            licence=found.licence,
            reference=found.reference,
            labels=found.labels,
        )
        return _with_classes(info, found), empty
    info = read_json(folder / "dataset.json", DatasetInfo, do="Repair it: headct_verify_dataset tells more.")
    if info.synthetic:
        raise UsageError(
            f"{folder.name} has synthetic scans: those of patients would be told as synthetic too.",
            got=f"profile '{info.profile}' in dataset.json",
            expected="a dataset that headct_convert made, or a new number",
            do="Choose another number with -d.",
        )
    csv = folder / "cases.csv"
    cases = read_table(csv) if csv.exists() else cases_from_images(folder)
    known = {spec.name for spec in info.labels}
    added = tuple(spec for spec in found.labels if spec.name not in known)
    for spec in added:
        if spec.name not in cases.columns:
            cases[spec.name] = ""
    return _with_classes(info.model_copy(update={"labels": (*info.labels, *added)}), found), cases


def _with_classes(info: DatasetInfo, found: Found) -> DatasetInfo:
    """The description with the segmentation classes of the source added.

    Raises:
        DataError: a class of the source has another value in the dataset, or its value another class.
    """
    classes = {spec.name: spec.value for spec in info.segmentation_classes}
    for name, value in found.segmentation_classes:
        other = next((n for n, v in classes.items() if v == value), name)
        if classes.get(name, value) != value or other != name:
            raise DataError(
                "The segmentation classes of the source are not those of the dataset.",
                got=f"'{name}' = {value}",
                expected=", ".join(f"'{n}' = {v}" for n, v in classes.items()),
                do="Convert it into a dataset of its own.",
            )
        classes[name] = value
    # Through its fields, so that they are checked.
    return DatasetInfo.model_validate({**info.model_dump(), "segmentation_classes": classes})
