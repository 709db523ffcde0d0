"""Preprocess: the cases of a raw dataset stored under one storage rule."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headctssl.console import name_files, progress, say
from headctssl.contract import StorageRule
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.dataset.parallel import WorkerDied
from headctssl.errors import DataError
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.case_job import CaseJob, CaseOutcome, run_case
from headctssl.preprocessing.executors import Workers
from headctssl.preprocessing.index import INDEX_NAME, IndexRow
from headctssl.preprocessing.lock import alone, run_lock
from headctssl.preprocessing.one_case import Preprocessed, preprocess_volume
from headctssl.preprocessing.output import writing
from headctssl.preprocessing.parts import (
    Part,
    cases_digest,
    finished_parts,
    forget_part,
    forget_parts,
    keep_part,
    rows_of_parts,
)
from headctssl.preprocessing.publish import KnownCases, combined, publish
from headctssl.preprocessing.report import REPORT_NAME, CaseFailure, CaseNote, PreprocessingReport, print_report
from headctssl.preprocessing.stop import stoppable
from headctssl.volume.layout import StoreLayout

__all__ = ["REPORT_NAME", "Preprocessed", "preprocess", "preprocess_volume"]

_STAGING = ".writing_"


@dataclass(frozen=True)
class _Call:
    """What one call of `preprocess` is to do."""

    raw: RawDataset
    folder: Path  # of the dataset, under headctssl_preprocessed
    rule: StorageRule
    layout: StoreLayout
    part: Part
    workers: Workers
    verify: bool
    overwrite: bool
    quiet: bool

    @property
    def storage(self) -> Path:
        return self.folder / self.rule.storage_id

    @property
    def staging(self) -> Path:
        return self.storage / f"{_STAGING}{self.part.number}_of_{self.part.of}"


@dataclass
class _Tally:
    """What became of the cases so far."""

    num_cases: int
    rows: list[IndexRow] = field(default_factory=list)
    failures: list[CaseFailure] = field(default_factory=list)
    notes: list[CaseNote] = field(default_factory=list)
    num_written: int = 0

    def add(self, job: CaseJob, result: CaseOutcome | WorkerDied) -> None:
        if isinstance(result, WorkerDied):
            self.failures.append(_death(job.case_id))
            return
        self.notes += [CaseNote(case_id=job.case_id, note=note) for note in result.notes]
        self.num_written += result.status == "written"
        if result.row is not None:
            self.rows.append(result.row)
        if result.failure is not None:
            self.failures.append(result.failure)


def preprocess(
    dataset_id: int,
    *,
    rule: StorageRule,
    layout: StoreLayout | None = None,
    num_workers: int | None = None,
    scheduler: str | None = None,
    part: int | None = None,
    parts: int | None = None,
    retries: int = 1,
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
        layout: chunks and codec of the files that are written; the standard one when None. Kept files keep theirs.
        num_workers: processes; one per core when None, never more than cases.
        scheduler: address of a dask.distributed scheduler whose workers do it instead of processes.
        part: which part of the cases, 1 to `parts`, as one job of an array; the last one to end writes the index.
        parts: how many parts there are.
        retries: how often a case is tried again when a share or device failed in passing, or its worker died.
        quiet: print nothing.
        verify: read every kept case and its source whole and check their sums.
        overwrite: store every case anew.

    Returns:
        What became of the cases; of those of the part where one is named.

    Raises:
        UsageError: there is no such dataset, another run preprocesses it, or arguments exclude each other.
        DataError: the dataset's files do not fit their schema, it is not CT, every case failed, nothing can be written,
            or a subject is marked for another part than splits.json has it in.
        ContractError: this version cannot carry out the rule.
        StoppedError: a signal came; the same call goes on.
    """
    call = _Call(
        part=Part.asked(part, parts),
        workers=Workers(num_workers, scheduler, retries),
        raw=load_raw_dataset(dataset_id),
        folder=preprocessed_dataset(dataset_id),
        rule=rule,
        layout=layout or StoreLayout(),
        verify=verify,
        overwrite=overwrite,
        quiet=quiet,
    )
    with (
        writing(call.folder),
        stoppable(f"Preprocessing of {call.raw.folder.name}"),
        run_lock(call.folder, call.part),
        _staging(call),
    ):
        return _carry_out(call)


@contextmanager
def _staging(call: _Call) -> Iterator[None]:
    """The folder where files are written before they take their place; what killed runs left in theirs goes."""
    for left in call.storage.glob(f"{_STAGING}*" if call.part.whole else call.staging.name):
        shutil.rmtree(left, ignore_errors=True)  # its workers may be dying at this moment; nothing reads it
    call.staging.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(call.staging, ignore_errors=True)


