"""Case facts: what the header of every case says, as columns, kept in cases_fingerprint.csv so that it is read once."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headctssl import __version__
from headctssl.dataset.image_io import ImageHeader
from headctssl.errors import HeadCTSSLError
from headctssl.paths import atomic_path
from headctssl.types import Triple

__all__ = ["CASES_NAME", "CaseFacts", "left_out_cases"]

CASES_NAME = "cases_fingerprint.csv"
_AXES = ("z", "y", "x")
_SHAPE = tuple(f"shape_{a}" for a in _AXES)
_SPACING = tuple(f"spacing_{a}_mm" for a in _AXES)
_HEAD = tuple(f"head_{a}_mm" for a in _AXES)
_REST = ("tilt_deg", "smallest_gap_mm", "largest_gap_mm")
_SOURCE = ("image", "source_size", "source_mtime_ns", "read_by", "source_format")
_COLUMNS = ("case_id", *_SHAPE, *_SPACING, *_REST, *_HEAD, "noticed", "left_out_because", *_SOURCE)
_DECIMALS = 6  # lengths are kept to a nanometre, so that they are the same read from a header and from the file


@dataclass
class CaseFacts:
    """Facts of n cases: 361,663 take 80 MB. Without a header the format is '' and the numbers are NaN or 0."""

    case_ids: list[str]
    images: list[str]  # relative to the dataset
    states: NDArray[np.int64]  # (n, 2), size in bytes and modification time in ns of the source; -1 = unknown
    formats: NDArray[np.object_]  # (n,), see `ImageHeader.source_format`
    shapes: NDArray[np.int64]  # (n, 3), voxels (z, y, x)
    spacings_mm: NDArray[np.float64]  # (n, 3)
    rest: NDArray[np.float64]  # (n, 3), tilt in degrees, smallest and largest slice gap in mm
    extents_mm: dict[int, Triple] = field(default_factory=dict)  # row -> sides of the head, of the sampled cases
    notes: dict[int, str] = field(default_factory=dict)  # row -> what was noticed
    faults: dict[int, HeadCTSSLError] = field(default_factory=dict)  # row -> why it is left out

    @classmethod
    def unread(cls, case_ids: Sequence[str], images: Sequence[str]) -> CaseFacts:
        """Cases of which nothing is known yet.

        Args:
            case_ids: the cases.
            images: where the image of each lies, relative to the dataset.
        """
        n = len(case_ids)
        return cls(
            list(case_ids),
            list(images),
            np.full((n, 2), -1, np.int64),
            np.full(n, "", object),
            np.zeros((n, 3), np.int64),
            np.full((n, 3), np.nan),
            np.full((n, 3), np.nan),
        )

    @property
    def good(self) -> NDArray[np.int64]:
        """The rows of the cases that can be used."""
        has = self.formats != ""
        has[list(self.faults)] = False
        return np.flatnonzero(has)

    @property
    def tilts_deg(self) -> NDArray[np.float64]:
        """Gantry tilt, (n,)."""
        return self.rest[:, 0]

    @property
    def gap_ranges_mm(self) -> NDArray[np.float64]:
        """Largest less smallest slice gap, (n,)."""
        return np.asarray(self.rest[:, 2] - self.rest[:, 1])

    def put(self, row: int, outcome: ImageHeader | HeadCTSSLError) -> None:
        """Note what became of reading a header."""
        self.faults.pop(row, None)
        if isinstance(outcome, HeadCTSSLError):
            self.faults[row] = outcome
            return
        gaps = outcome.slice_gaps_mm or (0.0,)
        self.formats[row] = outcome.source_format
        self.shapes[row] = outcome.shape
        self.spacings_mm[row] = np.round(outcome.spacing_mm, _DECIMALS)
        self.rest[row] = np.round((outcome.tilt_deg, gaps[0], gaps[-1]), _DECIMALS)

    def take_over(self, folder: Path) -> NDArray[np.int64]:
        """Take what cases_fingerprint.csv knows of cases whose source has not changed since; `states` must be known.

        A line of another version of headctssl, or a file that cannot be read, is not used: headers are read again.

        Args:
            folder: the dataset's folder under headctssl_preprocessed.

        Returns:
            The rows of the cases whose header has to be read.
        """
        earlier = _read(folder / CASES_NAME)
        if earlier is None or not len(earlier):
            return np.arange(len(self.case_ids))
        rows = pd.Index(earlier["case_id"]).get_indexer(pd.Index(self.case_ids))
        same = (rows >= 0) & (self.states[:, 0] >= 0)
        for name, values in (
            ("image", np.array(self.images, object)),
            ("source_size", self.states[:, 0]),
            ("source_mtime_ns", self.states[:, 1]),
        ):
            same &= earlier[name].to_numpy()[rows] == values
        same &= (earlier["read_by"] == __version__).to_numpy()[rows]
        same &= (earlier["source_format"] != "").to_numpy()[rows]
        here, there = np.flatnonzero(same), rows[same]
        self.formats[here] = earlier["source_format"].to_numpy(object)[there]
        self.shapes[here] = earlier[list(_SHAPE)].to_numpy(np.float64)[there].astype(np.int64)
        self.spacings_mm[here] = np.round(earlier[list(_SPACING)].to_numpy(np.float64)[there], _DECIMALS)
        self.rest[here] = np.round(earlier[list(_REST)].to_numpy(np.float64)[there], _DECIMALS)
        return np.flatnonzero(~same)

    def write(self, folder: Path) -> Path:
        """Write cases_fingerprint.csv: what the header of each case says, or why the case was left out."""
        read = (self.formats != "").tolist()
        known = np.concatenate([self.shapes.astype(object), self.spacings_mm.astype(object), self.rest], axis=1)
        empty = [""] * known.shape[1]
        numbers = [row if is_known else empty for row, is_known in zip(known.tolist(), read, strict=True)]
        heads = {row: [f"{side:.1f}" for side in sides] for row, sides in self.extents_mm.items()}
        why = {row: " ".join(fault.message.split()) for row, fault in self.faults.items()}
        path = folder / CASES_NAME
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(_COLUMNS)
            for row, (case_id, cells, image, state, kind) in enumerate(
                zip(self.case_ids, numbers, self.images, self.states.tolist(), self.formats, strict=True)
            ):
                head, note, because = heads.get(row, ["", "", ""]), self.notes.get(row, ""), why.get(row, "")
                writer.writerow([case_id, *cells, *head, note, because, image, *state, __version__, kind])
        return path


def _read(path: Path) -> pd.DataFrame | None:
    """What `CaseFacts.take_over` needs of the file; None when there is none of this format."""
    numbers = (*_SHAPE, *_SPACING, *_REST)
    texts = ("case_id", "image", "read_by", "source_format")
    kinds = {
        **dict.fromkeys(numbers, np.float64),
        **dict.fromkeys(texts, object),
        **dict.fromkeys(("source_size", "source_mtime_ns"), np.int64),
    }
    try:
        frame = pd.read_csv(
            path, usecols=list(kinds), dtype=kinds, keep_default_na=False, na_values={name: [""] for name in numbers}
        )
    except (OSError, ValueError):  # no such file, an earlier format, a damaged line: headers say it all again
        return None
    return frame if frame["case_id"].is_unique else None


def left_out_cases(folder: Path) -> set[str]:
    """Ids of the cases that the fingerprint left out; empty when there is no cases_fingerprint.csv.

    Args:
        folder: the dataset's folder under headctssl_preprocessed.
    """
    path = folder / CASES_NAME
    if not path.is_file():
        return set()
    columns = ["case_id", "left_out_because"]
    table = pd.read_csv(path, usecols=columns, dtype=object, na_filter=False)
    return set(table["case_id"][table["left_out_because"] != ""].tolist())
