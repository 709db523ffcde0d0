"""Converters: one per kind of source, in one table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from headctssl.errors import unknown_name

if TYPE_CHECKING:
    from headctssl.ingest.scan import Found

__all__ = ["CONVERTERS", "Entry", "load_converter"]


@dataclass(frozen=True)
class Entry:
    """Where a converter is and what it reads."""

    target: str  # "module:function"; the function takes the source and returns `ingest.scan.Found`
    description: str


CONVERTERS: dict[str, Entry] = {
    "dicom": Entry("headctssl.ingest.dicom:find_scans", "a tree of DICOM files; one scan per CT series"),
    "folder": Entry(
        "headctssl.ingest.converters.folder:find_scans", "NIfTI, NRRD, MetaImage files under a folder, or one file"
    ),
}
"""Every value of `--from`."""


def load_converter(name: str) -> Callable[..., Found]:
    """The function that finds the scans of a source.

    Raises:
        UsageError: the name is not in the table; the known ones are listed.
    """
    if name not in CONVERTERS:
        raise unknown_name("source format", name, CONVERTERS)
    module, _, attribute = CONVERTERS[name].target.partition(":")
    return cast("Callable[..., Found]", getattr(importlib.import_module(module), attribute))
