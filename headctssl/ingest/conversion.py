"""Conversion: the way of the scans of one source, from what was found to rows of the dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from headctssl.console import progress
from headctssl.dataset.parallel import map_items
from headctssl.dataset.table import STANDARD_COLUMNS
from headctssl.errors import HeadCTSSLError
from headctssl.ingest.candidate import Candidate, column_remarks, make_candidate
from headctssl.ingest.growing import GrowingDataset
from headctssl.ingest.journal import Entry
from headctssl.ingest.merging import changed_remark, one_of, twin_remark
from headctssl.ingest.one_scan import Job, Outcome, Reading, convert_scan, failed, record_of, source_state
from headctssl.ingest.privacy import keyed_hash, without_paths
from headctssl.ingest.report import ScanRecord, Stage
from headctssl.ingest.room import NoRoomError
from headctssl.ingest.scan import Found, Ignored, Scan
from headctssl.ingest.screening import Decision, Rules, Screened, choose, screen
from headctssl.ingest.told import ConvertResult
from headctssl.ingest.verdict import ScanVerdict, judge_facts

__all__ = ["Conversion"]


class Conversion:
    """One call of `convert`: what is to be done, and what has been.

    Args:
        data: the dataset that scans are added to.
        rules: what the user asked for.
        reading: how images are read.
        dry_run: write nothing.
        origin: what brings labels, for sentences: the name of their table, or "the source".
    """

    def __init__(
        self, data: GrowingDataset, rules: Rules, reading: Reading, *, dry_run: bool, origin: str = "the source"
    ) -> None:
        self.origin = origin
        self.data, self.rules, self.reading, self.dry_run = data, rules, reading, dry_run
        self.accepted: list[ScanVerdict] = []
        self.rejected: list[ScanVerdict] = []
        self.left_out: list[Ignored] = []
        self.skipped: list[Ignored] = []
        self.images: list[Path] = []
        self.remarks: list[str] = []
        self._finished: set[str] = set()  # case ids that this call has decided on
        self._unusable: set[str] = set()  # those of them that are not in the dataset
        self._present: set[str] = set()  # case ids that were in the dataset before

    def run(self, found: Found, *, num_workers: int | None, quiet: bool, overwrite: bool) -> None:
        """Screen, select, read, judge and write.

        Args:
            found: what the source holds.
            num_workers: processes; None = one per core.
            quiet: no progress.
            overwrite: convert scans that are in the dataset already again.

        Raises:
            UsageError: the condition names a column that no scan has.
            DataError: a fault of the table that is there, or of a cell that is brought.
            NoRoomError: the disk is full.
        """
        self._present = self.data.present()
        candidates = self._distinct(found)
        self.remarks += column_remarks(candidates)
        self.data.order = {candidate.case_id: place for place, candidate in enumerate(candidates)}
        if self.rules.where is not None:
            columns = {name for candidate in candidates for name in candidate.cells}
            self.rules.where.check([*STANDARD_COLUMNS, *self.data.cases.columns, *sorted(columns)])
        screened = screen(candidates, self.rules)
        self.data.check(screened.passed)
        self._note_files(found)
        for decision in screened.decided:
            self._decide(decision)
        if not overwrite:
            self._remember(screened)
            there_already = [c for c in screened.passed if c.case_id in self._present]
            self.remarks += changed_remark(self.data.changes(there_already), self.origin)
        there = set() if overwrite else self._present
        while True:
            usable = [c for c in screened.passed if c.case_id not in self._unusable]
            kept, left = choose(usable, self.rules.selection)
            todo = [c for c in kept if c.case_id not in there and c.case_id not in self._finished]
            if not todo:
                break
            # A series that its image rejects makes room for the next one of its study: hence once more.
            for candidate, outcome in self._read(screened, todo, num_workers, quiet=quiet):
                self._note(candidate, outcome)
        for decision in left:
            self._decide(decision)
        self._skip(candidates)

    def result(self, found: Found) -> ConvertResult:
        """What was done."""
        return ConvertResult(
            folder=self.data.folder,
            accepted=tuple(self.accepted),
            rejected=(*found.rejected, *self.rejected),
            skipped=tuple(self.skipped),
            ignored=found.ignored,
            left_out=tuple(self.left_out),
            files=(*self.images, *self.data.files),
        )

    def _distinct(self, found: Found) -> list[Candidate]:
        """Every scan under its id, a scan that is in the source twice once."""
        labels = {spec.name for spec in self.data.info.labels}
        by_identity: dict[str, list[Scan]] = {}
        for scan in found.scans:
            same = by_identity.setdefault(scan.identity, [])
            if same:
                self.skipped.append(Ignored(scan.source, f"the same scan as {same[0].source}"))
            same.append(scan)
        merged = [one_of(scans, labels) for scans in by_identity.values()]
        self.remarks += twin_remark([told for _, told in merged if told])
        return [make_candidate(scan, self.data.key, labels) for scan, _ in merged]

    def _note_files(self, found: Found) -> None:
        """Put into the report what the converter could not take for a scan."""
        for verdict in found.rejected:
            case_id = f"file_{keyed_hash(self.data.key, f'source:{verdict.source}')}"
            names = (verdict.source, Path(verdict.source).name)
            reasons = tuple(without_paths(text, (), names) for text in verdict.reasons)
            record = ScanRecord(case_id=case_id, status="reject", stage="file", reasons=reasons)
            self.data.add(Entry(record=record, source=verdict.source))
        for scan in found.others:
            kind = "/".join((scan.facts.modality, *scan.facts.image_type)) if scan.facts is not None else ""
            # Not under the id of a scan of the same series, whose record it would replace.
            candidate = make_candidate(replace(scan, identity=f"other:{kind}:{scan.identity}"), self.data.key, ())
            reasons = judge_facts(scan.facts)[1] if scan.facts is not None else ()
            self._enter(candidate, record_of(candidate, "reject", "headers", reasons), {})

    def _enter(self, candidate: Candidate, record: ScanRecord, cells: dict[str, str]) -> None:
        path = str(candidate.scan.path.absolute())
        self.data.add(Entry(record=record, cells=cells, source=candidate.scan.source, path=path))

    def _decide(self, decision: Decision) -> None:
        """Note a scan that is not read; what is in the dataset already stays there as it is."""
        candidate = decision.candidate
        if candidate.case_id not in self._present:
            self._note(candidate, _unread(candidate, decision.status, decision.stage, decision.reasons))

    def _remember(self, screened: Screened) -> None:
        """Take over earlier rejections by the image, where neither the source nor the way of reading changed."""
        known = self.data.known()
        for candidate in screened.passed:
            record = known.get(candidate.case_id)
            if candidate.case_id in self._present or record is None or record.status != "reject":
                continue
            if record.read_with == self.reading.text() and record.source_state == source_state(candidate):
                self._unusable.add(candidate.case_id)
                self._finished.add(candidate.case_id)
                self.rejected.append(
                    ScanVerdict(
                        source=candidate.scan.source,
                        case_id=candidate.case_id,
                        status="reject",
                        reasons=(*record.reasons, "(Rejected before and not changed: not read again.)"),
                    )
                )

    def _read(
        self, screened: Screened, todo: Sequence[Candidate], num_workers: int | None, *, quiet: bool
    ) -> Iterator[tuple[Candidate, Outcome]]:
        """Convert scans in worker processes."""
        where = self.rules.where.text if self.rules.where is not None else ""
        jobs = [
            Job(
                candidate,
                self.reading,
                None if self.dry_run else self.data.folder,
                where if candidate.case_id in screened.undecided else "",
                screened.notes.get(candidate.case_id, ""),
                self.data.info.segmentation_classes,
            )
            for candidate in todo
        ]
        results = map_items(convert_scan, jobs, num_workers)
        for position, result in progress(results, "converted", len(jobs), quiet=quiet):
            if isinstance(result, NoRoomError):  # every further scan would be read in vain
                raise result
            job = jobs[position]
            yield job.candidate, failed(job, result) if isinstance(result, HeadCTSSLError) else result

    def _note(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take in a scan that is finished."""
        scan = candidate.scan
        self._finished.add(candidate.case_id)
        stays = not outcome.cells and candidate.case_id in self._present  # with --overwrite only
        reasons = (*outcome.reasons, *(("What was converted before stays in the dataset.",) if stays else ()))
        if outcome.status == "left_out":
            self.left_out.append(Ignored(scan.source, " ".join(reasons)))
        else:
            verdict = ScanVerdict(
                source=scan.source,
                case_id=candidate.case_id,
                status=outcome.status,
                reasons=reasons,
                notes=outcome.notes,
            )
            (self.rejected if outcome.status == "reject" else self.accepted).append(verdict)
        if not outcome.cells:
            self._unusable.add(candidate.case_id)
        elif not self.dry_run:
            self.images.append(self.data.folder / candidate.image)
        if not stays:
            self._enter(candidate, outcome.record, outcome.cells)

    def _skip(self, candidates: Sequence[Candidate]) -> None:
        """Name the scans that were in the dataset already, and those of them whose source has changed."""
        known = self.data.known()
        for candidate in candidates:
            if candidate.case_id not in self._present or candidate.case_id in self._finished:
                continue
            told = f"in the dataset already as {candidate.case_id}"
            record = known.get(candidate.case_id)
            if record is not None and record.source_state and record.source_state != source_state(candidate):
                told += "; its source has changed since: --overwrite converts it again"
            self.skipped.append(Ignored(candidate.scan.source, told))


def _unread(
    candidate: Candidate, status: Literal["reject", "left_out"], stage: Stage, reasons: tuple[str, ...]
) -> Outcome:
    """The outcome of a scan that was decided on before its voxels were read."""
    return Outcome(status, reasons, (), record_of(candidate, status, stage, reasons), {})
