"""Index: the list of stored cases of one storage folder, cases.csv, rebuilt from the files when needed."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import DataError
from headctssl.paths import atomic_path
from headctssl.types import Triple
from headctssl.volume.store import CaseMeta, StoredCase

__all__ = [
    "CaseIndex",
    "IndexRow",
    "case_of_file",
    "case_path",
    "mask_path",
    "read_index",
    "rebuild_index",
    "row_of_file",
    "stored_files",
    "write_index",
]

INDEX_NAME = "cases.csv"
_AXES = ("z", "y", "x")
_COLUMNS = (
    "case_id",
    *(f"shape_{a}" for a in _AXES),
    *(f"head_{a}_{end}" for a in _AXES for end in ("start", "stop")),
    *(f"spacing_{a}_mm" for a in _AXES),
    "masks",
    "source_sha256",
    "source_size",
    "source_mtime_ns",
    "storage_digest",
)


@dataclass(frozen=True)
class IndexRow:
    """One line of cases.csv. Holds no path: where a case lies follows from its id."""

    case_id: str
    shape: tuple[int, int, int]  # voxels (z, y, x)
    head_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) in stored voxels
    spacing_mm: Triple
    masks: tuple[str, ...]
    source_sha256: str
    source_size: int
    source_mtime_ns: int
    storage_digest: str


def case_path(folder: Path, case_id: str) -> Path:
    """Where a case lies: ``hh/CASE.b2nd``, hh = first 2 hex digits of the SHA-256 of its id."""
    return folder / hashlib.sha256(case_id.encode()).hexdigest()[:2] / f"{case_id}.b2nd"


def mask_path(folder: Path, case_id: str, mask: str) -> Path:
    """Where a mask of a case lies: ``hh/CASE.<mask>.b2nd``."""
    return case_path(folder, case_id).with_name(f"{case_id}.{mask}.b2nd")


def stored_files(folder: Path) -> list[Path]:
    """Every stored case and mask of a storage folder, sorted; files being written are not among them."""
    return sorted(path for path in folder.glob("??/*.b2nd") if path.name[0] != ".")


def case_of_file(folder: Path, path: Path) -> str | None:
    """The case that a stored case or mask belongs to; None when it lies where no case would put it.

    Names alone do not tell: ``X.head.b2nd`` may be the mask of X or a case X.head. The folder does.
    """
    parts = path.name.removesuffix(".b2nd").split(".")
    names = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next((name for name in names if case_path(folder, name).parent == path.parent), None)


class CaseIndex:
    """The stored cases of one storage folder, in the order of their ids."""

    def __init__(self, folder: Path, rows: Sequence[IndexRow]) -> None:
        self.folder = folder
        self.rows = tuple(rows)
        self.case_ids: list[str] = [row.case_id for row in self.rows]
        self.shapes: NDArray[np.int64] = np.array([row.shape for row in self.rows], dtype=np.int64).reshape(-1, 3)
        self.head_boxes: NDArray[np.int64] = np.array([row.head_box for row in self.rows], dtype=np.int64).reshape(
            -1, 3, 2
        )
        self._positions = {case_id: i for i, case_id in enumerate(self.case_ids)}

    @classmethod
    def open(cls, storage_folder: Path) -> CaseIndex:
        """Read cases.csv of a storage folder.

        Raises:
            DataError: there is no index, or it does not have the expected columns.
        """
        return cls(storage_folder, read_index(storage_folder))

    @property
    def spacing_mm(self) -> Triple:
        """Storage spacing (z, y, x) in mm, the same for all cases.

        Raises:
            DataError: the index is empty.
        """
        if not self.rows:
            raise DataError(
                f"No case is stored in {self.folder.name}.",
                got="an empty cases.csv",
                expected="at least one preprocessed case",
                do="See preprocessing_report.json for why each case was left out.",
            )
        return self.rows[0].spacing_mm

    @property
    def storage_digest(self) -> str:
        """Digest of the storage rule all cases were written with; empty for an empty index."""
        return self.rows[0].storage_digest if self.rows else ""

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, position: int) -> Path:
        """The file of the case at a position."""
        return case_path(self.folder, self.case_ids[position])

    def position(self, case_id: str) -> int:
        """The position of a case.

        Raises:
            DataError: the index does not have it.
        """
        if case_id not in self._positions:
            raise DataError(
                f"The case '{case_id}' is not stored.",
                got=f"{len(self)} other cases in {self.folder.name}",
                expected=f"the case '{case_id}'",
                do="See preprocessing_report.json for the reason, or run headct_plan_and_preprocess again.",
            )
        return self._positions[case_id]

    def subset(self, case_ids: Iterable[str]) -> CaseIndex:
        """The cases of `case_ids` that are stored, in the index's order; ids without a stored case are left out."""
        wanted = set(case_ids)
        return CaseIndex(self.folder, [row for row in self.rows if row.case_id in wanted])

    def digest(self) -> str:
        """SHA-256 over the sorted SHA-256 sums of the sources, first 16 hex digits. Holds no case id."""
        text = "\n".join(sorted(row.source_sha256 for row in self.rows))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_index(folder: Path, rows: Iterable[IndexRow]) -> Path:
    """Write cases.csv atomically, sorted by case id."""
    path = folder / INDEX_NAME
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in sorted(rows, key=lambda r: r.case_id):
            box = [side for axis in row.head_box for side in axis]
            writer.writerow(
                [
                    row.case_id,
                    *row.shape,
                    *box,
                    *(repr(s) for s in row.spacing_mm),
                    " ".join(row.masks),
                    row.source_sha256,
                    row.source_size,
                    row.source_mtime_ns,
                    row.storage_digest,
                ]
            )
    return path


