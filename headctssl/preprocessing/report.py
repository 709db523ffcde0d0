"""Report: preprocessing_report.json, what became of every case that did not go straight through."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headctssl.settings import Settings

__all__ = ["CaseFailure", "CaseNote", "PreprocessingReport"]


class CaseFailure(Settings):
    """A case that was left out, and why."""

    case_id: str
    what: str = Field(description="What failed.")
    got: str = ""
    expected: str = ""
    do: str = Field("", description="What to do about it.")

    @property
    def line(self) -> str:
        """The failure in one line."""
        parts = [" ".join(self.what.split())]
        parts += [f"got {self.got}"] if self.got else []
        parts += [f"expected {self.expected}"] if self.expected else []
        return f"case '{self.case_id}': " + "; ".join(parts)


class CaseNote(Settings):
    """Something that was noticed about a case that was stored or removed."""

    case_id: str
    note: str


class PreprocessingReport(Settings):
    """preprocessing_report.json: the cases left out are here with their reason; the stored ones are in cases.csv."""

    format: Literal[1] = 1
    dataset_id: int = Field(ge=1)
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    storage_id: str = Field(description="Folder of the stored cases.")
    storage_digest: str = Field(description="Digest of the storage rule.")
    num_cases: int = Field(ge=0, description="Cases of the raw dataset.")
    num_written: int = Field(ge=0, description="Cases written this time.")
    num_kept: int = Field(ge=0, description="Cases kept: storage rule, size and modification time unchanged.")
    num_removed: int = Field(0, ge=0, description="Stored cases removed: they are no longer in cases.csv.")
    failures: tuple[CaseFailure, ...] = Field(description="Cases left out.")
    notes: tuple[CaseNote, ...] = Field((), description="What was noticed about stored and removed cases.")
    verified: bool = Field(False, description="Whether sources' SHA-256 and stored CRC-32 sums were checked.")
    seconds: float = Field(ge=0, description="Time taken.")

    @property
    def num_stored(self) -> int:
        """Cases that can be used."""
        return self.num_written + self.num_kept
