"""Privacy: keyed hashes in place of ids, days in place of dates, texts without names."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from headctssl.errors import DataError, UsageError

__all__ = [
    "KEY_FILE",
    "OLDEST",
    "capped_age",
    "is_date_column",
    "is_identifying_column",
    "key_check",
    "key_path",
    "keyed_hash",
    "parse_date",
    "scrub",
    "study_day",
    "subject_key",
    "without_paths",
]

KEY_FILE = ".subject_key"
_KEY_BYTES = 32

OLDEST = 90
"""Ages above are rare enough to identify; they are stored as 90."""

ORIGIN_DAYS = 365_250
"""The origin of a subject's days lies up to 1,000 years away, so that the number of a day hardly bounds its date."""

REMOVED = "#"
"""Stands where something was taken out of a text."""

_LONG_NUMBER = re.compile(r"\d{5,}")
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    # With the year first whatever stands beside it: 2020-02-29T10:15:00, scan_20200229, 20200229101500.
    r"(?<!\d)(?:19|20)\d\d(?:([-./_])\d{1,2}\1\d{1,2}|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{4}|\d{6})?)"
    r"(?:[T ]\d\d:?\d\d(?::?\d\d)?)?(?!\d)"
    r"|(?<![^\W_])(?:\d{1,4}([-./])\d{1,2}\2\d{1,4}"
    rf"|\d{{1,2}}[-. ]?{_MONTH}[-. ,]*\d{{2,4}}|{_MONTH}[-. ]?\d{{1,2}}[-. ,]+\d{{2,4}})(?![^\W_])",
    re.IGNORECASE,
)
_DATE_WORD = re.compile(
    r"(study|scan|series|acquisition|acq|content|exam|visit|admission|birth|death)?date(time|s)?|dob|birthday"
)
_PERSON = re.compile(
    r" (mrn|ssn|surname|initials|accession|telephone|phone|mobile|email|mail|address|street|postcode|zip|insurance"
    r"|(patient|subject|person|first|last|family|given|middle|full|maiden|physician|doctor|referrer|operator) ?names?"
    r"|patient ?(id|nr|no|number)) |^ names? $"
)
_PATH = re.compile(r"(?<![\w./])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":,]+[/\\])+[^/\\\s'\":,]*")


def keyed_hash(key: bytes, text: str) -> str:
    """HMAC-SHA-256 of a name or id under a secret key, first 16 hex digits.

    Without the key nobody can find the name by hashing candidates.
    """
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]


def key_check(key: bytes) -> str:
    """What a dataset keeps of its key, to notice another one; the key cannot be found from it."""
    return keyed_hash(key, "headctssl key check")


def key_path(raw_root: Path, key: str | Path | None) -> Path:
    """Where the key is: the file that was named, else `.subject_key` of the raw data root.

    Raises:
        UsageError: the path is a folder, or lies inside a dataset, where it would be shared with it.
    """
    path = raw_root / KEY_FILE if key is None else Path(key).expanduser()
    inside = any((parent / "dataset.json").exists() for parent in path.absolute().parents)
    if path.is_dir() or inside:
        raise UsageError(
            "This place is not one for a key.",
            got=f"--key {path}" + (", inside a dataset" if inside else ", a folder"),
            expected="a file outside every dataset",
            do="Keep the key where only you can read it, and share it with nobody who gets the dataset.",
        )
    return path


def subject_key(path: Path, *, create: bool) -> bytes:
    """The secret key that turns ids into hashes, readable by its owner only.

    With the key the same patient gets the same subject id in a later import; keep it, and share neither
    it nor the list of sources beside it.

    Args:
        path: the file of the key.
        create: write a new key when there is none; else a key for this call only is used.

    Raises:
        DataError: the file does not hold a key.
    """
    if not path.exists():
        key = secrets.token_bytes(_KEY_BYTES)
        return _written(path, key) if create else key
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
            do="Put the key back that was used before; with a new key subjects get other ids.",
        )
    return key


