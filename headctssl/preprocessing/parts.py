"""Parts: which cases of a dataset one job of a job array has, and what each job leaves for the index of the whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headctssl.dataset.manifest import RawDataset
from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.errors import DataError, UsageError
from headctssl.preprocessing.index import IndexRow, read_index, write_index
from headctssl.preprocessing.report import REPORT_NAME, PreprocessingReport
from headctssl.settings import read_json, write_json

__all__ = ["Part", "cases_digest", "finished_parts", "forget_part", "forget_parts", "keep_part", "rows_of_parts"]

_FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """One job of an array of `of` jobs, numbered from 1; the whole dataset is part 1 of 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def asked(cls, part: int | None, parts: int | None) -> Part:
        """The part that `--part` and `--parts` name.

        Raises:
            UsageError: one of them is missing, or the number is not between 1 and `parts`.
        """
        if part is None and parts is None:
            return cls()
        if part is None or parts is None or not 1 <= part <= parts:
            raise UsageError(
                "--part and --parts do not name a part.",
                got=" ".join(f"{flag} {n}" for flag, n in (("--part", part), ("--parts", parts)) if n is not None),
                expected="both of them, and a part from 1 to the number of parts",
                do="In a Slurm job array of 16: --array=1-16, and --part $SLURM_ARRAY_TASK_ID --parts 16.",
            )
        return cls(part, parts)

    @property
    def whole(self) -> bool:
        """Whether this is the whole dataset."""
        return self.of == 1

    def has(self, case_id: str) -> bool:
        """Whether a case is of this part: a matter of its id alone, whatever other cases there are."""
        digest = hashlib.sha256(f"part\x1f{case_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"


def cases_digest(raw: RawDataset) -> str:
    """SHA-256 over ids, images and masks of all cases, first 16 hex digits: parts of one list have the same."""
    columns = [c for c in ("case_id", "image", *MASK_COLUMNS) if c in raw.cases.columns]
    digest = hashlib.sha256("\x1f".join(columns).encode())
    for column in columns:
        digest.update("\x1f".join(map(str, raw.cases[column])).encode())
    return digest.hexdigest()[:16]


def _folder(storage: Path, part: Part) -> Path:
    return storage / _FOLDER / f"{part.number}_of_{part.of}"


def keep_part(storage: Path, part: Part, rows: Iterable[IndexRow], report: PreprocessingReport) -> Path:
    """Write what a part has done; the report comes last, so that a part is done as a whole or not at all."""
    folder = _folder(storage, part)
    write_index(folder, rows)
    write_json(folder / REPORT_NAME, report)
    return folder


def forget_part(storage: Path, part: Part) -> None:
    """Remove what a part left: it is at work again."""
    (_folder(storage, part) / REPORT_NAME).unlink(missing_ok=True)


def forget_parts(storage: Path) -> None:
    """Remove what all parts left: the index of the whole says it now."""
    # What another command removes or makes at this moment is no matter: only a part with a report counts.
    shutil.rmtree(storage / _FOLDER, ignore_errors=True)


def finished_parts(storage: Path, of: int, digest: str, cases: str) -> tuple[PreprocessingReport, ...] | None:
    """The reports of all parts, or None while one of them is missing or of another rule or list of cases.

    Args:
        storage: the storage folder.
        of: how many parts there are.
        digest: of the storage rule.
        cases: as `cases_digest` gives it.

    Raises:
        DataError: a report does not fit its schema.
    """
    reports = []
    for number in range(1, of + 1):
        path = _folder(storage, Part(number, of)) / REPORT_NAME
        if not path.is_file():
            return None
        report = read_json(path, PreprocessingReport, do=f"Run --part {number} --parts {of} again.")
        if (report.storage_digest, report.cases_digest) != (digest, cases):
            return None
        reports.append(report)
    return tuple(reports)


def rows_of_parts(storage: Path, of: int) -> list[IndexRow]:
    """The index lines of all parts.

    Raises:
        DataError: a list is missing or damaged; the part is named.
    """
    rows: list[IndexRow] = []
    for number in range(1, of + 1):
        try:
            rows.extend(_read(_folder(storage, Part(number, of))))
        except DataError as error:
            raise DataError(
                f"What part {number} of {of} did cannot be read.",
                got=f"{error.what} {error.got or ''}",
                expected="the list of its cases",
                do=f"Run --part {number} --parts {of} again: what it stored is kept.",
            ) from None
    return rows


def _read(folder: Path) -> Sequence[IndexRow]:
    return read_index(folder)
