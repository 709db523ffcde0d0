"""Screening: what headers and the user's rules say of scans before any voxel is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from headctssl.dataset.where import Where
from headctssl.errors import UsageError
from headctssl.ingest.candidate import Candidate, filter_cells, late_columns
from headctssl.ingest.report import Stage
from headctssl.ingest.scan_filter import ScanFilter
from headctssl.ingest.selection import Selection, select
from headctssl.ingest.verdict import judge_facts
from headctssl.settings import parse_overrides, with_overrides

__all__ = ["Decision", "Rules", "Screened", "choose", "parse_selection", "screen"]


@dataclass(frozen=True)
class Rules:
    """What the user asked for."""

    scan_filter: ScanFilter | None = None
    where: Where | None = None
    selection: Selection = field(default_factory=Selection)


@dataclass(frozen=True)
class Decision:
    """A scan that is not read, and why."""

    candidate: Candidate
    status: Literal["reject", "left_out"]
    stage: Stage
    reasons: tuple[str, ...]


@dataclass
class Screened:
    """The outcome of headers, scan filter and condition."""

    passed: list[Candidate] = field(default_factory=list)
    decided: list[Decision] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # by case id: the line that let it pass
    undecided: set[str] = field(default_factory=set)  # case ids whose condition needs the image


def parse_selection(text: str) -> Selection:
    """Read `all`, `one`, or settings such as `kernel=soft,thickness=thinnest,per_study=1`.

    Raises:
        UsageError: an unknown setting or value; the known ones are named.
    """
    if text.strip() in ("all", "one"):
        return Selection(per_study="all" if text.strip() == "all" else 1)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all("=" in part for part in parts):
        raise UsageError(
            "--select could not be read.",
            got=text or "nothing",
            expected="all, one, or settings separated by commas",
            do=f"For example: --select kernel=soft,per_study=1. Settings: {', '.join(Selection.model_fields)}.",
        )
    return with_overrides(Selection(), parse_overrides(parts), prefix="select.")


def screen(candidates: Sequence[Candidate], rules: Rules) -> Screened:
    """Judge headers, then apply the scan filter, then the condition; the first that says no decides.

    Args:
        candidates: distinct scans.
        rules: what the user asked for.
    """
    found = Screened()
    for candidate in candidates:
        decision = _header_decision(candidate) or _filter_decision(candidate, rules, found)
        decision = decision or _where_decision(candidate, rules, found)
        if decision is None:
            found.passed.append(candidate)
        else:
            found.decided.append(decision)
    return found


def _header_decision(candidate: Candidate) -> Decision | None:
    if candidate.scan.facts is None:
        return None
    status, reasons = judge_facts(candidate.scan.facts)
    return Decision(candidate, "reject", "headers", reasons) if status == "reject" else None


def _filter_decision(candidate: Candidate, rules: Rules, found: Screened) -> Decision | None:
    if rules.scan_filter is None:
        return None
    passed, why = rules.scan_filter.decide(filter_cells(candidate))
    if not passed:
        return Decision(candidate, "left_out", "scan_filter", (why,))
    found.notes[candidate.case_id] = f"Allowed by {why}"
    return None


def _where_decision(candidate: Candidate, rules: Rules, found: Screened) -> Decision | None:
    where = rules.where
    if where is None:
        return None
    if set(where.columns) & late_columns(candidate):
        found.undecided.add(candidate.case_id)
        return None
    if where.matches(candidate.cells):
        return None
    return Decision(candidate, "left_out", "where", (where.told(candidate.cells),))


def choose(passed: Sequence[Candidate], selection: Selection) -> tuple[list[Candidate], list[Decision]]:
    """Select among the scans of each study.

    Returns:
        What is to be converted, in its order, and what was left for something better.
    """
    by_identity = {id(candidate.scan): candidate for candidate in passed}
    kept, left = select([candidate.scan for candidate in passed], selection)
    decisions = [Decision(by_identity[id(scan)], "left_out", "selection", (reason,)) for scan, reason in left]
    return [by_identity[id(scan)] for scan in kept], decisions
