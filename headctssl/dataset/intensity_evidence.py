"""Intensity evidence: air, soft tissue and bone among the values of a volume; what speaks for which unit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "AIR_HU",
    "OFFSETS",
    "SMALLEST_AIR_SHARE",
    "SMALLEST_TISSUE_SHARE",
    "Sample",
    "Values",
    "air_share",
    "cormack_to_hu",
    "fits",
    "has_low_cloud",
    "is_hu",
    "is_inverted",
    "is_padding",
    "is_wrapped_12",
    "most_frequent",
    "offset_of",
    "soft_tissue_peak",
    "tissue_share",
]

Values = NDArray[np.int16] | NDArray[np.int32]
Sample = NDArray[np.int32]

AIR_HU = (-1250, -700)
"""Air is -1000 HU; mixed with tissue in thick slices it stays below -700 in the sinuses and outside the head."""

SMALLEST_AIR_SHARE = 0.002
"""A head scan has far more air than this, in its sinuses alone."""

INVERTED_AIR_HU = (850, 1150)
LARGEST_DENSE_SHARE = 0.3
"""A tenth of a head is bone, most of it below or above these values: more is air of a picture that is inverted."""

SOFT_TISSUE_HU = (-150, 150)
SMALLEST_TISSUE_SHARE = 0.2
"""Of what is no air. Soft tissue is most of a head, also at the noise of a bone kernel."""

BRAIN_HU = (15, 60)
"""Where the peak of brain, muscle and blood lies; between two possible offsets it decides."""

FAT_HU = (-130, -70)

OFFSETS = (1024, 1000, -1024, -1000, 32768, 31744)
"""What is left in when a rescale intercept is forgotten (1024, 1000), applied twice, or 16 bits are made unsigned."""

_BIN_HU = 4
_WRAPPED_BELOW = -1800

# Cormack units: Rorden et al., NeuroImage 2012, "Age-specific CT and MRI templates"; constants as in the Clinical
# toolbox. Counted from the darkest voxel (-1024 HU), 200 HU from 900 on are stretched eleven times.
_CORMACK_DARK = 900
_CORMACK_MIDDLE = 200
_CORMACK_STRETCH = 11


def is_padding(sample: Sample) -> NDArray[np.bool_]:
    """The lowest value where it is air or below: padding, or air of one value. It says nothing about the unit.

    Args:
        sample: (n,) values.
    """
    return np.asarray((sample == sample.min(initial=0)) & (sample < AIR_HU[1]))


def _share(sample: Sample, limits: tuple[int, int]) -> float:
    inside = (sample > limits[0]) & (sample < limits[1])
    return float(np.count_nonzero(inside)) / max(1, sample.size)


def air_share(sample: Sample) -> float:
    """Share of a sample that is air of several values.

    Args:
        sample: (n,) values that may be HU.
    """
    return _share(sample[~is_padding(sample)], AIR_HU)


def tissue_share(sample: Sample) -> float:
    """Share of soft tissue in what is not air.

    Args:
        sample: (n,) values that may be HU.
    """
    return _share(sample[sample > -300], SOFT_TISSUE_HU)


def is_hu(sample: Sample) -> bool:
    """Whether there is air, if only of one value or as padding, and soft tissue.

    Args:
        sample: (n,) values that may be HU.
    """
    padding = float(np.count_nonzero(is_padding(sample))) / max(1, sample.size)
    air = max(_share(sample, AIR_HU), padding)
    return air >= SMALLEST_AIR_SHARE and tissue_share(sample) >= SMALLEST_TISSUE_SHARE


def soft_tissue_peak(values: NDArray[np.integer]) -> int:
    """The most frequent value between -200 and 200 HU after smoothing by 12 HU; 0 where there is none.

    Args:
        values: HU of any shape.
    """
    return most_frequent(values, -200, 200) or 0


def most_frequent(values: NDArray[np.integer], low: int, high: int) -> int | None:
    """The most frequent value in a range after smoothing by 12; None where there is none.

    Args:
        values: of any shape.
        low: start of the range.
        high: its end.
    """
    counts, edges = np.histogram(values, bins=np.arange(low, high + _BIN_HU, _BIN_HU))
    if not counts.any():
        return None
    smooth = ndimage.uniform_filter1d(counts.astype(float), 3)
    return int(edges[int(smooth.argmax())]) + _BIN_HU // 2


def fits(hu: Sample, *, brain_only: bool = False) -> bool:
    """Whether values are HU beyond doubt: air and little below it, and a peak where brain, muscle or fat lies.

    Args:
        hu: (n,) values.
        brain_only: a peak of fat does not count.
    """
    if not is_hu(hu) or float((hu < AIR_HU[0]).mean()) > 0.02:
        return False
    peak, wide = soft_tissue_peak(hu), (BRAIN_HU[0] - 35, BRAIN_HU[1] + 30)
    if wide[0] <= peak <= wide[1]:
        return _share(hu, wide) >= (0.1 if brain_only else 0.03)
    # A body has more fat than muscle, but both.
    return not brain_only and FAT_HU[0] <= peak <= FAT_HU[1] and min(_share(hu, FAT_HU), _share(hu, BRAIN_HU)) >= 0.03


def offset_of(sample: Sample, offsets: Iterable[int]) -> int:
    """The offset that makes values HU, 0 when none does; that with the brain where it belongs comes first.

    Args:
        sample: (n,) values.
        offsets: what may have been added.
    """
    padding = is_padding(sample)
    inner = sample[~padding]
    # What was erased around the head may be its air: then the bone of a head in HU must not pass for shifted fat.
    fitting = [offset for offset in offsets if fits(inner - offset, brain_only=bool(padding.any()))]
    best = [o for o in fitting if BRAIN_HU[0] <= soft_tissue_peak(inner - o) <= BRAIN_HU[1]]
    return (best or fitting or [0])[0]


def has_low_cloud(sample: Sample) -> bool:
    """Whether there are many different values far below air: no padding, which has one value.

    Args:
        sample: (n,) values.
    """
    low = sample[sample < AIR_HU[0]]
    return low.size >= 0.02 * sample.size and np.unique(low).size >= 20


def is_inverted(sample: Sample) -> bool:
    """Whether most of a picture is where bone should be, as the air of one whose light and dark are exchanged.

    Args:
        sample: (n,) values.
    """
    return air_share(sample) >= SMALLEST_AIR_SHARE and _share(sample, INVERTED_AIR_HU) > LARGEST_DENSE_SHARE


def is_wrapped_12(values: Values, sample: Sample) -> bool:
    """Whether 12-bit numbers above 2047 were read as negative: values far below air that lie in bone.

    With the intercept -1024 no value is then above 1023 and dense bone lies from -3072 on. What a sharp kernel
    leaves in the air cells of the ear is not as low.

    Args:
        values: (slices, rows, columns).
        sample: some of them, (n,).
    """
    low = sample[(sample < _WRAPPED_BELOW) & ~is_padding(sample)]
    if np.unique(low).size < 10 or int(values.max()) > 1100 or int(values.min()) < -3100:
        return False
    planes = values[:: max(1, values.shape[0] // 24)]
    inside = (planes < _WRAPPED_BELOW) & (planes > int(values.min()))
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
