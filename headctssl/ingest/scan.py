"""Scan: what a converter finds in a source, and keyed hashes in place of names."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from headctssl.contract import LabelSpec
from headctssl.errors import DataError
from headctssl.ingest.verdict import ScanVerdict

__all__ = ["KEY_FILE", "Found", "Ignored", "Scan", "keyed_hash", "subject_key"]

KEY_FILE = ".subject_key"
_KEY_BYTES = 32


@dataclass(frozen=True)
class Scan:
    """One scan of a source, not read yet."""

    source: str  # path relative to the source, for the report
    path: Path  # the file, or the folder of the first slice
    identity: str  # the same for the same scan wherever it lies; hashed into the case id
    files: tuple[Path, ...] = ()  # DICOM slices; () = `path` is read
    subject: str = ""  # whose scan it is, in the clear; hashed; '' = its own subject
    session: str = ""  # which visit, in the clear; hashed
    columns: tuple[tuple[str, str], ...] = ()  # further cells of cases.csv


@dataclass(frozen=True)
class Ignored:
    """Something in a source that is no scan by its nature, or is a scan that is there already."""

    source: str
    reason: str


@dataclass(frozen=True)
class Found:
    """Everything a converter found."""

    scans: tuple[Scan, ...]
    ignored: tuple[Ignored, ...] = ()
    rejected: tuple[ScanVerdict, ...] = ()  # what should be a scan and cannot be
    labels: tuple[LabelSpec, ...] = ()
    remarks: tuple[str, ...] = ()


def keyed_hash(key: bytes, text: str) -> str:
    """HMAC-SHA-256 of a name or id under a secret key, first 16 hex digits.

    Without the key nobody can find the name by hashing candidates.
    """
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]


def subject_key(raw_root: Path, *, create: bool) -> bytes:
    """The secret key of a raw data root, kept in `.subject_key`, readable by its owner only.

    With the key the same patient gets the same subject id in a later import; keep it with the
    dataset and share neither.

    Args:
        raw_root: the folder `headctssl_raw` names.
        create: write a new key when there is none; else a key for this call only is used.

    Raises:
        DataError: the file does not hold a key.
    """
    path = raw_root / KEY_FILE
    if not path.exists():
        key = secrets.token_bytes(_KEY_BYTES)
        if create:
            raw_root.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:  # another import wrote it at the same moment
                return subject_key(raw_root, create=False)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(key.hex() + "\n")
        return key
    text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise DataError(
            f"{path} does not hold a key.",
            got=f"{len(text)} characters",
            expected=f"{2 * _KEY_BYTES} hexadecimal digits",
            do="Put the key back that was used for this data root; with a new key subjects get other ids.",
        )
    return key
