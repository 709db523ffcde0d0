"""Publish: what a finished run tells of the stored cases: index, report, places in the splits; withdrawn cases go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from headctssl.console import warn
from headctssl.contract import StorageRule
from headctssl.dataset.manifest import RawDataset
from headctssl.errors import DataError
from headctssl.planning.plans import SplitRule
from headctssl.planning.splits_file import ensure_splits
from headctssl.preprocessing.index import (
    INDEX_NAME,
    CaseIndex,
    IndexRow,
    case_of_file,
    case_path,
    stored_files,
    write_index,
)
from headctssl.preprocessing.report import REPORT_NAME, CaseNote, PreprocessingReport
from headctssl.settings import write_json

__all__ = ["KnownCases", "combined", "publish"]

_WITHDRAWN = "no longer in cases.csv: its stored files were removed"


class KnownCases:
    """The index as it is; without one, or with one that cannot be read, nothing is known.

    The index is derived from the files: these are then looked at one by one, and it is written anew at the end.

    Args:
        storage: the storage folder.
    """

    def __init__(self, storage: Path) -> None:
        try:
            index = CaseIndex.open(storage) if (storage / INDEX_NAME).is_file() else CaseIndex(storage, [])
        except DataError:
            index = CaseIndex(storage, [])
        self.rows: Sequence[IndexRow] = index.rows
        self._positions = {case_id: position for position, case_id in enumerate(index.case_ids)}

    def get(self, case_id: str) -> IndexRow | None:
        """The line of a case, None when it has none."""
        position = self._positions.get(case_id)
        return None if position is None else self.rows[position]


def publish(
    raw: RawDataset,
    folder: Path,
    rule: StorageRule,
    rows: Sequence[IndexRow],
    known: KnownCases,
    report: PreprocessingReport,
    *,
    quiet: bool,
) -> PreprocessingReport:
    """Write the index and the report, remove the files of withdrawn cases, give added cases a place in splits.json.

    Files that stand under several subjects are noted and warned of: splits are by subject.

    When no case could be used the earlier index stays, less the cases whose files are gone: it
    describes stored cases that a share that is away or killed workers do not make wrong.

    Args:
        raw: the dataset.
        folder: its folder under headctssl_preprocessed.
        rule: what the cases are stored under.
        rows: the lines of all cases that can be used.
        known: the index before.
        report: what became of all cases.
        quiet: print nothing.

    Returns:
        The report with the withdrawn cases.

    Raises:
        DataError: a subject is marked for another part than splits.json has it in.
    """
    storage = folder / rule.storage_id
    removed: list[str] = []
    if rows:
        write_index(storage, rows)
        # Without cases.csv the cases are what lies under images/ just now, which says nothing about withdrawal.
        if (raw.folder / "cases.csv").is_file():
            removed = _remove_withdrawn(storage, set(raw.case_ids), ("head", *rule.masks))
    else:
        left = [row for row in known.rows if case_path(storage, row.case_id).is_file()]
        if left:
            write_index(storage, left)
        else:
            (storage / INDEX_NAME).unlink(missing_ok=True)
    shared = _shared_sources(raw, rows)
    notes = (*report.notes, *(CaseNote(case_id=case_id, note=_WITHDRAWN) for case_id in removed), *shared)
    if shared:
        first = shared[0]
        warn(
            f"{len(shared)} of the cases of {raw.folder.name} have the file of a case of another subject, so a scan can"
            f" be in training and test at once: case '{first.case_id}' {first.note}. {REPORT_NAME} names them all."
        )
    report = report.model_copy(update={"num_removed": len(removed), "notes": notes})
    write_json(folder / REPORT_NAME, report)
    if rows and (folder / "splits.json").is_file():
        ensure_splits(raw, folder, SplitRule(), [row.case_id for row in rows], quiet=quiet)
    return report


def _shared_sources(raw: RawDataset, rows: Sequence[IndexRow]) -> list[CaseNote]:
    """A note on every case whose source, byte by byte, is that of an earlier case of another subject."""
    subject = dict(zip(raw.case_ids, raw.cases["subject_id"].tolist(), strict=True))
    cases: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        cases[row.source_sha256].append(row.case_id)
    notes = []
    for first, *others in (sorted(same) for same in cases.values() if len(same) > 1):
        for other in others:
            if subject[other] != subject[first]:
                text = (
                    f"has the same file as case '{first}' of subject '{subject[first]}', but is of '{subject[other]}'"
                )
                notes.append(CaseNote(case_id=other, note=text))
    return sorted(notes, key=lambda note: note.case_id)


def combined(reports: Sequence[PreprocessingReport]) -> PreprocessingReport:
    """The report of the whole dataset from those of its parts, at least one."""
    return reports[0].model_copy(
        update={
            "part": 1,
            "parts": 1,
            "num_cases": sum(report.num_cases for report in reports),
            "num_written": sum(report.num_written for report in reports),
            "num_kept": sum(report.num_kept for report in reports),
            "failures": tuple(sorted((f for r in reports for f in r.failures), key=lambda failure: failure.case_id)),
            "notes": tuple(sorted((n for r in reports for n in r.notes), key=lambda note: note.case_id)),
            "verified": all(report.verified for report in reports),
            "seconds": round(sum(report.seconds for report in reports), 2),
        }
    )


def _remove_withdrawn(storage: Path, case_ids: Collection[str], masks: Collection[str]) -> list[str]:
    """Remove stored files of cases that cases.csv does not have: a subject who withdraws is withdrawn from here too."""
    gone = set()
    for path in stored_files(storage):
        found = case_of_file(storage, path)
        if found is None:
            continue
        case_id, mask = found
        if case_id not in case_ids or (mask and mask not in masks):
            path.unlink()
            gone.add(case_id)
    return sorted(gone)
