"""DICOM header: opens a file up to its pixels and gives single values, none of which is trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag

from headctssl.errors import ImageReadError

__all__ = ["Header", "HeaderError", "is_dicom", "open_header", "quietly", "series_error", "tags_of"]

_MARK_AT = 128
_TEXT_NUMBERS = ("DS", "IS", "LO", "SH")  # what a faulty file may say where a binary number belongs


class HeaderError(ValueError):
    """What is wrong with one value of a header; for the error of the file it is in."""


def series_error(folder: Path, got: object, expected: str, do: str) -> ImageReadError:
    """An `ImageReadError` that names the folder of a series."""
    return ImageReadError(f"{folder} cannot be read as one DICOM series.", got=got, expected=expected, do=do)


def tags_of(keywords: str) -> dict[str, BaseTag]:
    """The tags of DICOM keywords, which are separated by blanks."""
    found = {word: tag_for_keyword(word) for word in keywords.split()}
    assert None not in found.values(), f"no DICOM keyword: {[w for w, t in found.items() if t is None]}"
    return {word: Tag(tag) for word, tag in found.items() if tag is not None}


@contextmanager
def quietly() -> Iterator[None]:
    """Without pydicom's warnings, which name files and values: a verdict tells what a fault of a file leads to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: 'DICM' after 128 bytes, or without them a data set that begins with group 8.

    Old exports leave the first 132 bytes out. False for a file that cannot be opened.
    """
    try:
        with open(path, "rb") as handle:
            start = handle.read(_MARK_AT + 4)
    except OSError:
        return False
    return start[_MARK_AT:] == b"DICM" or _begins_with_group_8(start)


def _begins_with_group_8(start: bytes) -> bool:
    """Whether bytes are the first element of a little-endian data set: (0008,00xx) and a length that can be."""
    if len(start) < 12 or start[:2] != b"\x08\x00" or start[3] != 0 or start[2] > 0x18:
        return False
    if start[4:6].isalpha() and start[4:6].isupper():  # explicit value representation
        return int.from_bytes(start[6:8], "little") <= 256
    return int.from_bytes(start[4:8], "little") <= 256


def open_header(path: Path | str, tags: Sequence[BaseTag]) -> Header:
    """Read the header of a DICOM file up to its pixels.

    Args:
        path: the file.
        tags: what is kept; the rest is passed over unread.

    Raises:
        HeaderError: it is not DICOM, or damaged.
    """
    try:
        with quietly():
            try:
                data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
            except InvalidDicomError:
                if not is_dicom(Path(path)):
                    raise HeaderError("no DICOM file") from None
                data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags), force=True)
    except HeaderError:
        raise
    except Exception as error:  # pydicom raises errors of many types on damaged files
        raise HeaderError((str(error).splitlines() or [type(error).__name__])[0][:150]) from None
    return Header(data)


class Header:
    """Values of a data set or of one item of a sequence.

    pydicom's own conversion of every value costs more than the reading; here texts and numbers are taken from their
    bytes when they are asked for.
    """

    def __init__(self, data: pydicom.Dataset, encodings: list[str] | None = None) -> None:
        self.data = data
        self._encodings = encodings

    @property
    def syntax(self) -> str:
        """UID of the transfer syntax, '' where the file does not state it."""
        meta = getattr(self.data, "file_meta", None)
        with quietly():
            return str(meta.get("TransferSyntaxUID", "") or "") if meta is not None else ""

    def raw(self, tag: BaseTag) -> object:
        """What stands in the file, for comparing."""
        value = self._value(tag)
        return value if isinstance(value, bytes) else str(value)

    def texts(self, tag: BaseTag) -> tuple[str, ...]:
        """The values of a tag as text without padding; () where it is absent or empty."""
        value = self._value(tag)
        values: Iterable[object] = ()
        if isinstance(value, bytes):
            values = self._decoded(value).split("\\")
        elif isinstance(value, (pydicom.multival.MultiValue, list)):
            values = value
        elif value is not None:
            values = (value,)
        parts = tuple(" ".join(str(part).replace("\0", " ").split()) for part in values)
        return parts if any(parts) else ()

    def text(self, tag: BaseTag) -> str:
        """As `texts`, several values joined by a backslash as DICOM does."""
        return "\\".join(self.texts(tag))

    def numbers(self, tag: BaseTag, name: str, count: int) -> tuple[float, ...]:
        """The numbers of a tag.

        Args:
            tag: the tag.
            name: for the fault.
            count: how many there must be.

        Raises:
            HeaderError: absent, not numbers, not finite, or not so many.
        """
        parts = self.texts(tag)
        if not parts:
            raise HeaderError(f"without {name}")
        try:
            found = tuple(float(part) for part in parts)
        except ValueError:
            raise HeaderError(f"{name} is no number: '{self.text(tag)[:60]}'") from None
        if len(found) != count or not all(math.isfinite(number) for number in found):
            raise HeaderError(f"{name} {list(found)} where {count} finite number(s) belong")
        return found

    def number(self, tag: BaseTag) -> float | None:
        """One number that nothing depends on; None where it is absent, unreadable, or several differ (dual energy)."""
        try:
            values = {float(part) for part in self.texts(tag)}
        except ValueError:
            return None
        only = values.pop() if len(values) == 1 else math.nan
        return only if math.isfinite(only) else None

    def integer(self, tag: BaseTag, *, signed: bool = False) -> int | None:
        """The first of the binary integers (US, SS) of a tag; None where it is absent or cannot be one."""
        element = self.data.get_item(tag)
        if isinstance(element, RawDataElement) and element.VR not in _TEXT_NUMBERS:
            order: Literal["little", "big"] = "little" if element.is_little_endian else "big"
            return int.from_bytes(element.value[:2], order, signed=signed) if element.value else None
        found = self.number(tag)
        return int(found) if found is not None and found.is_integer() else None

    def item(self, tag: BaseTag) -> Header | None:
        """The first item of a sequence, None where there is none."""
        found = self.items(tag)
        return found[0] if found else None

    def items(self, tag: BaseTag) -> list[Header]:
        """The items of a sequence."""
        if tag not in self.data:
            return []
        with quietly():
            value = self.data[tag].value
        return [Header(item, self._charsets()) for item in value] if isinstance(value, Items) else []

    def _value(self, tag: BaseTag) -> object:
        element = self.data.get_item(tag)
        return None if element is None else element.value

    def _decoded(self, value: bytes) -> str:
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        with quietly():
            return decode_bytes(value, self._charsets(), {ord(c) for c in "\\^="})

    def _charsets(self) -> list[str]:
        if self._encodings is None:
            try:
                with quietly():
                    self._encodings = convert_encodings(self.data.get("SpecificCharacterSet", None))
            except LookupError:  # a character set that does not exist
                self._encodings = ["iso8859"]
        return self._encodings
