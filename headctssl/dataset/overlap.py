"""Overlap: images and patients that a raw dataset has twice or shares with another; contradicting labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import source_digest
from headctssl.dataset.manifest import cases_from_images
from headctssl.dataset.table import Fault, label_value, read_table
from headctssl.errors import DataError
from headctssl.types import Volume

__all__ = ["contradicting_labels", "repeated_images", "shared_with_others", "voxel_digest"]

_KEYED = re.compile(r"subject_[0-9a-f]{16}")
"""A subject id that `headct_convert` made. Only these mean the same patient in two datasets: any two may have a P1."""

_SHOWN = 3


def voxel_digest(volume: Volume) -> str:
    """SHA-256 of the voxels and their spacing: the same for the same scan, however it is stored."""
    digest = hashlib.sha256(repr((volume.hu.shape, tuple(round(s, 3) for s in volume.spacing_mm))).encode())
    digest.update(np.ascontiguousarray(volume.hu).data)
    return digest.hexdigest()


def repeated_images(cases: pd.DataFrame, digests: Mapping[str, str]) -> list[Fault]:
    """Cases whose voxels are those of an earlier case.

    Args:
        cases: the table.
        digests: `voxel_digest` by case id.
    """
    rows = _rows(cases)
    first: dict[str, str] = {}
    faults = []
    for case_id in rows:
        digest = digests.get(case_id)
        other = first.setdefault(digest, case_id) if digest else case_id
        if other == case_id:
            continue
        got = f"the voxels of case '{other}'"
        if rows[case_id]["subject_id"] != rows[other]["subject_id"]:
            known = all(rows[case]["subject_id"] != case for case in (case_id, other))
            got += ", which has another subject" if known else "; of one of them no subject is known"
        if rows[case_id]["split"] != rows[other]["split"]:
            got += f", which is in the split '{rows[other]['split'] or 'empty'}'"
        faults.append(
            Fault(
                case_id,
                "the image is in the dataset twice.",
                got=got,
                expected="every scan once",
                do="Remove one of the two lines; where the subjects differ, find out whose scan it is.",
            )
        )
    return faults


def _rows(cases: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Subject, split and image by case id; a case without a subject is its own."""
    wanted = cases.reindex(columns=["case_id", "subject_id", "split", "image"], fill_value="")
    return {
        str(case_id): {"subject_id": str(subject) or str(case_id), "split": str(split), "image": str(image)}
        for case_id, subject, split, image in wanted.itertuples(index=False)
    }


def contradicting_labels(cases: pd.DataFrame, labels: Sequence[LabelSpec]) -> list[Fault]:
    """Labels of classes that differ between scans of one session, which show the same head at the same time.

    Args:
        cases: the table.
        labels: continuous ones are passed over: two measurements differ.
    """
    if not {"case_id", "session_id"} <= set(cases.columns):
        return []
    faults = []
    for spec in labels:
        if spec.type == "continuous" or spec.name not in cases.columns:
            continue
        # A session is one subject's: written by hand, every subject may have a session 1.
        first: dict[tuple[str, str], tuple[str, str]] = {}
        wanted = cases.reindex(columns=["case_id", "subject_id", "session_id", spec.name], fill_value="")
        for case_id, subject, session, text in wanted.itertuples(index=False):
            if not session or not text:
                continue
            key = (str(subject) or str(case_id), str(session))
            other, before = first.setdefault(key, (str(case_id), str(text)))
            if label_value(spec, str(text)) != label_value(spec, before):
                faults.append(
                    Fault(
                        str(case_id),
                        f"the label '{spec.name}' contradicts another scan of its session.",
                        got=f"'{text}' here, '{before}' in case '{other}'",
                        expected="one value for the scans of one session",
                        do="Correct one of the two, or leave the wrong one empty.",
                    )
                )
    return faults


@dataclass
class _Shared:
    """What two datasets have in common: pairs of (case here, case there)."""

    name: str  # of the other dataset
    images: list[tuple[str, str]]
    subjects: list[tuple[str, str]]  # one pair per patient


