"""Told: the result of a conversion, and what is printed of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headctssl.console import name_files, say, table
from headctssl.ingest.scan import Ignored
from headctssl.ingest.verdict import ScanVerdict

__all__ = ["ConvertResult", "print_result"]

MOST_LINES = 200
"""Lines of one table or list; a hospital's export has more than anybody reads on a screen."""


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` did."""

    folder: Path  # the dataset; not made when nothing was accepted or in a dry run
    accepted: tuple[ScanVerdict, ...]  # status accept or review
    rejected: tuple[ScanVerdict, ...]
    skipped: tuple[Ignored, ...]  # scans that are in the dataset already
    ignored: tuple[Ignored, ...]  # what is no scan by its nature
    left_out: tuple[Ignored, ...]  # by the scan filter, the condition or the selection
    files: tuple[Path, ...]  # what was written

    @property
    def exit_code(self) -> int:
        """0 done, 1 some scans rejected, 2 all rejected."""
        if not self.rejected:
            return 0
        return 1 if self.accepted or self.skipped or self.left_out else 2


def print_result(result: ConvertResult, remarks: Sequence[str], *, dry_run: bool, quiet: bool) -> None:
    """Print what became of the scans; in a dry run of every scan, else of those that were not simply accepted.

    Args:
        result: what was done.
        remarks: of the converter.
        dry_run: nothing was written.
        quiet: print nothing.
    """
    for entry in result.ignored:
        say(f"{entry.source}: {entry.reason}" if entry.source else f"ignored: {entry.reason}", quiet=quiet)
    for remark in remarks:
        say(remark, quiet=quiet)
    verdicts = (*result.rejected, *result.accepted)
    rows: list[tuple[str, str, str]] = [(v.status, v.source, " ".join((*v.reasons, *_rules(v)))) for v in verdicts]
    rows += [("left out", entry.source, entry.reason) for entry in result.left_out]
    rows += [("there already", entry.source, entry.reason) for entry in result.skipped]
    if not dry_run:
        rows = [row for row in rows if row[0] in ("reject", "review") or "has changed" in row[2]]
    if rows:
        title = "What would become of the scans" if dry_run else "Scans that were not simply accepted"
        table(title, ("verdict", "scan", "reasons"), rows[:MOST_LINES], quiet=quiet)
    if len(rows) > MOST_LINES:
        where = "" if dry_run else f": {result.folder / 'ingest_report.json'} has them all"
        say(f"... and {len(rows) - MOST_LINES} more{where}.", quiet=quiet)
    counts = Counter(v.status for v in (*result.accepted, *result.rejected))
    told = ", ".join(f"{counts.get(status, 0)} {status}" for status in ("accept", "review", "reject"))
    told += f", {len(result.left_out)} left out, {len(result.skipped)} there already"
    say(f"{result.folder.name}: {told}.", quiet=quiet)
    if dry_run:
        say("Dry run: nothing was written.", quiet=quiet)
    _name_written(result, quiet=quiet)


def _rules(verdict: ScanVerdict) -> tuple[str, ...]:
    """The rule that let a scan pass; its other notes are for the report."""
    return tuple(note for note in verdict.notes if note.startswith("Allowed by "))


def _name_written(result: ConvertResult, *, quiet: bool) -> None:
    shown = [path for path in result.files if path.suffix in (".json", ".csv")]
    images = len(result.files) - len(shown)
    if images:
        say(f"wrote {images} images under {result.folder / 'images'}", quiet=quiet)
    if shown:
        name_files(shown, quiet=quiet)
