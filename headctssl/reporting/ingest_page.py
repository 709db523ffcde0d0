"""Ingest page: what became of every scan that was offered to a raw dataset, at a glance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from headctssl.ingest.report import REPORT_FILE, ScanRecord, read_report
from headctssl.reporting.charts import bar_chart, histogram_chart
from headctssl.reporting.page import Page, Picture, Section, Table, as_table, picture_from_file
from headctssl.reporting.run_parts import BANNER
from headctssl.reporting.svg import Chart

__all__ = ["ingest_page"]

MOST_PICTURES = 60
"""Thumbnails on the page; they are about 15 kB each and the page must open on a phone."""

MOST_OF_A_KIND = 6
"""Thumbnails of scans that were turned down for the same reason."""

MOST_ROWS = 500

_STATUSES = {
    "accept": "accepted",
    "review": "accepted, look at it",
    "reject": "rejected",
    "left_out": "left out by a rule",
}
_STAGES = {
    "file": "by its file",
    "headers": "by its headers",
    "scan_filter": "by the scan filter",
    "where": "by the condition --where",
    "selection": "by the selection of series",
    "image": "by its image",
}
_UNKNOWN = "not stated"
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


def ingest_page(folder: Path) -> Page:
    """The quality report of a raw dataset.

    Args:
        folder: a dataset with ingest_report.json.

    Returns:
        Counts, reasons, distributions over the scans of the dataset, pictures of scans that were not simply
        accepted, and a list of them. Ids are keyed hashes; the pictures show patients.

    Raises:
        DataError: ingest_report.json is damaged.
    """
    scans = read_report(folder).scans
    kept = [scan for scan in scans if scan.status in ("accept", "review")]
    counts = Counter(scan.status for scan in scans)
    patients = len({scan.subject_id or scan.case_id for scan in kept})
    sections = [
        Section(
            "What became of the scans",
            ("Every scan that was ever offered to this dataset, with the last decision on it.",),
            (_count_table(scans),),
        ),
        Section("Reasons", _reason_words(scans), _reason_tables(scans)),
    ]
    if kept:
        sections.append(
            Section(
                "The scans of the dataset",
                ("Accepted scans only, those to be looked at included.",),
                (_summary_table(kept),),
                charts=_distributions(kept),
            )
        )
    shown = _pictures(folder, scans)
    if shown:
        sections.append(
            Section(
                "Scans to look at",
                (
                    f"Middle axial, coronal and sagittal slice of scans that were not simply accepted: {len(shown)} "
                    f"of {sum(bool(scan.thumbnail) for scan in scans)}, at most {MOST_OF_A_KIND} of a kind.",
                ),
                pictures=shown,
                gallery=True,
            )
        )
    sections += _list(scans)
    return Page(
        title=f"Quality report of {folder.name}",
        subtitle=f"Made from {REPORT_FILE}. Names, dates and numbers of patients are not in it, but its pictures show "
        "patients.",
        banner=BANNER,
        sections=tuple(sections),
        facts=(
            ("scans offered", f"{len(scans):,}"),
            ("in the dataset", f"{len(kept):,}"),
            ("patients", f"{patients:,}"),
            ("of them to look at", f"{counts['review']:,}"),
            ("rejected", f"{counts['reject']:,}"),
            ("left out by a rule", f"{counts['left_out']:,}"),
        ),
    )


def _count_table(scans: Sequence[ScanRecord]) -> Table:
    counts: Counter[tuple[str, str]] = Counter((scan.status, scan.stage) for scan in scans)
    order = [(status, stage) for status in _STATUSES for stage in _STAGES]
    rows = [
        (_STATUSES[status], "-" if status == "accept" else _STAGES[stage], f"{counts[status, stage]:,}")
        for status, stage in order
        if counts[status, stage]
    ]
    return as_table(("verdict", "decided", "scans"), rows)


def _reason_words(scans: Sequence[ScanRecord]) -> tuple[str, ...]:
    if any(scan.reasons for scan in scans):
        return ("A scan may have several. Where a reason holds numbers, they are those of the first such scan.",)
    return ("Every scan was accepted as it is.",)


def _kind(reason: str) -> str:
    """A reason with its numbers taken out, so that the same reason is counted as one."""
    return _NUMBER.sub("#", reason)


def _reason_tables(scans: Sequence[ScanRecord]) -> tuple[Table, ...]:
    """One line per kind of reason, with the first such reason in full."""
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for scan in scans:
        for reason in dict.fromkeys(scan.reasons):
            key = (scan.status, _kind(reason))
            counts[key] += 1
            example.setdefault(key, reason)
    ranked = sorted(counts, key=lambda key: (list(_STATUSES).index(key[0]), -counts[key]))
    rows = [(_STATUSES[key[0]], f"{counts[key]:,}", example[key]) for key in ranked]
    return (as_table(("verdict", "scans", "reason"), rows),) if rows else ()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _series(kept: Sequence[ScanRecord]) -> list[tuple[str, list[float]]]:
    """What is known as a number of each scan of the dataset, by title."""
    peaks = [scan.hu_peaks if len(scan.hu_peaks) == 3 else (None, None, None) for scan in kept]
    return [
        ("slice spacing as stored, mm", [scan.original_spacing_mm[0] for scan in kept if scan.original_spacing_mm]),
        ("slice thickness, mm", _known(_number(scan.slice_thickness_mm) for scan in kept)),
        ("in-plane spacing, mm", [scan.original_spacing_mm[2] for scan in kept if scan.original_spacing_mm]),
        ("tilt, degrees", _known(scan.tilt_deg for scan in kept)),
        ("tube voltage, kV", _known(_number(scan.kvp) for scan in kept)),
        ("age, years (at most 90)", _known(_number(scan.age) for scan in kept)),
        ("peak of air, HU", _known(p[0] for p in peaks)),
        ("peak of soft tissue, HU", _known(p[1] for p in peaks)),
        ("peak of bone, HU", _known(p[2] for p in peaks)),
    ]


def _summary_table(kept: Sequence[ScanRecord]) -> Table:
    rows = []
    for title, values in _series(kept):
        if values:
            ordered = sorted(values)
            middle = ordered[len(ordered) // 2]
            rows.append((title, f"{len(values):,}", f"{ordered[0]:.4g}", f"{middle:.4g}", f"{ordered[-1]:.4g}"))
    return as_table(("quantity", "known for", "least", "middle", "most"), rows)


def _distributions(kept: Sequence[ScanRecord]) -> tuple[Chart, ...]:
    """Histograms of the numbers, bars of the words; none where nothing is known."""
    words = [
        ("kernel", Counter(scan.convolution_kernel or _UNKNOWN for scan in kept)),
        ("manufacturer", Counter(scan.manufacturer or _UNKNOWN for scan in kept)),
        ("contrast agent", Counter(scan.contrast or _UNKNOWN for scan in kept)),
        ("sex", Counter(scan.sex or _UNKNOWN for scan in kept)),
    ]
    histograms = [histogram_chart(values, title, title=_titled(title)) for title, values in _series(kept) if values]
    bars = [
        bar_chart(_common(counted), "scans", title=_titled(title), whole=True)
        for title, counted in words
        if set(counted) != {_UNKNOWN}
    ]
    return (*histograms, *bars)


def _titled(text: str) -> str:
    return text[0].upper() + text[1:].partition(",")[0]


def _common(counted: Counter[str]) -> dict[str, float]:
    common = dict(counted.most_common(8))
    rest = sum(counted.values()) - sum(common.values())
    return {**common, **({"others": rest} if rest else {})}


def _pictures(folder: Path, scans: Sequence[ScanRecord]) -> tuple[Picture, ...]:
    """Thumbnails, rejected scans first, a few of every kind of reason."""
    seen: Counter[str] = Counter()
    found: list[Picture] = []
    for scan in sorted(scans, key=lambda scan: scan.status != "reject"):
        kind = f"{scan.status}:{_kind(scan.reasons[0]) if scan.reasons else ''}"
        path = folder / scan.thumbnail
        if not scan.thumbnail or seen[kind] == MOST_OF_A_KIND or not path.is_file():
            continue
        seen[kind] += 1
        found.append(picture_from_file(path, f"{scan.case_id}: {_STATUSES[scan.status]}. {' '.join(scan.reasons)}"))
        if len(found) == MOST_PICTURES:
            break
    return tuple(found)


def _list(scans: Sequence[ScanRecord]) -> list[Section]:
    """Every scan that was not simply accepted, as folded tables."""
    sections = []
    for status, title in _STATUSES.items():
        chosen = [scan for scan in scans if scan.status == status and status != "accept"]
        if not chosen:
            continue
        rows = [(scan.case_id, _STAGES[scan.stage], " ".join(scan.reasons)) for scan in chosen[:MOST_ROWS]]
        more = (
            () if len(chosen) <= MOST_ROWS else (f"The first {MOST_ROWS} of {len(chosen):,}; {REPORT_FILE} has all.",)
        )
        table = as_table(("case", "decided", "reasons"), rows)
        sections.append(Section(f"List: {title} ({len(chosen):,})", more, (table,), folded=True))
    return sections
