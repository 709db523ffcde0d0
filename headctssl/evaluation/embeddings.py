"""Embeddings: vectors by case id that another model made, from a .csv or .npz file."""

from __future__ import annotations

import csv
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.errors import DataError, UsageError

__all__ = ["Embeddings", "read_embeddings"]

_EXPECTED = "a .csv with case_id and one column per number, or a .npz with case_id (n,) and vector (n, F)"

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, RuntimeError, csv.Error, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises; RuntimeError where a flipped bit says that it is encrypted."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors of cases."""

    file: Path
    case_ids: tuple[str, ...]
    vectors: NDArray[np.float64]  # (n, F), finite

    def require(self, case_ids: Sequence[str]) -> None:
        """Refuse where cases have no vector.

        Raises:
            DataError: it says how many.
        """
        missing = sorted(set(case_ids) - set(self.case_ids))
        if missing:
            raise DataError(
                f"{self.file.name} has no vector of {len(missing)} of {len(set(case_ids))} cases.",
                got="missing: " + ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""),
                expected="every labelled training, validation and test case",
                do="Compute the missing vectors. No case is left out for one model only: the table would compare"
                " different cases.",
            )

    def of(self, case_ids: Sequence[str]) -> NDArray[np.float64]:
        """(n, F) in the order of the ids, all of which have a vector."""
        row = {case_id: k for k, case_id in enumerate(self.case_ids)}
        return self.vectors[[row[case_id] for case_id in case_ids]]

    def digest(self) -> str:
        """SHA-256 over ids and vectors in the order of the ids, first 16 hex digits."""
        order = np.argsort(np.array(self.case_ids))
        sha = hashlib.sha256("\n".join(sorted(self.case_ids)).encode())
        sha.update(np.ascontiguousarray(self.vectors[order]).tobytes())
        return sha.hexdigest()[:16]


def read_embeddings(path: Path) -> Embeddings:
    """Read a file as headctssl.embed writes it, or any table of that form.

    Args:
        path: ``.csv`` or ``.npz``.

    Raises:
        UsageError: there is no such file, or it has another suffix.
        DataError: it is damaged, or has no ids or vectors, an id twice, an empty id, a column without a name, lines of
            different lengths or numbers that are not finite.
    """
    if not path.is_file() or path.suffix.lower() not in (".csv", ".npz"):
        raise UsageError(
            "The vectors cannot be read.",
            got=f"{path}, which is {'no file' if not path.is_file() else 'of another kind'}",
            expected=_EXPECTED,
            do="Correct --embeddings NAME=FILE.",
        )
    try:
        case_ids, vectors = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{path.name} does not hold vectors by case id.",
            got=str(error)[:200] or type(error).__name__,
            expected=_EXPECTED,
            do="Write it as headct_embed does.",
        ) from None
    _check(path, case_ids, vectors)
    return Embeddings(path, tuple(case_ids), vectors)


def _read_npz(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    with open(path, "rb") as handle:
        content = np.load(handle, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("one array without names")
        return [str(c).strip() for c in content["case_id"].tolist()], np.asarray(content["vector"], dtype=np.float64)


def _read_csv(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    with open(path, newline="", encoding="utf-8-sig") as handle:  # spreadsheets begin a file with a byte order mark
        names, *rows = [[cell.strip() for cell in row] for row in csv.reader(handle) if any(row)] or [[]]
    if "case_id" not in names:
        raise ValueError("no column case_id")
    if "" in names:
        raise ValueError(f"column {names.index('') + 1} has no name: a count of lines is no feature, write no index")
    if any(len(row) != len(names) for row in rows):
        raise ValueError("lines of different lengths")
    place = names.index("case_id")
    ids = [row[place] for row in rows]
    vectors = [[float(cell) for k, cell in enumerate(row) if k != place] for row in rows]
    return ids, np.array(vectors, dtype=np.float64).reshape(len(ids), len(names) - 1)


def _check(path: Path, case_ids: Sequence[str], vectors: NDArray[np.float64]) -> None:
    wrong = ""
    if vectors.ndim != 2 or len(vectors) != len(case_ids) or not vectors.size:
        wrong = f"{len(case_ids)} ids and an array of shape {vectors.shape}"
    elif len(set(case_ids)) < len(case_ids):
        wrong = f"{len(case_ids) - len(set(case_ids))} ids twice"
    elif "" in case_ids:
        wrong = f"{case_ids.count('')} vectors without an id"
    elif not np.isfinite(vectors).all():
        wrong = f"{int((~np.isfinite(vectors).all(axis=1)).sum())} vectors with NaN or infinity"
    if wrong:
        raise DataError(f"The vectors in {path.name} do not fit.", got=wrong, expected=_EXPECTED, do="Write it anew.")
