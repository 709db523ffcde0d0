"""Errors: the tree of failures a user can see, each saying what, got, expected and what to do.

HeadCTSSLError              exit code 2
├── UsageError              the call itself is wrong: a flag, a name, a setting, a data root
├── DataError               a file, a case or a dataset cannot be used
│   ├── ImageReadError      an image cannot be read as a volume
│   └── CorruptCaseError    a stored case fails its checksum or cannot be decoded
├── ContractError           a checkpoint, a plan and the data do not fit each other
├── TrainingError           a run cannot start or go on
└── StoppedError             stopped by a signal after a checkpoint, exit code 75
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ContractError",
    "CorruptCaseError",
    "DataError",
    "HeadCTSSLError",
    "ImageReadError",
    "StoppedError",
    "TrainingError",
    "UsageError",
    "unknown_name",
]


class HeadCTSSLError(Exception):
    """A failure that a user can act on.

    Args:
        what: one sentence that names what failed (a file, a case, a field).
        got: what was found.
        expected: what would have been right.
        do: what to do now.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        self.what = what
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.do = do
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole message, one line per part."""
        lines = [self.what]
        if self.got is not None:
            lines.append(f"  got:      {self.got}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.do is not None:
            lines.append(f"  do:       {self.do}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the parts when the error crosses a process boundary."""
        return (_rebuild, (type(self), self.what, self.got, self.expected, self.do))


def _rebuild(
    kind: type[HeadCTSSLError], what: str, got: str | None, expected: str | None, do: str | None
) -> HeadCTSSLError:
    return kind(what, got=got, expected=expected, do=do)


class UsageError(HeadCTSSLError):
    """The call itself is wrong: a flag, a name, a setting, a data root."""


class DataError(HeadCTSSLError):
    """A file, a case or a dataset cannot be used."""


class ImageReadError(DataError):
    """An image cannot be read as a volume."""


class CorruptCaseError(DataError):
    """A stored case fails its checksum or cannot be decoded."""


class ContractError(HeadCTSSLError):
    """A checkpoint, a plan and the data do not fit each other."""


class TrainingError(HeadCTSSLError):
    """A run cannot start or go on."""


class StoppedError(HeadCTSSLError):
    """The run was stopped by a signal after it wrote a checkpoint."""

    exit_code = 75


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error for a name that no table has, listing the known ones and the nearest.

    Args:
        kind: what the name should have been, e.g. ``"method"``.
        name: the name that was given.
        known: the names of the table.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return UsageError(
        f"Unknown {kind} '{name}'.",
        got=name,
        expected="one of " + ", ".join(names),
        do=f"Did you mean '{close[0]}'?" if close else f"Choose one of the known {kind}s.",
    )