def shared_with_others(folder: Path, cases: pd.DataFrame) -> tuple[list[Fault], list[str]]:
    """Images and patients that another dataset of the same raw data root has too.

    Images are compared by their files: equal sizes first, then SHA-256. Patients are compared by the
    keyed ids of `headct_convert`.

    Args:
        folder: the dataset.
        cases: its table.

    Returns:
        Faults where one side is in the split `test` and the other is not; remarks on the rest.
    """
    here = _rows(cases)
    sizes: dict[int, list[str]] = {}
    for case_id, row in here.items():
        path = folder / row["image"]
        if row["image"] and path.is_file():
            sizes.setdefault(path.stat().st_size, []).append(case_id)
    faults: list[Fault] = []
    remarks: list[str] = []
    digests: dict[Path, str] = {}
    for other in sorted(path.parent for path in folder.parent.glob("Dataset*/dataset.json")):
        if other == folder:
            continue
        try:
            table = read_table(other / "cases.csv") if (other / "cases.csv").exists() else cases_from_images(other)
        except DataError as error:
            remarks.append(f"{other.name} was not compared with: {error.what}")
            continue
        there = _rows(table)
        shared = _Shared(
            other.name, _same_images(folder, here, sizes, other, there, digests), _same_subjects(here, there)
        )
        faults += _leaks(shared, here, there)
        remarks += _told(shared)
    return faults, remarks


def _same_images(
    folder: Path,
    here: Mapping[str, Mapping[str, str]],
    sizes: Mapping[int, Sequence[str]],
    other: Path,
    there: Mapping[str, Mapping[str, str]],
    digests: dict[Path, str],
) -> list[tuple[str, str]]:
    def digest(path: Path) -> str:
        if path not in digests:
            digests[path] = source_digest(path)[0]
        return digests[path]

    found = []
    for name, row in there.items():
        path = other / row["image"]
        if not row["image"] or not path.is_file():
            continue
        for case_id in sizes.get(path.stat().st_size, ()):
            if digest(folder / here[case_id]["image"]) == digest(path):
                found.append((case_id, name))
    return found


def _same_subjects(
    here: Mapping[str, Mapping[str, str]], there: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str]]:
    """One pair of cases per patient; a pair that stands on two sides of a test split before any other."""
    of_subject: dict[str, list[str]] = {}
    for name, row in there.items():
        of_subject.setdefault(row["subject_id"], []).append(name)
    found: dict[str, tuple[str, str]] = {}
    for case_id, row in here.items():
        subject = row["subject_id"]
        if not _KEYED.fullmatch(subject):
            continue
        for name in of_subject.get(subject, ()):
            if subject not in found or _is_leak(row["split"], there[name]["split"]):
                found[subject] = (case_id, name)
    return list(found.values())


def _is_leak(one: str, other: str) -> bool:
    return bool(one and other) and (one == "test") != (other == "test")


def _leaks(
    shared: _Shared, here: Mapping[str, Mapping[str, str]], there: Mapping[str, Mapping[str, str]]
) -> list[Fault]:
    faults = []
    for what, pairs in (("image", shared.images), ("subject", shared.subjects)):
        for case_id, name in pairs:
            one, other = here[case_id]["split"], there[name]["split"]
            if _is_leak(one, other):
                faults.append(
                    Fault(
                        case_id,
                        f"its {what} is in another dataset, on the other side of a test split.",
                        got=f"'{one}' here, '{other}' in case '{name}' of {shared.name}",
                        expected="a test set that no training has seen",
                        do="Give both the same split, or do not use the two datasets together.",
                    )
                )
    return faults


def _told(shared: _Shared) -> Iterable[str]:
    for what, pairs in (("images", shared.images), ("subjects", shared.subjects)):
        if pairs:
            names = ", ".join(f"'{a}' = '{b}'" for a, b in pairs[:_SHOWN]) + (" ..." if len(pairs) > _SHOWN else "")
            yield f"{len(pairs)} {what} are in {shared.name} too: {names}."
