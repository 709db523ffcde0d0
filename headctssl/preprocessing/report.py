"""Report: preprocessing_report.json, what became of every case that did not go straight through."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

from headctssl.console import say
from headctssl.settings import Settings

__all__ = ["REPORT_NAME", "CaseFailure", "CaseNote", "PreprocessingReport", "print_report"]

REPORT_NAME = "preprocessing_report.json"
_SHOWN = 20


class CaseFailure(Settings):
    """A case that was left out, and why."""

    case_id: str
    what: str = Field(description="What failed.")
    got: str = ""
    expected: str = ""
    do: str = Field("", description="What to do about it.")

    @property
    def line(self) -> str:
        """The failure in one line."""
        parts = [" ".join(self.what.split())]
        parts += [f"got {self.got}"] if self.got else []
        parts += [f"expected {self.expected}"] if self.expected else []
        return f"case '{self.case_id}': " + "; ".join(parts)


class CaseNote(Settings):
    """Something that was noticed about a case that was stored or removed."""

    case_id: str
    note: str


class PreprocessingReport(Settings):
    """preprocessing_report.json: the cases left out are here with their reason; the stored ones are in cases.csv."""

    format: Literal[1] = 1
    dataset_id: int = Field(ge=1)
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    storage_id: str = Field(description="Folder of the stored cases.")
    storage_digest: str = Field(description="Digest of the storage rule.")
    num_cases: int = Field(ge=0, description="Cases of the raw dataset.")
    num_written: int = Field(ge=0, description="Cases written this time.")
    num_kept: int = Field(ge=0, description="Cases kept: storage rule, size and modification time unchanged.")
    num_removed: int = Field(0, ge=0, description="Stored cases removed: they are no longer in cases.csv.")
    failures: tuple[CaseFailure, ...] = Field(description="Cases left out.")
    notes: tuple[CaseNote, ...] = Field((), description="What was noticed about stored and removed cases.")
    part: int = Field(1, ge=1, description="Which part of a job array this is about.")
    parts: int = Field(1, ge=1, description="Jobs of that array; 1 for the whole dataset.")
    cases_digest: str = Field("", description="Digest of the ids and files that cases.csv listed.")
    verified: bool = Field(False, description="Whether sources' SHA-256 and stored CRC-32 sums were checked.")
    seconds: float = Field(ge=0, description="Time taken.")

    @property
    def num_stored(self) -> int:
        """Cases that can be used."""
        return self.num_written + self.num_kept


def print_report(report: PreprocessingReport, *, quiet: bool) -> None:
    """Print counts, failures and notes; a quiet run prints the failures only, to stderr."""
    part = "" if report.parts == 1 else f"part {report.part} of {report.parts}: "
    say(
        f"{part}{report.num_written} written, {report.num_kept} unchanged, {len(report.failures)} left out "
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
