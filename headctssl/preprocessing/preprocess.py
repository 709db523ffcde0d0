"""Preprocess: the cases of a raw dataset stored under one storage rule."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from headctssl.console import name_files, progress, say
from headctssl.contract import StorageRule
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.errors import DataError
from headctssl.paths import preprocessed_dataset
from headctssl.planning.plans import SplitRule
from headctssl.planning.splits_file import ensure_splits
from headctssl.preprocessing.case_job import CaseJob, CaseOutcome, run_case
from headctssl.preprocessing.executors import WorkerDied, run_jobs, worker_count
from headctssl.preprocessing.index import (
    INDEX_NAME,
    IndexRow,
    case_of_file,
    case_path,
    mask_path,
    read_index,
    stored_files,
    write_index,
)
from headctssl.preprocessing.one_case import Preprocessed, preprocess_volume
from headctssl.preprocessing.report import CaseFailure, CaseNote, PreprocessingReport
from headctssl.settings import write_json

__all__ = ["REPORT_NAME", "Preprocessed", "preprocess", "preprocess_volume"]

REPORT_NAME = "preprocessing_report.json"
_SHOWN = 20
_WITHDRAWN = "no longer in cases.csv: its stored files were removed"


def preprocess(
    dataset_id: int,
    *,
    rule: StorageRule,
    num_workers: int | None = None,
    quiet: bool = False,
    verify: bool = False,
    overwrite: bool = False,
) -> PreprocessingReport:
    """Store every case of a raw dataset under a storage rule.

    A case whose storage digest, source size and modification time are unchanged is kept. A case
    that fails is left out with its reason in preprocessing_report.json; nothing takes its place.
    The stored files of cases that are no longer in cases.csv are removed.
    Files are written under a temporary name and renamed, so a killed command leaves no half file
    and can be run again. Where there is a splits.json, added cases get their place in it.

    Args:
        dataset_id: the number of the raw dataset.
        rule: how to store.
        num_workers: processes; one per core when None, never more than cases.
        quiet: print nothing.
        verify: read every kept case and its source whole and check their sums.
        overwrite: store every case anew.

    Raises:
        UsageError: there is no such dataset.
        DataError: the dataset's files do not fit their schema, it is not CT, every case failed, or a subject
            is marked for another part than splits.json has it in.
        ContractError: this version cannot carry out the rule.
    """
    begin = time.monotonic()
    raw = load_raw_dataset(dataset_id)
    folder = preprocessed_dataset(dataset_id)
    storage = folder / rule.storage_id
    known = {row.case_id: row for row in _known_rows(storage)}
    jobs = [
        CaseJob(
            case_id,
            raw.folder / image,
            masks,
            storage,
            rule,
            raw.info.segmentation_classes,
            known.get(case_id),
            verify=verify,
            overwrite=overwrite,
        )
        for case_id, image, masks in _cases(raw, rule)
    ]
    workers = worker_count(num_workers, len(jobs))
    say(f"{raw.folder.name}: {len(jobs)} cases -> {rule.storage_id} with {workers} process(es)", quiet=quiet)
    forgotten = [c for c in MASK_COLUMNS if c not in rule.masks and c in raw.cases and (raw.cases[c] != "").any()]
    if forgotten:
        say(f"cases.csv fills {', '.join(forgotten)}, which this rule does not store: --replan does", quiet=quiet)
    outcomes = _run(jobs, workers, quiet)
    rows = [outcome.row for outcome in outcomes if outcome.row is not None]
    removed = _bring_up_to_date(storage, rows, known, jobs, raw)
    report = PreprocessingReport(
        dataset_id=dataset_id,
        dataset_name=raw.folder.name,
        storage_id=rule.storage_id,
        storage_digest=rule.digest(),
        num_cases=len(jobs),
        num_written=sum(outcome.status == "written" for outcome in outcomes),
        num_kept=sum(outcome.status == "kept" for outcome in outcomes),
        failures=tuple(outcome.failure for outcome in outcomes if outcome.failure is not None),
        num_removed=len(removed),
        notes=(
            *(CaseNote(case_id=o.case_id, note=note) for o in outcomes for note in o.notes),
            *(CaseNote(case_id=case_id, note=_WITHDRAWN) for case_id in removed),
        ),
        verified=verify,
        seconds=round(time.monotonic() - begin, 2),
    )
    write_json(folder / REPORT_NAME, report)
    _print(report, quiet)
    if not rows:
        first = report.failures[0]
        raise DataError(
            f"No case of {raw.folder.name} could be preprocessed.",
            got=f"{len(report.failures)} failures, the first: {first.line}",
            expected="at least one usable case",
            do=first.do or f"See {folder / REPORT_NAME}.",
        )
    if (folder / "splits.json").is_file():
        ensure_splits(raw, folder, SplitRule(), [row.case_id for row in rows], quiet=quiet)
    name_files([storage, storage / INDEX_NAME, folder / REPORT_NAME], quiet=quiet)
    return report


def _known_rows(storage: Path) -> Sequence[IndexRow]:
    """The index as it is; without one, or with one that cannot be read, stored files are looked at one by one."""
    if not (storage / INDEX_NAME).is_file():
        return []
    try:
        return read_index(storage)
    except DataError:
        # The index is derived from the files, and is written anew at the end.
        return []


def _bring_up_to_date(
    storage: Path, rows: Sequence[IndexRow], known: Mapping[str, IndexRow], jobs: Sequence[CaseJob], raw: RawDataset
) -> list[str]:
    """Write the index and remove the files of withdrawn cases; gives the ids of those.

    When no case could be used the earlier index stays, less the cases whose files are gone: it
    describes stored cases that a share that is away or killed workers do not make wrong.
    """
    if rows:
        write_index(storage, rows)
        # Without cases.csv the cases are what lies under images/ just now, which says nothing about withdrawal.
        return _remove_withdrawn(storage, jobs) if (raw.folder / "cases.csv").is_file() else []
    left = [row for row in known.values() if case_path(storage, row.case_id).is_file()]
    if left:
        write_index(storage, left)
    elif known:
        (storage / INDEX_NAME).unlink()
    return []


def _remove_withdrawn(storage: Path, jobs: Sequence[CaseJob]) -> list[str]:
    """Remove stored files of cases that cases.csv does not have: a subject who withdraws is withdrawn from here too."""
    kept: set[Path] = set()
    for job in jobs:
        kept.add(case_path(storage, job.case_id))
        kept.update(mask_path(storage, job.case_id, mask) for mask in ("head", *job.rule.masks))
    gone = set()
    for path in stored_files(storage):
        case_id = case_of_file(storage, path)
        if path not in kept and case_id is not None:
            path.unlink()
            gone.add(case_id)
    return sorted(gone)


def _cases(raw: RawDataset, rule: StorageRule) -> list[tuple[str, str, tuple[tuple[str, Path], ...]]]:
    """(case id, relative image, masks that the rule wants and the case has)."""
    columns = [c for c in MASK_COLUMNS if c in rule.masks and c in raw.cases.columns]
    cases = []
    for row in raw.cases.to_dict("records"):
        masks = tuple((c, raw.folder / str(row[c])) for c in columns if row[c])
        cases.append((str(row["case_id"]), str(row["image"]), masks))
    return cases


def _run(jobs: list[CaseJob], workers: int, quiet: bool) -> list[CaseOutcome]:
    results = run_jobs(run_case, jobs, num_workers=workers, preload="headctssl.preprocessing.case_job")
    outcomes = []
    for job, result in progress(results, "preprocessed", len(jobs), quiet=quiet):
        if isinstance(result, WorkerDied):
            failure = CaseFailure(
                case_id=job.case_id,
                what="The process that worked on this case died.",
                got="a dead worker: out of memory, or, in a Python script, a call outside of "
                "`if __name__ == '__main__':`",
                expected="a process that ends by itself",
                do="In a script, put the call under `if __name__ == '__main__':`. Otherwise run again with a smaller "
                "--num_workers; when it dies again, leave the case out.",
            )
            outcomes.append(CaseOutcome(job.case_id, "failed", failure=failure))
        else:
            outcomes.append(result)
    return sorted(outcomes, key=lambda outcome: outcome.case_id)


def _print(report: PreprocessingReport, quiet: bool) -> None:
    say(
        f"{report.num_written} written, {report.num_kept} unchanged, {len(report.failures)} left out "
        f"in {report.seconds:.1f} s",
        quiet=quiet,
    )
    for failure in report.failures[:_SHOWN]:
        line = f"left out: {failure.line}" + (f"\n  do: {failure.do}" if failure.do else "")
        # Quiet means errors only, and a case that is left out is one.
        print(line, file=sys.stderr if quiet else sys.stdout, flush=True)
    if len(report.failures) > _SHOWN:
        say(f"and {len(report.failures) - _SHOWN} more, all in {REPORT_NAME}", quiet=quiet)
    for note in report.notes[:_SHOWN]:
        say(f"noticed: case '{note.case_id}': {note.note}", quiet=quiet)
    if len(report.notes) > _SHOWN:
        say(f"and {len(report.notes) - _SHOWN} more notes, all in {REPORT_NAME}", quiet=quiet)
    if report.num_removed:
        say(f"{report.num_removed} cases are no longer in cases.csv: their stored files were removed", quiet=quiet)