def _carry_out(call: _Call) -> PreprocessingReport:
    begin = time.monotonic()
    forget_part(call.storage, call.part)
    known = KnownCases(call.storage)
    tally = _run(call, known)
    report = _report(call, tally, time.monotonic() - begin)
    if call.part.whole:
        report = publish(call.raw, call.folder, call.rule, tally.rows, known, report, quiet=call.quiet)
        forget_parts(call.storage)
        files = [call.storage, call.storage / INDEX_NAME, call.folder / REPORT_NAME]
        print_report(report, quiet=call.quiet)
    else:
        files = [keep_part(call.storage, call.part, tally.rows, report)]
        print_report(report, quiet=call.quiet)
        files += _bring_together(call, known)
    if tally.num_cases and not tally.rows:
        first = report.failures[0]
        raise DataError(
            f"No case of {call.raw.folder.name} could be preprocessed.",
            got=f"{len(report.failures)} failures, the first: {first.line}",
            expected="at least one usable case",
            do=first.do or f"See {call.folder / REPORT_NAME}.",
        )
    name_files(files, quiet=call.quiet)
    return report


def _run(call: _Call, known: KnownCases) -> _Tally:
    raw, rule = call.raw, call.rule
    tally = _Tally(sum(map(call.part.has, raw.case_ids)))
    part = "" if call.part.whole else f" ({call.part})"
    who = call.workers.named(tally.num_cases)
    say(f"{raw.folder.name}: {tally.num_cases} cases{part} -> {rule.storage_id} with {who}", quiet=call.quiet)
    forgotten = [c for c in MASK_COLUMNS if c not in rule.masks and c in raw.cases and (raw.cases[c] != "").any()]
    if forgotten:
        say(f"cases.csv fills {', '.join(forgotten)}, which this rule does not store: --replan does", quiet=call.quiet)
    results = call.workers.run(
        run_case,
        _jobs(call, known),
        tally.num_cases,
        preload=run_case.__module__,
        may_pass=lambda outcome: outcome.may_pass,
    )
    for job, result in progress(results, "preprocessed", tally.num_cases, quiet=call.quiet):
        tally.add(job, result)
    return tally


def _jobs(call: _Call, known: KnownCases) -> Iterator[CaseJob]:
    """The cases of this part, each made when it is asked for."""
    cases = call.raw.cases
    names = [c for c in MASK_COLUMNS if c in call.rule.masks and c in cases.columns]
    for case_id, image, *masks in zip(*(cases[c] for c in ("case_id", "image", *names)), strict=True):
        if not call.part.has(case_id):
            continue
        yield CaseJob(
            case_id,
            call.raw.folder / image,
            tuple((name, call.raw.folder / mask) for name, mask in zip(names, masks, strict=True) if mask),
            call.storage,
            call.staging,
            call.rule,
            call.layout,
            call.raw.info.segmentation_classes,
            known.get(case_id),
            verify=call.verify,
            overwrite=call.overwrite,
        )


def _report(call: _Call, tally: _Tally, seconds: float) -> PreprocessingReport:
    return PreprocessingReport(
        dataset_id=call.raw.dataset_id,
        dataset_name=call.raw.folder.name,
        storage_id=call.rule.storage_id,
        storage_digest=call.rule.digest(),
        num_cases=tally.num_cases,
        num_written=tally.num_written,
        num_kept=len(tally.rows) - tally.num_written,
        failures=tuple(sorted(tally.failures, key=lambda failure: failure.case_id)),
        notes=tuple(sorted(tally.notes, key=lambda note: note.case_id)),
        part=call.part.number,
        parts=call.part.of,
        cases_digest=cases_digest(call.raw),
        verified=call.verify,
        seconds=round(seconds, 2),
    )


def _bring_together(call: _Call, known: KnownCases) -> list[Path]:
    """Write index and report of the whole dataset when all parts are done; gives the files.

    Whichever part ends last does it: every part looks after it has written its own, and one at a time.
    """
    of = call.part.of
    with alone(call.folder):
        reports = finished_parts(call.storage, of, call.rule.digest(), cases_digest(call.raw))
        if reports is None:
            say(f"the index follows when the last of {of} parts is done", quiet=call.quiet)
            return []
        rows = rows_of_parts(call.storage, of)
        report = publish(call.raw, call.folder, call.rule, rows, known, combined(reports), quiet=call.quiet)
    say(f"all {of} parts are done:", quiet=call.quiet)
    print_report(report, quiet=call.quiet)
    return [call.storage, call.storage / INDEX_NAME, call.folder / REPORT_NAME]


def _death(case_id: str) -> CaseFailure:
    return CaseFailure(
        case_id=case_id,
        what="The process that worked on this case died.",
        got="a dead worker: out of memory, or, in a Python script, a call outside of `if __name__ == '__main__':`",
        expected="a process that ends by itself",
        do="In a script, put the call under `if __name__ == '__main__':`. Otherwise run again with a smaller "
        "--num_workers; when it dies again, leave the case out.",
    )
