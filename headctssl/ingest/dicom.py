"""DICOM: every CT series of a folder tree as one scan."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from headctssl.dataset.dicom_slices import Slice
from headctssl.ingest.dicom_facts import facts_of
from headctssl.ingest.dicom_group import Part, split_series, without_copies, without_repeats
from headctssl.ingest.dicom_tree import Tree, read_tree
from headctssl.ingest.scan import Found, Ignored, Scan
from headctssl.ingest.verdict import ScanVerdict

__all__ = ["find_scans"]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_Key = tuple[str, str, str, str]  # study UID, series UID, the folder of files without a series UID, PatientID


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Walk a tree and group its CT slices by patient, study and series UID, those without a series UID by folder.

    Localisers, secondary captures and other modalities are ignored and counted; `Found.others` has them with their
    facts. Slices that are there twice count once: the same SOP instance UID, or the same pixels at the same place. A
    series UID that holds several stacks gives one scan for each (`dicom_group.split_series`).

    Args:
        source: a folder.
        num_workers: processes that read headers; None = one per core where there are files enough.
        quiet: print no progress.

    Returns:
        One scan per stack, with its facts. Subject, session and case are identified by PatientID and UIDs, which
        `convert` replaces by keyed hashes. A series without PatientID is of the patient that the others of its study
        name.

    Raises:
        HeadCTSSLError: a worker process died.
    """
    tree = read_tree(source, num_workers, quiet=quiet)
    sorted_out = _SortedOut()
    groups = _by_series(source, tree)
    for key, slices in groups.items():
        _sort_out(source, key, slices, sorted_out)
    scans, adopted = _with_patients(sorted_out.scans, groups)
    ignored = tree.ignored + sorted_out.ignored
    rejected = [*tree.unreadable, *sorted_out.incomplete]
    return Found(
        scans=_told_apart(scans),
        ignored=tuple(Ignored("", f"{count} {reason}") for reason, count in sorted(ignored.items())),
        rejected=tuple(
            ScanVerdict(source=name, status="reject", reasons=(f"The file is not readable DICOM: {reason}.",))
            for name, reason in sorted(rejected)
        ),
        remarks=(*sorted_out.remarks(), *adopted),
        others=_told_apart(sorted_out.others),
    )


@dataclass
class _SortedOut:
    scans: list[Scan] = field(default_factory=list)
    others: list[Scan] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    incomplete: list[tuple[str, str]] = field(default_factory=list)  # (path below the source, what is wrong)
    copies: int = 0
    repeats: int = 0
    split: int = 0  # series that gave several scans

    def remarks(self) -> list[str]:
        """What was noticed and rejects nothing."""
        told = [
            (self.copies, f"{self.copies} slices were there more than once and were taken once."),
            (self.repeats, f"{self.repeats} slices had the place and the pixels of another and were left out."),
            (
                self.split,
                f"{self.split} series held several stacks (orientation, size, kernel, image type or acquisition):"
                " each stack is a scan.",
            ),
        ]
        return [text for count, text in told if count]


def _by_series(source: Path, tree: Tree) -> dict[_Key, list[Slice]]:
    found: defaultdict[_Key, list[Slice]] = defaultdict(list)
    for one in tree.slices:
        uid = one.common.series_uid
        # Files that name no series belong together when they lie together.
        folder = "" if uid else os.path.dirname(one.file)
        # Some programs that take names out give several patients the same UIDs.
        found[(one.common.study_uid, uid, folder, one.common.patient)].append(one)
    for key in [key for key in found if not key[3]]:
        named = [other for other in found if other[:3] == key[:3] and other != key]
        if len(named) == 1:  # slices that lack the PatientID of the others
            found[named[0]] += found.pop(key)
    return dict(found)


