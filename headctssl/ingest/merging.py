"""Merging: values of one scan from several lines, and rows that scans bring into a table that has them already."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from headctssl.dataset.table import STANDARD_COLUMNS
from headctssl.ingest.scan import Scan

__all__ = ["Change", "changed_cells", "changed_remark", "one_of", "twin_remark", "with_rows"]


@dataclass(frozen=True)
class Change:
    """A cell that is there and would be another one."""

    case_id: str
    column: str
    old: str
    new: str


def with_rows(cases: pd.DataFrame, rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The table with rows added. A row of a known case id changes the cells it brings and keeps the others.

    Args:
        cases: the table.
        rows: cells by column, ids included. An empty cell takes a value away, and adds no column of its own.
    """
    records: dict[str, dict[str, str]] = {}
    for record in cases.to_dict("records"):
        records[str(record.get("case_id", ""))] = {str(name): str(value) for name, value in record.items()}
    for row in rows:
        old = records.get(row["case_id"], {})
        # An id that the source does not know does not erase one that was entered by hand.
        unknown = [name for name in ("subject_id", "session_id") if not row[name]]
        kept: dict[str, str] = {name: old[name] for name in unknown if name in old}
        records[row["case_id"]] = {**old, **row, **kept}
    _inherit_splits(records, {row["case_id"] for row in rows})
    filled = dict.fromkeys(name for row in rows for name, text in row.items() if text or name in STANDARD_COLUMNS)
    columns = list(dict.fromkeys([*cases.columns, *filled]))
    body = [[record.get(name, "") for name in columns] for record in records.values()]
    return pd.DataFrame(body, columns=columns, dtype=str)


def _inherit_splits(records: dict[str, dict[str, str]], new: set[str]) -> None:
    """Give new rows without a split the one of their subject: no subject may be in two splits."""
    of_subject: dict[str, str] = {}
    for record in records.values():
        if record.get("split") and record.get("subject_id"):
            of_subject.setdefault(record["subject_id"], record["split"])
    for case_id in new:
        record = records[case_id]
        if not record.get("split") and record.get("subject_id") in of_subject:
            record["split"] = of_subject[record["subject_id"]]


def changed_cells(cases: pd.DataFrame, rows: Sequence[Mapping[str, str]], columns: Collection[str]) -> list[Change]:
    """The cells that `with_rows` would change of rows that are there.

    Args:
        cases: the table.
        rows: rows of cases that are in it.
        columns: those that are compared where a row brings them. `1` and `1.0` are the same.
    """
    compared = list(columns)
    named = {"case_id", "subject_id", "session_id", *compared}
    brought = [{name: text for name, text in row.items() if name in named} for row in rows]
    before = cases.set_index("case_id").reindex(columns=compared, fill_value="")
    after = with_rows(cases, brought).set_index("case_id").reindex(columns=compared, fill_value="")
    found: list[Change] = []
    for row in brought:
        case_id = row["case_id"]
        for name in (name for name in compared if name in row):
            old, new = str(before.at[case_id, name]), str(after.at[case_id, name])
            if not _same(old, new):
                found.append(Change(case_id, name, old, new))
    return found


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def changed_remark(changes: Sequence[Change], origin: str) -> tuple[str, ...]:
    """A sentence on cases that are there with other values than their source has now; () when there are none.

    Args:
        changes: see `changed_cells`.
        origin: the table or the source that has the new values.
    """
    if not changes:
        return ()
    first = changes[0]
    count = len({change.case_id for change in changes})
    return (
        f"{count} cases that are there already have other values in {origin} (first: {first.case_id}, {first.column}:"
        f" {_told(first.old)} there, {_told(first.new)} in {origin}); --overwrite takes them.",
    )


def _told(text: str) -> str:
    return f"'{text}'" if text else "empty"


def one_of(scans: Sequence[Scan], labels: Collection[str]) -> tuple[Scan, str]:
    """One scan of scans with one identity: the first, with what only the others know.

    A label or a split that they contradict each other in is left empty, for nothing tells which is right.

    Args:
        scans: the same scan from several places of a source.
        labels: columns that are labels.

    Returns:
        The scan, and the first contradiction in words, '' when there is none.
    """
    first = scans[0]
    cells = dict(_brought(first))
    said_by = {name: first for name, text in cells.items() if text}  # the first scan with a value of each column
    contradictions: dict[str, str] = {}
    for scan in scans[1:]:
        for name, text in _brought(scan).items():
            before = said_by.setdefault(name, scan) if text else scan
            known = _brought(before)[name]
            if not _same(known, text):
                told = f"{name} of {before.source} and {scan.source}: '{known}' and '{text}'"
                contradictions.setdefault(name, told)
            cells[name] = cells.get(name) or text
    cells.update({name: "" for name in contradictions if name in labels or name == "split"})
    subject, session = cells.pop("subject_id"), cells.pop("session_id")
    merged = replace(first, columns=tuple(cells.items()), subject=subject, session=session)
    return merged, next(iter(contradictions.values()), "")


def _brought(scan: Scan) -> dict[str, str]:
    return {**dict(scan.columns), "subject_id": scan.subject, "session_id": scan.session}


def twin_remark(contradictions: Sequence[str]) -> tuple[str, ...]:
    """A sentence on scans that are in the source more than once with different values; () when there are none."""
    if not contradictions:
        return ()
    return (
        f"{len(contradictions)} scans are in the source more than once with other values (first: {contradictions[0]})."
        " Labels and splits that contradict each other are left empty; of other cells those of the first are taken.",
    )
