"""DICOM facts: what the headers of one stack of slices say, as `SeriesFacts`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from headctssl.dataset.dicom_series import SAME_POSITION_MM
from headctssl.dataset.dicom_slices import Common, Slice
from headctssl.errors import DataError
from headctssl.ingest.dicom_group import Part, heights_of
from headctssl.ingest.privacy import OLDEST
from headctssl.ingest.scan import Orientation, SeriesFacts
from headctssl.volume.straighten import Stack

__all__ = ["facts_of"]

H = TypeVar("H", bound=Hashable)

_PLANES: tuple[Orientation, ...] = ("sagittal", "coronal", "axial")  # by the axis (L, P, S) of the normal
_NEAR_PLANE = float(np.cos(np.radians(35.0)))  # a gantry tilts by up to 30 degrees
_YEARS_PER = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_NO_AGENT = ("NONE", "NO", "N", "NATIVE", "WITHOUT", "NO CONTRAST", "0")


def facts_of(part: Part) -> SeriesFacts:
    """What the headers of a stack say.

    Args:
        part: its slices.
    """
    slices = part.slices
    counted = Counter(one.common for one in slices)  # slices with the same values hold one object
    usual = _Usual(counted)
    stack = _stack_facts(slices) if part.placed else SeriesFacts()
    nothing: tuple[float, ...] = ()
    spacing = usual.of(lambda c: c.spacing_mm, nothing)
    agents = {c.contrast.strip().upper() for c in counted} - {""}
    return SeriesFacts(
        modality=usual.text(lambda c: c.modality),
        sop_class=usual.text(lambda c: c.sop_class),
        image_type=usual.of(lambda c: c.image_type, ()),
        series_number=usual.of(lambda c: c.series_number, None),
        series_description=usual.text(lambda c: c.series_description),
        study_description=usual.text(lambda c: c.study_description),
        protocol_name=usual.text(lambda c: c.protocol_name),
        body_part=usual.text(lambda c: c.body_part),
        kvp=usual.text(lambda c: c.kvp),
        convolution_kernel=usual.text(lambda c: c.kernel),
        slice_thickness_mm=usual.of(lambda c: c.thickness_mm, None),
        manufacturer=usual.text(lambda c: c.manufacturer),
        model=usual.text(lambda c: c.model),
        contrast=None if not agents else bool(agents - set(_NO_AGENT)),
        burned_in=_yes_or_no(c.burned_in for c in counted),
        num_images=len({one.file for one in slices}),
        num_positions=stack.num_positions,
        images_per_position=stack.images_per_position,
        frames=len(slices),
        temporal=stack.temporal or any(c.temporal_positions > 1 for c in counted),
        orientation=stack.orientation,
        median_gap_mm=stack.median_gap_mm,
        smallest_gap_mm=stack.smallest_gap_mm,
        largest_gap_mm=stack.largest_gap_mm,
        tilt_deg=stack.tilt_deg,
        rows=usual.of(lambda c: c.rows, 0),
        columns=usual.of(lambda c: c.columns, 0),
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing else None,
        transfer_syntaxes=tuple(sorted({c.syntax for c in counted})),
        photometric=usual.text(lambda c: c.photometric),
        bits=usual.of(lambda c: c.bits, 0),
        age=_age(usual.text(lambda c: c.age)),
        sex=_sex(usual.text(lambda c: c.sex)),
        study_date=_date(usual.text(lambda c: c.study_date)),
    )


class _Usual:
    """The most frequent value of each property; among equally frequent ones the first in order of their text."""

    def __init__(self, counted: Counter[Common]) -> None:
        self._counted = counted

    def of(self, value: Callable[[Common], H], unknown: H) -> H:
        found: Counter[H] = Counter()
        for common, count in self._counted.items():
            found[value(common)] += count
        del found[unknown]
        return min(found, key=lambda one: (-found[one], str(one))) if found else unknown

    def text(self, value: Callable[[Common], str]) -> str:
        return self.of(value, "")


def _stack_facts(slices: Sequence[Slice]) -> SeriesFacts:
    """What the positions of parallel slices say."""
    heights = heights_of(slices)
    order = np.argsort(heights, kind="stable")
    new = np.diff(heights[order], prepend=-np.inf) >= SAME_POSITION_MM
    level = np.cumsum(new) - 1
    times: defaultdict[int, list[str]] = defaultdict(list)
    for k, at in zip(order, level, strict=True):
        times[int(at)].append(slices[k].time)
    distinct = [slices[k] for k in order[new]]
    gaps = np.diff(heights[order][new]) if len(distinct) > 1 else np.empty(0)
    direction = np.array(slices[0].common.orientation)
    normal = np.abs(np.cross(direction[:3], direction[3:]))
    nearest = int(normal.argmax())
    return SeriesFacts(
        num_positions=len(distinct),
        images_per_position=max(len(found) for found in times.values()),
        temporal=any(len(found) > 1 and len(set(found)) > 1 for found in times.values()),
        orientation=_PLANES[nearest] if normal[nearest] >= _NEAR_PLANE else "oblique",
        median_gap_mm=round(float(np.median(gaps)), 3) if gaps.size else None,
        smallest_gap_mm=round(float(gaps.min()), 3) if gaps.size else None,
        largest_gap_mm=round(float(gaps.max()), 3) if gaps.size else None,
        tilt_deg=_tilt(distinct),
    )


def _tilt(slices: Sequence[Slice]) -> float:
    """Tilt of slices at distinct positions, as straightening finds it; 0 where their axes are not usable."""
    direction = np.array(slices[0].common.orientation)
    origins = np.array([one.position for one in slices])[:, ::-1]  # (L, P, S) -> (S, P, L)
    try:
        stack = Stack.of(origins, direction[3:][::-1], direction[:3][::-1])
    except DataError:  # reading the scan tells why
        return 0.0
    return round(stack.tilt_deg, 3)


def _yes_or_no(texts: Iterable[str]) -> bool | None:
    """True where any says yes, False where any says no and none yes, None where nothing is said."""
    said = {text.strip().upper() for text in texts}
    return True if "YES" in said else False if "NO" in said else None


def _age(text: str) -> str:
    """PatientAge (nnnD, nnnW, nnnM, nnnY) in years, at most 90; '' when it does not parse."""
    text = text.strip().upper()
    if len(text) < 2 or text[-1] not in _YEARS_PER or not text[:-1].isdigit():
        return ""
    return f"{min(OLDEST, int(text[:-1]) * _YEARS_PER[text[-1]]):.3g}"


def _sex(text: str) -> str:
    return text.strip().upper() if text.strip().upper() in ("M", "F", "O") else ""


def _date(text: str) -> str:
    """StudyDate as YYYYMMDD, which old files write as YYYY.MM.DD; '' for anything else."""
    digits = text.replace(".", "")
    return digits if len(digits) == 8 and digits.isdigit() else ""