def _sort_out(source: Path, key: _Key, slices: list[Slice], out: _SortedOut) -> None:
    """The scans of one series, and what is none."""
    kept, copies = without_copies(slices)
    out.copies += copies
    by_reason: defaultdict[str, list[Slice]] = defaultdict(list)
    for one in kept:
        if fault := _incomplete(one):
            out.incomplete.append((_below(source, one.file), fault))
        else:
            by_reason[_not_a_scan(one)].append(one)
    stacks: list[Part] = []
    if "" in by_reason:
        stacks = split_series(by_reason.pop(""))
    placed = [part for part in stacks if part.placed]
    if placed and len(stacks) > len(placed):  # dose sheets and other pictures among the slices of a scan
        by_reason["pictures without a place in the patient, in a series that has one"] += stacks[-1].slices
        stacks = placed if len(placed) > 1 else [replace(placed[0], name="")]
    for reason, others in by_reason.items():
        out.ignored[reason] += len(others)
        if others[0].common.rows:
            parts = split_series(others)
            out.others += [_scan(source, key, part, kind=reason) for part in parts]
    for part in stacks:
        if part.placed:
            alone, repeats = without_repeats(part.slices)
            out.repeats += repeats
            part = replace(part, slices=tuple(alone))
        out.scans.append(_scan(source, key, part))
    out.split += len(stacks) > 1


def _incomplete(one: Slice) -> str:
    """What is missing of a header that was cut off where pydicom does not notice, '' when nothing is."""
    common = one.common
    if not (common.modality or common.sop_class):
        return "its header says nothing of what it is"
    picture = common.rows and common.columns
    return "" if picture or _not_a_scan(one) else "it ends before its picture"


def _not_a_scan(one: Slice) -> str:
    """Why a readable DICOM file is no slice of a CT scan, '' when it is one."""
    common = one.common
    if common.modality != "CT":
        return f"files of modality {common.modality or 'unknown'}"
    if common.sop_class == _SECONDARY_CAPTURE or common.sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return "secondary captures"
    return "localisers" if "LOCALIZER" in common.image_type else ""


def _below(source: Path, file: str) -> str:
    return Path(file).relative_to(source).as_posix()


def _scan(source: Path, key: _Key, part: Part, kind: str = "") -> Scan:
    study, uid, _, patient = key
    slices = part.slices
    files = tuple(Path(file) for file in dict.fromkeys(one.file for one in slices))
    folder = _below(source, os.path.commonpath([os.path.dirname(file) for file in files]))
    # Without a series UID the slices themselves say which scan it is, wherever it lies.
    identity = f"series:{uid}" if uid else f"slices:{','.join(sorted(_instances(source, slices)))}"
    what = "slices" if part.placed or not kind else "pictures"
    return Scan(
        source=f"{folder} ({len(slices)} {what})",
        path=files[0].parent,
        identity=f"study:{study}:{identity}"
        + (f":part:{part.name}" if part.name else "")
        + (f":patient:{patient}" if patient else "")
        + (f":no scan:{kind}" if kind else ""),  # a dose sheet has the UID of the series it lies in
        files=files,
        subject=patient or (f"study:{study}" if study else ""),
        session=study,
        identifying=tuple(
            sorted({word for one in {id(s.common): s.common for s in slices}.values() for word in one.identifying})
        ),
        facts=facts_of(part),
    )


def _with_patients(scans: Sequence[Scan], keys: Iterable[_Key]) -> tuple[list[Scan], tuple[str, ...]]:
    """Scans without a PatientID become those of the patient of their study, where its other series name one only.

    Their identity stays: it must be the same where they are found without the other series.

    Returns:
        The scans, and a remark on how many have a patient now.
    """
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for study, _, _, patient in keys:
        if study and patient:
            patients[study].add(patient)
    found: list[Scan] = []
    adopted = 0
    for scan in scans:
        if scan.subject == f"study:{scan.session}" and len(patients[scan.session]) == 1:
            (patient,) = patients[scan.session]
            scan = replace(scan, subject=patient)
            adopted += 1
        found.append(scan)
    told = f"{adopted} scans without a PatientID have that of the other series of their study."
    return found, (told,) if adopted else ()


def _instances(source: Path, slices: Sequence[Slice]) -> set[str]:
    return {one.instance or _below(source, one.file) for one in slices}


def _told_apart(scans: Sequence[Scan]) -> tuple[Scan, ...]:
    """The scans with the number of their series where their folder and size do not tell them apart."""
    count = Counter(scan.source for scan in scans)
    seen: Counter[str] = Counter()
    told: list[Scan] = []
    for scan in scans:
        if count[scan.source] > 1 and scan.facts is not None:
            seen[scan.source] += 1
            number = scan.facts.series_number
            which = f"series {number}, " if number is not None else ""
            name = f"{scan.source[:-1]}, {which}number {seen[scan.source]} of {count[scan.source]})"
            scan = replace(scan, source=name)
        told.append(scan)
    return tuple(told)
