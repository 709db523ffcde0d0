"""Intensity: whether the values of a volume are Hounsfield units, what else they are, and how they are repaired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headctssl.dataset.intensity_evidence import (
    AIR_HU,
    OFFSETS,
    SMALLEST_AIR_SHARE,
    SMALLEST_TISSUE_SHARE,
    Sample,
    Values,
    air_share,
    cormack_to_hu,
    fits,
    has_low_cloud,
    is_hu,
    is_inverted,
    is_padding,
    is_wrapped_12,
    most_frequent,
    offset_of,
    tissue_share,
)

__all__ = [
    "IntensityCheck",
    "IntensityFault",
    "IntensityKind",
    "check_intensity",
    "noted_fault",
    "repair",
]

IntensityKind = Literal["HU", "offset", "cormack", "windowed", "wrapped", "not_ct", "doubtful"]
_SAMPLE_PER_AXIS = 96
_HIGHEST = (1 << 16) + (1 << 12)  # of 16 bits without a sign, and any intercept
_NOT_HU = "The values are not Hounsfield units: "
_DOUBTFUL = "The values may not be Hounsfield units: "


@dataclass(frozen=True)
class IntensityFault:
    """Why values cannot be, or may not be, Hounsfield units."""

    kind: Literal["not_hu", "doubtful"]
    text: str


@dataclass(frozen=True)
class IntensityCheck:
    """What the values of a volume are.

    `HU`: air near -1000, soft tissue near 0. `offset`: HU plus a constant. `cormack`: Cormack units. `wrapped`:
    12- or 16-bit numbers whose sign was misread. `windowed`: a picture in which what is outside a window is lost.
    `not_ct`: nothing of these. `doubtful`: perhaps HU, without the air or the soft tissue of a head scan.
    """

    kind: IntensityKind
    offset_hu: int = 0  # offset: value - offset_hu = HU
    text: str = ""  # a sentence for the user, '' for HU
    bits: int = 0  # wrapped: 12 or 16

    @property
    def can_repair(self) -> bool:
        """Whether `repair` gives Hounsfield units."""
        return self.kind in ("offset", "cormack", "wrapped")

    @property
    def repaired(self) -> str:
        """The note on a volume that `repair` has made Hounsfield units of."""
        told = {
            "offset": f"HU {self.offset_hu:+d}; {self.offset_hu} was subtracted",
            "cormack": "Cormack units; the published conversion was undone",
            "wrapped": f"of {self.bits} bits with a misread sign; it was undone",
        }
        return f"Repaired intensity: the stored values were {told[self.kind]}."

    @property
    def fault(self) -> IntensityFault | None:
        """The fault to note, None for Hounsfield units."""
        if self.kind == "HU":
            return None
        return IntensityFault("doubtful" if self.kind == "doubtful" else "not_hu", self.text)


def check_intensity(values: Values) -> IntensityCheck:
    """Say what the values of a volume are, from the peaks of air and soft tissue.

    Args:
        values: (slices, rows, columns) as stored and rescaled, not clipped: padding and numbers beyond 16 bits
            are what tells a wrong sign.
    """
    if not values.size:
        return _doubtful("no voxels")
    stride = tuple(max(1, n // _SAMPLE_PER_AXIS) for n in values.shape)
    sample: Sample = values[:: stride[0], :: stride[1], :: stride[2]].astype(np.int32).ravel()
    ends = [(plane.min(), plane.max()) for plane in values]  # both while a plane is in the cache
    low, high = int(min(low for low, _ in ends)), int(max(high for _, high in ends))
    found = f"values from {low} to {high}"
    check = _wrong_sign(values, sample, found) or _unit(sample, low, high, found)
    if check.kind == "HU" and high > _HIGHEST:
        return _doubtful(f"{found}; no CT number is as high, nor 16 bits")
    return check


def _unit(sample: Sample, low: int, high: int, found: str) -> IntensityCheck:
    """What values with right signs are."""
    if air_share(sample) >= SMALLEST_AIR_SHARE:
        return _with_air(sample, found)
    if offset := offset_of(sample, [o for o in OFFSETS if o > 0]):
        return _offset(found, offset)
    if low >= 0 and fits(cormack_to_hu(sample)):
        tissue = most_frequent(sample, 900, 4096)
        return _not_hu("cormack", f"{found} with air near 0 and soft tissue near {tissue}; they are Cormack units")
    if is_hu(sample):  # air of one value, as where what is outside the head was erased
        return IntensityCheck("HU")
    return _without_air(sample, low, high, f"{found} with no air near -1000 HU")


def _wrong_sign(values: Values, sample: Sample, found: str) -> IntensityCheck | None:
    """Misread signs, exchanged light and dark, and the intercept applied twice."""
    above = float(np.count_nonzero(sample > np.iinfo(np.int16).max)) / sample.size
    # Of the air, not of single odd voxels.
    if above >= SMALLEST_AIR_SHARE and int(values.max()) <= _HIGHEST and is_hu(_signed_16(sample)):
        return _not_hu("wrapped", f"{found}; negative numbers of 16 bits were read as positive ones", bits=16)
    if is_inverted(sample):
        return _not_hu("not_ct", f"{found}, most of them near +1000; light and dark seem to be exchanged")
    if is_wrapped_12(values, sample):
        return _not_hu("wrapped", f"{found}; 12-bit numbers above 2047 (dense bone) were read as negative", bits=12)
    if has_low_cloud(sample) and (offset := offset_of(sample, [o for o in OFFSETS if o < 0])):
        return _offset(found, offset)
    return None


def _signed_16(values: Sample) -> Sample:
    return np.where(values > np.iinfo(np.int16).max, values - (1 << 16), values)


def _with_air(sample: Sample, found: str) -> IntensityCheck:
    """Values with air near -1000: HU unless the rest speaks against it."""
    if float((sample[~is_padding(sample)] < AIR_HU[0]).mean()) > 0.2:
        return _doubtful(f"{found}, many of them far below air")
    if tissue_share(sample) < SMALLEST_TISSUE_SHARE:
        return _doubtful(f"{found} with hardly any soft tissue near 0 HU")
    return IntensityCheck("HU")


def _without_air(sample: Sample, low: int, high: int, found: str) -> IntensityCheck:
    """Masks, pictures, clipped and cropped volumes, other modalities."""
    distinct = np.unique(sample).size
    if distinct <= 8:
        return _not_hu("not_ct", f"{found}, {distinct} different ones; they look like a mask or a picture of 0 to 1")
    if low >= 0 and high <= 255:
        return _not_hu("windowed", f"{found}; they look like a windowed 8-bit picture")
    at_low, at_high = float((sample == low).mean()), float((sample == high).mean())
    if at_low >= 0.02 and at_high >= 0.01 and high - low <= 600:
        return _not_hu("windowed", f"{found}; they are cut off at both ends of a window")
    if low > -100:
        return _not_hu("not_ct", f"{found}; no offset makes them those of a CT scan")
    if at_low >= 0.02:
        return _doubtful(f"{found}; they look cut off at {low}")
    return _doubtful(found)


def _not_hu(kind: IntensityKind, found: str, *, offset: int = 0, bits: int = 0) -> IntensityCheck:
    check = IntensityCheck(kind, offset, bits=bits)
    advice = " (--repair_intensity makes them HU)" if check.can_repair else ""
    return IntensityCheck(kind, offset, f"{_NOT_HU}{found}{advice}.", bits)


def _doubtful(found: str) -> IntensityCheck:
    return IntensityCheck("doubtful", text=f"{_DOUBTFUL}{found}.")


def _offset(found: str, offset: int) -> IntensityCheck:
    sign = "+" if offset > 0 else "-"
    return _not_hu("offset", f"{found}; they are HU {sign} {abs(offset)}", offset=offset)


def repair(values: Values, check: IntensityCheck) -> Sample:
    """Values as Hounsfield units.

    Args:
        values: as `check_intensity` got them.
        check: what it found.

    Returns:
        int32 HU, not clipped.
    """
    assert check.can_repair, f"{check.kind} cannot be repaired"
    wide = values.astype(np.int32)
    if check.kind == "offset":
        # Padding is lower still: it is clipped to -1024 HU as everywhere.
        return np.asarray(wide - np.int32(check.offset_hu), dtype=np.int32)
    if check.kind == "cormack":
        return cormack_to_hu(wide)
    if check.bits == 16:
        return _signed_16(wide)
    lowest = int(wide.min())
    wrong = (wide < -1024) & (wide > lowest) if _is_flat(wide, lowest) else wide < -1024
    return np.where(wrong, wide + (1 << 12), wide)


def _is_flat(values: Sample, lowest: int) -> bool:
    """Whether the lowest value is padding: it fills a corner of the volume."""
    return bool(values[:, 0, 0].max() == lowest)


def noted_fault(notes: Iterable[str]) -> IntensityFault | None:
    """The fault that `image_io.read` found in the voxels as stored and left in `info.notes`.

    Args:
        notes: notes of a volume. Its voxels cannot be asked again: straightening adds air.
    """
    for note in notes:
        if note.startswith(_NOT_HU):
            return IntensityFault("not_hu", note)
        if note.startswith(_DOUBTFUL):
            return IntensityFault("doubtful", note)
    return None
