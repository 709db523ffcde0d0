"""Intensity: whether the values of a volume are Hounsfield units, what else they are, and how they are repaired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "IntensityCheck",
    "IntensityFault",
    "IntensityKind",
    "check_intensity",
    "cormack_to_hu",
    "noted_fault",
    "repair",
    "soft_tissue_peak",
]

IntensityKind = Literal["HU", "offset", "cormack", "windowed", "wrapped", "not_ct", "doubtful"]
Values = NDArray[np.int16] | NDArray[np.int32]
Sample = NDArray[np.int32]

AIR_HU = (-1250, -700)
"""Air is -1000 HU; mixed with tissue in thick slices it stays below -700 in the sinuses and outside the head."""

SMALLEST_AIR_SHARE = 0.002
"""A head scan has far more air than this, in its sinuses alone."""

SOFT_TISSUE_HU = (-150, 150)
SMALLEST_TISSUE_SHARE = 0.2
"""Of what is no air. Soft tissue is most of a head, also at the noise of a bone kernel."""

BRAIN_HU = (15, 60)
"""Where the peak of brain, muscle and blood lies; between two possible offsets it decides."""

FAT_HU = (-130, -70)

OFFSETS = (1024, 1000, -1024, -1000, 32768, 31744)
"""What is left in when a rescale intercept is forgotten (1024, 1000), applied twice, or 16 bits are made unsigned."""

_SAMPLE_PER_AXIS = 96
_NOT_HU = "The values are not Hounsfield units: "
_DOUBTFUL = "The values may not be Hounsfield units: "
_BIN_HU = 4

# Cormack units: Rorden et al., NeuroImage 2012, "Age-specific CT and MRI templates"; constants as in the Clinical
# toolbox. Counted from the darkest voxel (-1024 HU), 200 HU from 900 on are stretched eleven times.
_CORMACK_DARK = 900
_CORMACK_MIDDLE = 200
_CORMACK_STRETCH = 11


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
    low, high = int(values.min()), int(values.max())
    found = f"values from {low} to {high}"
    if high > np.iinfo(np.int16).max:
        unwrapped = np.where(sample > np.iinfo(np.int16).max, sample - (1 << 16), sample)
        if _is_hu(unwrapped):
            return _not_hu("wrapped", f"{found}; negative numbers of 16 bits were read as positive ones", bits=16)
    if _is_wrapped_12(values, sample):
        return _not_hu("wrapped", f"{found}; 12-bit numbers above 2047 (dense bone) were read as negative", bits=12)
    if _has_low_cloud(sample) and (shifted := _offset_of(sample, [o for o in OFFSETS if o < 0])):
        return _offset(found, shifted)
    if _air_share(sample) >= SMALLEST_AIR_SHARE:
        if float((sample[~_is_padding(sample)] < AIR_HU[0]).mean()) > 0.2:
            return _doubtful(f"{found}, many of them far below air")
        if _tissue_share(sample) >= SMALLEST_TISSUE_SHARE:
            return IntensityCheck("HU")
        return _doubtful(f"{found} with hardly any soft tissue near 0 HU")
    if shifted := _offset_of(sample, [o for o in OFFSETS if o > 0]):
        return _offset(found, shifted)
    if low >= 0 and _fits(cormack_to_hu(sample)):
        return _not_hu(
            "cormack", f"{found} with air near 0 and soft tissue near {_peak(sample)}; they are Cormack units"
        )
    if _is_hu(sample):  # air of one value, as where what is outside the head was erased
        return IntensityCheck("HU")
    return _without_air(sample, low, high, f"{found} with no air near -1000 HU")


def _without_air(sample: Sample, low: int, high: int, found: str) -> IntensityCheck:
    """Masks, pictures, clipped and cropped volumes, other modalities."""
    distinct = np.unique(sample).size
    if low >= 0 and (high <= 1 or distinct <= 8):
        return _not_hu("not_ct", f"{found}; they look like a mask or a picture scaled to 0..1")
    if low >= 0 and high <= 255:
        return _not_hu("windowed", f"{found}; they look like a windowed 8-bit picture")
    at_low, at_high = float((sample == low).mean()), float((sample == high).mean())
    tissue = SOFT_TISSUE_HU[0] <= soft_tissue_peak(sample) <= SOFT_TISSUE_HU[1]
    if at_low >= 0.02 and at_high >= 0.01 and high - low <= 600:
        return _not_hu("windowed", f"{found}; they are cut off at both ends of a window")
    if low > -100:
        return _not_hu("not_ct", f"{found}; no offset makes them those of a CT scan")
    if at_low >= 0.02 and tissue:
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


def _is_padding(sample: Sample) -> NDArray[np.bool_]:
    """The lowest value where it is air or below: padding, or air of one value. It says nothing about the unit."""
    return np.asarray((sample == sample.min(initial=0)) & (sample < AIR_HU[1]))


def _share(sample: Sample, limits: tuple[int, int]) -> float:
    inside = (sample > limits[0]) & (sample < limits[1])
    return float(np.count_nonzero(inside)) / max(1, sample.size)


def _air_share(sample: Sample) -> float:
    return _share(sample[~_is_padding(sample)], AIR_HU)


def _tissue_share(sample: Sample) -> float:
    return _share(sample[sample > -300], SOFT_TISSUE_HU)


def _is_hu(sample: Sample) -> bool:
    """Air, if only of one value, and soft tissue."""
    return _share(sample, AIR_HU) >= SMALLEST_AIR_SHARE and _tissue_share(sample) >= SMALLEST_TISSUE_SHARE


def soft_tissue_peak(values: NDArray[np.integer]) -> int:
    """The most frequent value between -200 and 200 HU after smoothing by 12 HU; 0 where there is none.

    Args:
        values: HU of any shape.
    """
    return _mode(values, -200, 200) or 0


def _mode(values: NDArray[np.integer], low: int, high: int) -> int | None:
    counts, edges = np.histogram(values, bins=np.arange(low, high + _BIN_HU, _BIN_HU))
    if not counts.any():
        return None
    smooth = ndimage.uniform_filter1d(counts.astype(float), 3)
    return int(edges[int(smooth.argmax())]) + _BIN_HU // 2


def _peak(sample: Sample) -> int:
    """The most frequent value above air in Cormack units, for the text."""
    return _mode(sample, _CORMACK_DARK, 4096) or 0


def _fits(hu: Sample, *, brain_only: bool = False) -> bool:
    """Whether values are HU beyond doubt: air and little below it, and a peak where brain, muscle or fat lies."""
    if not _is_hu(hu) or float((hu < AIR_HU[0]).mean()) > 0.02:
        return False
    peak, wide = soft_tissue_peak(hu), (BRAIN_HU[0] - 35, BRAIN_HU[1] + 30)
    if wide[0] <= peak <= wide[1]:
        return _share(hu, wide) >= (0.1 if brain_only else 0.03)
    # A body has more fat than muscle, but both.
    return not brain_only and FAT_HU[0] <= peak <= FAT_HU[1] and min(_share(hu, FAT_HU), _share(hu, BRAIN_HU)) >= 0.03


def _offset_of(sample: Sample, offsets: Iterable[int]) -> int:
    """The offset that makes values HU, 0 when none does; that with the brain where it belongs comes first."""
    padding = _is_padding(sample)
    inner = sample[~padding]
    # What was erased around the head may be its air: then the bone of a head in HU must not pass for shifted fat.
    fitting = [offset for offset in offsets if _fits(inner - offset, brain_only=bool(padding.any()))]
    best = [o for o in fitting if BRAIN_HU[0] <= soft_tissue_peak(inner - o) <= BRAIN_HU[1]]
    return (best or fitting or [0])[0]


def _has_low_cloud(sample: Sample) -> bool:
    """Many different values far below air: no padding, which has one value."""
    low = sample[sample < AIR_HU[0]]
    return low.size >= 0.02 * sample.size and np.unique(low).size >= 20


def _is_wrapped_12(values: Values, sample: Sample) -> bool:
    """Whether values far below air lie in bone: numbers of 12 bits above 2047 that were read as negative."""
    low = sample[(sample < -1100) & ~_is_padding(sample)]
    if np.unique(low).size < 10 or int(values.max()) > 2047 or int(values.min()) < -2048 - 1024:
        return False
    every = max(1, values.shape[0] // 24)
    planes = values[::every]
    inside = (planes < -1100) & (planes > int(values.min()))
    near_bone = ndimage.maximum_filter(planes, size=(1, 5, 5)) > 500
    return float(near_bone[inside].mean()) > 0.5 if inside.any() else False


def cormack_to_hu(values: NDArray[np.integer]) -> Sample:
    """Cormack units to HU, the inverse of the published conversion with -1024 HU as its darkest voxel.

    Args:
        values: Cormack units of any shape, from 0.
    """
    stretched = np.clip(values - np.int32(_CORMACK_DARK), 0, _CORMACK_MIDDLE * _CORMACK_STRETCH)
    shrunk = np.rint(stretched / _CORMACK_STRETCH).astype(np.int32)
    return np.asarray(values - stretched + shrunk - 1024, dtype=np.int32)


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
        return np.where(wide > np.iinfo(np.int16).max, wide - (1 << 16), wide)
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