def _written(path: Path, key: bytes) -> bytes:
    """Write a new key, whole or not at all; the key of another import that wrote one at the same moment goes before.

    Raises:
        UsageError: the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(key.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails where another import wrote one at this moment; a rename would replace it
        except PermissionError:  # a file system without links
            os.replace(temporary, path)
    except FileExistsError:
        return subject_key(path, create=False)
    except OSError as error:
        raise UsageError(
            "The key cannot be written.",
            got=f"{path}: {error.strerror}",
            expected="a place for a file that only you can read",
            do="Name another place with --key.",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return key


def parse_date(text: str) -> datetime.date | None:
    """A date as DICOM (20200229) or ISO 8601 (2020-02-29, a time behind it is read over) writes it, else None."""
    found = re.match(r"(\d{4})-?(\d{2})-?(\d{2})(?=$|[T \d.])", text.strip())
    try:
        return datetime.date(*(int(part) for part in found.groups())) if found else None
    except ValueError:  # 20201345
        return None


def study_day(key: bytes, subject: str, date: str) -> str:
    """A date as days since a secret origin of the subject.

    Differences between two days of one subject are true; the date itself cannot be told without the
    key. The origin is a function of key and subject, so it is the same for scans that are added later.

    Args:
        key: the secret key.
        subject: whose date it is, in the clear.
        date: see `parse_date`.

    Returns:
        A whole number as text; '' for no date and for an unknown subject, whose only date has no interval.
    """
    day = parse_date(date)
    if day is None or not subject:
        return ""
    digest = hmac.new(key, f"origin:{subject}".encode(), hashlib.sha256).digest()
    origin = int.from_bytes(digest[:8], "big") % ORIGIN_DAYS
    return str(origin + (day - datetime.date(1900, 1, 1)).days)


def is_date_column(name: str) -> bool:
    """Whether a column holds dates by its name: `study_date`, `DateOfBirth`, `studydate`; not `candidate`."""
    return any(_DATE_WORD.fullmatch(word) for word in _column_words(name))


def is_identifying_column(name: str) -> bool:
    """Whether a column by its name tells who somebody is: `PatientName`, `mrn`, `Phone`; not `model_name`."""
    return bool(_PERSON.search(f" {' '.join(_column_words(name))} "))


def _column_words(name: str) -> list[str]:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", " ", name).lower().split()


def capped_age(text: str) -> str:
    """An age in years, at most 90; what is no number stays as it is, for the check of the table names it."""
    try:
        return str(OLDEST) if float(text) > OLDEST else text
    except ValueError:
        return text


def scrub(text: str, words: Iterable[str] = (), *, long_numbers: bool = True) -> str:
    """A text without names, dates and long numbers; `#` stands where something was.

    Args:
        text: as a header or a table has it.
        words: names and ids of the patient; whole words, upper and lower case alike.
        long_numbers: take out runs of five digits and more, which are most often record numbers.
    """
    for word in sorted({word.strip() for word in words if len(word.strip()) > 1}, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", REMOVED, text, flags=re.IGNORECASE)
    text = _DATE.sub(REMOVED, text)
    return _LONG_NUMBER.sub(REMOVED, text) if long_numbers else text


def without_paths(text: str, paths: Iterable[Path], names: Iterable[str] = ()) -> str:
    """A sentence without folder and file names, which may be those of a patient.

    Args:
        text: a reason or a note.
        paths: files and folders that it may name, in full or by their last part.
        names: further texts to take out as they are.
    """
    listed = list(paths)
    for whole in sorted(
        {str(path) for path in listed} | {name for name in names if len(name) > 1}, key=len, reverse=True
    ):
        text = text.replace(whole, "the scan")
    # Longer names first: the name of a folder is often the beginning of those of its files. The numbers 1, 2, 3, ...
    # by which many exports name their slices tell nobody, and stand for something else in a sentence.
    known = {path.name for path in listed if path.name in text and not re.fullmatch(r"[1-9]\d{0,3}|.", path.name)}
    for name in sorted(known, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "a file", text)
    return _PATH.sub("a path", text)