def read_index(folder: Path) -> list[IndexRow]:
    """Read cases.csv of a storage folder.

    Raises:
        DataError: there is no index, or a line does not have the expected columns.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise DataError(
            f"There is no index of preprocessed cases in {folder.name}.",
            got=f"no {INDEX_NAME}",
            expected="the index that preprocessing writes",
            do="Run headct_plan_and_preprocess -d N.",
        )
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.reader(handle)
        header = next(reader, [])
        if tuple(header) != _COLUMNS:
            raise DataError(
                f"{path} does not have the expected columns.",
                got=", ".join(header),
                expected=", ".join(_COLUMNS),
                do="Delete it and run headct_plan_and_preprocess again: it is rebuilt from the stored cases.",
            )
        return [_parse(path, number, line) for number, line in enumerate(reader, start=2)]


def _parse(path: Path, number: int, line: Sequence[str]) -> IndexRow:
    try:
        values = dict(zip(_COLUMNS, line, strict=True))
        z, y, x = (int(values[f"shape_{a}"]) for a in _AXES)
        bz, by, bx = ((int(values[f"head_{a}_start"]), int(values[f"head_{a}_stop"])) for a in _AXES)
        sz, sy, sx = (float(values[f"spacing_{a}_mm"]) for a in _AXES)
        return IndexRow(
            case_id=values["case_id"],
            shape=(z, y, x),
            head_box=(bz, by, bx),
            spacing_mm=(sz, sy, sx),
            masks=tuple(values["masks"].split()),
            source_sha256=values["source_sha256"],
            source_size=int(values["source_size"]),
            source_mtime_ns=int(values["source_mtime_ns"]),
            storage_digest=values["storage_digest"],
        )
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read at line {number}.",
            got=str(error),
            expected="the columns " + ", ".join(_COLUMNS),
            do="Delete it and run headct_plan_and_preprocess again: it is rebuilt from the stored cases.",
        ) from None


def row_of_file(case_id: str, path: Path) -> IndexRow:
    """The index line of a stored case, read from its file.

    Raises:
        CorruptCaseError: the file cannot be opened or has no metadata.
    """
    case = StoredCase(path)
    return row_of_meta(case_id, case.shape[1:], case.meta)


def row_of_meta(case_id: str, shape: tuple[int, ...], meta: CaseMeta) -> IndexRow:
    """The index line of a case from its stored shape (z, y, x) and metadata."""
    return IndexRow(
        case_id=case_id,
        shape=(shape[0], shape[1], shape[2]),
        head_box=meta.head_box,
        spacing_mm=meta.spacing_mm,
        masks=meta.masks,
        source_sha256=meta.source_sha256,
        source_size=meta.source_size,
        source_mtime_ns=meta.source_mtime_ns,
        storage_digest=meta.storage_digest,
    )


def rebuild_index(folder: Path) -> CaseIndex:
    """Make cases.csv again from the stored files.

    A file CASE.NAME.b2nd is a mask when it lies in the folder of CASE and CASE lists NAME among its
    masks; a file that lies where neither a case nor a mask would be is passed over.

    Raises:
        CorruptCaseError: a stored case has no readable metadata; it is named.
    """
    rows: list[IndexRow] = []
    masks: set[Path] = set()
    for path in sorted(stored_files(folder), key=lambda p: (len(p.name), p.name)):
        case_id = path.name.removesuffix(".b2nd")
        if path in masks or path != case_path(folder, case_id):
            continue
        row = row_of_file(case_id, path)
        masks.update(mask_path(folder, case_id, mask) for mask in row.masks)
        rows.append(row)
    write_index(folder, rows)
    return CaseIndex.open(folder)
