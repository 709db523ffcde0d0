"""Index: the list of stored cases of one storage folder, cases.csv, rebuilt from the files when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.errors import DataError
from headctssl.preprocessing.index_table import INDEX_NAME, IndexRow, IndexTable, read_table, write_index
from headctssl.types import Triple
from headctssl.volume.store import CaseMeta, StoredCase

__all__ = [
    "INDEX_NAME",
    "CaseIndex",
    "IndexRow",
    "case_of_file",
    "case_path",
    "mask_path",
    "read_index",
    "rebuild_index",
    "row_of_file",
    "row_of_meta",
    "sources_digest",
    "stored_files",
    "write_index",
]


def case_path(folder: Path, case_id: str) -> Path:
    """Where a case lies: ``hh/CASE.b2nd``, hh = first 2 hex digits of the SHA-256 of its id."""
    return folder / hashlib.sha256(case_id.encode()).hexdigest()[:2] / f"{case_id}.b2nd"


def mask_path(folder: Path, case_id: str, mask: str) -> Path:
    """Where a mask of a case lies: ``hh/CASE.<mask>.b2nd``."""
    return case_path(folder, case_id).with_name(f"{case_id}.{mask}.b2nd")


def stored_files(folder: Path) -> list[Path]:
    """Every stored case and mask of a storage folder, sorted; files being written are not among them."""
    return sorted(path for path in folder.glob("??/*.b2nd") if path.name[0] != ".")


def case_of_file(folder: Path, path: Path) -> tuple[str, str] | None:
    """The case that a stored file belongs to, and its mask, "" for the case itself; None for a file that is neither.

    Names alone do not tell: ``X.head.b2nd`` may be the mask of X or a case X.head. The folder does. Dots elsewhere in a
    name, as of a DICOM identifier, are of the case.
    """
    name = path.name.removesuffix(".b2nd")
    case_id, _, mask = name.rpartition(".")
    if mask in ("head", *MASK_COLUMNS) and case_path(folder, case_id).parent == path.parent:
        return case_id, mask
    return (name, "") if case_path(folder, name) == path else None


class _Rows(Sequence[IndexRow]):
    """The lines of an index as objects, each made when it is asked for."""

    def __init__(self, table: IndexTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table.case_ids)

    @overload
    def __getitem__(self, which: int) -> IndexRow: ...

    @overload
    def __getitem__(self, which: slice) -> Sequence[IndexRow]: ...

    def __getitem__(self, which: int | slice) -> IndexRow | Sequence[IndexRow]:
        positions = range(len(self))[which]
        return self._table.row(positions) if isinstance(positions, int) else [self._table.row(i) for i in positions]

    def __iter__(self) -> Iterator[IndexRow]:
        return map(self._table.row, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(IndexRow.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list


class CaseIndex:
    """The stored cases of one storage folder, in the order of their ids.

    Args:
        folder: the storage folder.
        cases: their lines, or the columns of these.
    """

    def __init__(self, folder: Path, cases: Sequence[IndexRow] | IndexTable) -> None:
        self.folder = folder
        self.table = cases if isinstance(cases, IndexTable) else IndexTable.of(cases)

    @classmethod
    def open(cls, storage_folder: Path) -> CaseIndex:
        """Read cases.csv of a storage folder.

        Raises:
            DataError: there is no index, or it does not have the expected columns.
        """
        return cls(storage_folder, read_table(storage_folder))

    @property
    def case_ids(self) -> list[str]:
        """The ids, in order."""
        return self.table.case_ids

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Voxels (z, y, x) of every case, (n, 3)."""
        return self.table.shapes

    @property
    def head_boxes(self) -> NDArray[np.int64]:
        """Start and stop (z, y, x) of every head in stored voxels, (n, 3, 2)."""
        return self.table.head_boxes

    @property
    def rows(self) -> Sequence[IndexRow]:
        """The lines as objects; where one field of every case is wanted, the columns of `table` are faster."""
        return _Rows(self.table)

    @property
    def spacing_mm(self) -> Triple:
        """Storage spacing (z, y, x) in mm, the same for all cases.

        Raises:
            DataError: the index is empty.
        """
        if not len(self):
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
        return self.rows[0].storage_digest if len(self) else ""

    def __len__(self) -> int:
        return len(self.case_ids)

    def path(self, position: int) -> Path:
        """The file of the case at a position."""
        return case_path(self.folder, self.case_ids[position])

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {case_id: i for i, case_id in enumerate(self.case_ids)}

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
        chosen = [i for i, case_id in enumerate(self.case_ids) if case_id in wanted]
        return CaseIndex(self.folder, self.table.take(np.array(chosen, np.int64)))

    def digest(self) -> str:
        """SHA-256 over the sorted SHA-256 sums of the sources, first 16 hex digits. Holds no case id."""
        return sources_digest([self])


def sources_digest(indexes: Sequence[CaseIndex]) -> str:
    """SHA-256 over the sorted SHA-256 sums of the sources of several indexes, first 16 hex digits."""
    sums = np.sort(np.concatenate([np.empty(0, "S64"), *(index.table.source_sha256 for index in indexes)]))
    return hashlib.sha256(b"\n".join(sums.tolist())).hexdigest()[:16]


def read_index(folder: Path) -> Sequence[IndexRow]:
    """The lines of cases.csv of a storage folder; errors as `CaseIndex.open`."""
    return CaseIndex.open(folder).rows


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
