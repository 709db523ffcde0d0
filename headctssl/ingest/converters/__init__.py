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
    "cq500": Entry("headctssl.ingest.converters.cq500:find_scans", "CQ500 with reads.csv, majority of three readers"),
    "rsna": Entry("headctssl.ingest.converters.rsna:find_scans", "RSNA 2019, slices with stage_2_train.csv"),
    "ct_ich": Entry("headctssl.ingest.converters.ct_ich:find_scans", "PhysioNet CT-ICH 1.3.1 with its masks"),
    "nnunet": Entry("headctssl.ingest.converters.nnunet:find_scans", "a raw nnU-Net dataset, its CT channel"),
    "nnssl": Entry("headctssl.ingest.converters.nnssl:find_scans", "nnssl's pretrain_data.json, its CT images"),
    "bids": Entry("headctssl.ingest.converters.bids:find_scans", "a BIDS dataset, its images *_ct"),
    "openmind": Entry(
        "headctssl.ingest.converters.openmind:find_scans", "a folder laid out as OpenMind, its CT images"
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
