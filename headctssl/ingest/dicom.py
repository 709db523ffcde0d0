"""DICOM: every CT series of a folder tree as one scan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from headctssl.dataset.dicom_series import is_dicom
from headctssl.ingest.scan import Found, Ignored, Scan
from headctssl.ingest.verdict import ScanVerdict

__all__ = ["find_scans"]

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "PatientID",
    "PatientAge",
    "PatientSex",
    "StudyDescription",
    "ContrastBolusAgent",
]
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_OLDEST = 90  # ages above are rare enough to identify; they are stored as 90
_YEARS_PER = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass
class _Series:
    """The files of one series while the tree is walked."""

    header: pydicom.Dataset  # of the first file
    files: dict[str, Path] = field(default_factory=dict)  # SOP instance UID -> file
    copies: int = 0


def find_scans(source: Path) -> Found:
    """Walk a tree and group its CT slices by study and series UID, those without a series UID by folder.

    Localisers, secondary captures and other modalities are ignored and listed. Copies of one slice
    (the same SOP instance UID) count once.

    Args:
        source: a folder.

    Returns:
        One scan per series. Subject, session and case are identified by PatientID and UIDs, which
        `convert` replaces by keyed hashes. Columns: age (years, at most 90), sex, contrast and
        study_description. No name, date or number.
    """
    series: dict[tuple[str, str, str], _Series] = {}
    others: Counter[str] = Counter()
    rejected: list[ScanVerdict] = []
    for file in _files(source):
        relative = file.relative_to(source).as_posix()
        header = _header(file)
        if header is None:
            if file.suffix.lower() in _DICOM_SUFFIXES or is_dicom(file):
                rejected.append(
                    ScanVerdict(source=relative, status="reject", reasons=("The file is not readable DICOM.",))
                )
            else:
                others["files that are not DICOM" if os.access(file, os.R_OK) else "files that cannot be opened"] += 1
            continue
        reason = _not_a_scan(header)
        if reason:
            others[reason] += 1
            continue
        uid = str(header.get("SeriesInstanceUID", "") or "")
        # Files that name no series belong together when they lie together.
        key = (str(header.get("StudyInstanceUID", "") or ""), uid, "" if uid else file.parent.as_posix())
        entry = series.setdefault(key, _Series(header))
        instance = str(header.get("SOPInstanceUID", "")) or relative
        if instance in entry.files:
            entry.copies += 1
        entry.files.setdefault(instance, file)
    copies = sum(entry.copies for entry in series.values())
    return Found(
        scans=tuple(_scan(source, key, series[key]) for key in series),
        ignored=tuple(Ignored("", f"{count} {reason}") for reason, count in sorted(others.items())),
        rejected=tuple(rejected),
        remarks=(f"{copies} slices were there more than once and were taken once.",) if copies else (),
    )


def _files(source: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(source, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name != "DICOMDIR":
                yield Path(parent) / name


def _header(file: Path) -> pydicom.Dataset | None:
    """The header of a DICOM file, None when it is none or damaged."""
    try:
        if not is_dicom(file):
            return None
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        for tag in _TAGS:  # values are parsed when they are used: here, where one that cannot be is told
            header.get(tag)
        return header
    except Exception:  # pydicom raises errors of many types on damaged files; the caller names the file
        return None


def _not_a_scan(header: pydicom.Dataset) -> str:
    """Why a readable DICOM file is no slice of a CT scan, '' when it is one."""
    modality = str(header.get("Modality", "")) or "unknown"
    if modality != "CT":
        return f"files of modality {modality}"
    if str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE):
        return "secondary captures"
    image_type = header.get("ImageType") or ()
    if "LOCALIZER" in [str(part).upper() for part in ([image_type] if isinstance(image_type, str) else image_type)]:
        return "localisers"
    return ""


def _scan(source: Path, key: tuple[str, str, str], entry: _Series) -> Scan:
    files = tuple(entry.files[instance] for instance in entry.files)
    folder = files[0].parent.relative_to(source).as_posix()
    header = entry.header
    study, uid, _ = key
    columns = (
        ("age", _age(str(header.get("PatientAge", "") or ""))),
        ("sex", _sex(str(header.get("PatientSex", "") or ""))),
        ("study_description", " ".join(str(header.get("StudyDescription", "") or "").split())),
        ("contrast", "yes" if str(header.get("ContrastBolusAgent", "") or "").strip() else ""),
    )
    return Scan(
        source=f"{folder} ({len(files)} slices)",
        path=files[0].parent,
        # Without a series UID the slices themselves say which scan it is, wherever it lies.
        identity=f"study:{study}:series:{uid}" if uid else f"study:{study}:slices:{','.join(sorted(entry.files))}",
        files=files,
        subject=str(header.get("PatientID", "") or "").strip() or (f"study:{study}" if study else ""),
        session=study,
        columns=tuple((name, value) for name, value in columns if value),
    )


def _age(text: str) -> str:
    """PatientAge (nnnD, nnnW, nnnM, nnnY) in years, at most 90; '' when it does not parse."""
    text = text.strip().upper()
    if len(text) < 2 or text[-1] not in _YEARS_PER or not text[:-1].isdigit():
        return ""
    return f"{min(_OLDEST, int(text[:-1]) * _YEARS_PER[text[-1]]):.3g}"


def _sex(text: str) -> str:
    return text.strip().upper() if text.strip().upper() in ("M", "F", "O") else ""
