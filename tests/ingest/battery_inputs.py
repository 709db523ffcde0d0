"""Battery inputs: what an input of the battery of faults is, its head, and its patient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from crude_heads import crude_head
from dicom_writer import Options, write_dicom
from numpy.typing import NDArray

__all__ = [
    "ACCEPT",
    "HEAD_SPACING",
    "NO_PLACE",
    "NUM_SLICES",
    "Expected",
    "Image",
    "Input",
    "Make",
    "Verdict",
    "collector",
    "head",
    "patient",
    "write_series",
]

Image = NDArray[np.int16]
Verdict = Literal["accept", "review", "reject"]
Expected = tuple[tuple[Verdict, str], ...]
"""Of each scan of an input its verdict and a part of a reason or note ('' = none is asked for)."""

HEAD_SPACING = (10.0, 6.0, 6.0)
_MARK_BITS = 12
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Input:
    """One input of the battery."""

    name: str
    make: Callable[[Path, Image], Image | None]  # writes it into a folder; returns the voxels that must come out
    expected: Expected
    clean: bool = False  # nothing is wrong with it: it must come out as it went in
    counted: str = ""  # part of the count of what is no scan


def head(number: int) -> Image:
    """A head in noisy air, (z, y, x) HU, that no other number gives."""
    hu = _HEAD.copy()
    bits = np.array([number >> k & 1 for k in range(_MARK_BITS)])
    hu[0, 0, :_MARK_BITS] = -1000 + 20 * bits
    return hu


def _noisy_head() -> Image:
    hu = crude_head(4, shape=(18, 40, 40), spacing=HEAD_SPACING).hu.astype(np.float64)
    rng = np.random.default_rng(0)
    air, bone = hu < -900, hu > 500
    hu[air] += rng.normal(0, 8, int(air.sum()))
    hu[bone] += rng.normal(300, 300, int(bone.sum()))
    return np.asarray(np.clip(np.rint(hu), -1024, 3071), np.int16)


_HEAD = _noisy_head()


ACCEPT: Expected = (("accept", ""),)
NO_PLACE: dict[str, Any] = {"ImagePositionPatient": None, "ImageOrientationPatient": None}


NUM_SLICES = len(_HEAD)


def patient() -> dict[str, Any]:
    """Tags that name a patient of its own, also where they do not belong."""
    number = f"LK{next(_numbers):04d}"
    return {
        "PatientName": "Leakmann^Änne^Maria",
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientID": number,
        "AccessionNumber": f"{number}A",
        "StudyDescription": f"CT HEAD Leakmann {number} 29.02.2020 1234567",
        "ReferringPhysicianName": "Petzmann^Otto",
    }


def write_series(folder: Path, hu: Image, *, tags: dict[str, Any] | None = None, **options: Any) -> list[Path]:
    """Write a series of a patient of its own; `options` are those of `dicom_writer.Options`."""
    options.setdefault("spacing_mm", HEAD_SPACING)
    return write_dicom(folder, hu, Options(tags={**patient(), **(tags or {})}, **options))


Make = Callable[[Path, Image], Image | None]


def collector(inputs: list[Input]) -> Callable[..., Callable[[Make], Make]]:
    """A decorator that makes an input of a function: `@add(name, (verdict, told), ...)`."""

    def add(
        name: str, *expected: tuple[Verdict, str], clean: bool = False, counted: str = ""
    ) -> Callable[[Make], Make]:
        def take(make: Make) -> Make:
            inputs.append(Input(name, make, expected, clean, counted))
            return make

        return take

    return add
