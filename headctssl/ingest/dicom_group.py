"""DICOM group: the slices of one series UID as the stacks that they are."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.dicom_passes import Pass, passes_of
from headctssl.dataset.dicom_pixels import PixelReader
from headctssl.dataset.dicom_series import SAME_DIRECTION, SAME_POSITION_MM
from headctssl.dataset.dicom_slices import Slice
from headctssl.errors import ImageReadError
from headctssl.ingest.header_rules import MIN_SLICES

__all__ = ["Part", "heights_of", "split_series", "without_copies", "without_repeats"]

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Slices of one series that can be one stack."""

    slices: tuple[Slice, ...]
    name: str = ""  # what tells it from the other parts of its series; '' = the series is one stack
    placed: bool = True  # whether its slices say where they are


def without_copies(slices: Iterable[Slice]) -> tuple[list[Slice], int]:
    """Slices whose file is there more than once are taken once; and how many were left out.

    A copy has the same SOP instance UID, the same position and the same picture. Some programs that take names out give
    all slices one UID, or two patients the same UIDs; these are no copies.
    """
    first: dict[Hashable, Slice] = {}
    same = _Copies()
    kept: list[Slice] = []
    count = 0
    for one in slices:
        count += 1
        before = first.setdefault((one.instance or one.file, one.frame, one.position), one)
        if before is one or not same(before, one):
            kept.append(one)
    return kept, count - len(kept)


class _Copies:
    """Whether two slices of one name are the same: their files byte by byte, and where these differ their pictures."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], bool] = {}  # multi-frame files are asked for frame by frame
        self._readers = PixelReader(), PixelReader()  # each holds the multi-frame file it read last

    def __call__(self, one: Slice, other: Slice) -> bool:
        pair = one.file, other.file
        if pair not in self._files:
            self._files[pair] = filecmp.cmp(*pair, shallow=False)
        if self._files[pair]:
            return True
        try:
            first, second = (reader.hounsfield(s) for reader, s in zip(self._readers, (one, other), strict=True))
        except ImageReadError:  # reading the scan names the slice
            return False
        return np.array_equal(first, second)


def split_series(slices: Sequence[Slice]) -> list[Part]:
    """Split what one series UID holds into stacks, the largest first.

    Slices of several orientations, sizes or pixel spacings cannot be one volume. Those of several image types, kernels
    or echoes are several volumes where they show the same part of the body, and one where they follow each other (the
    base and the vertex of a head with two kernels). So are acquisitions, between which the head may have moved, where
    they run through the same part of the body (`_by_pass`). Gaps and thicknesses split nothing.
    """
    placed = [one for one in slices if one.position and one.common.orientation]
    found: list[Part] = []
    for group in _grouped(placed, _plane_keys(placed)):
        for part in _contents(group):
            found += _by_pass(part)
    found.sort(key=lambda part: (-len(part.slices), part.slices[0].file, part.slices[0].frame or 0))
    nowhere = [one for one in slices if not (one.position and one.common.orientation)]
    if nowhere:
        found.append(Part(tuple(nowhere), placed=False))
    if len(found) < 2:
        return found
    return [replace(part, name=_part_name(part)) for part in found]


def _plane_keys(slices: Sequence[Slice]) -> list[Hashable]:
    """Orientation, size and pixel spacing of each slice; orientations equal but for rounding are the same."""
    known: list[NDArray[np.float64]] = []
    number: dict[tuple[float, ...], int] = {}
    for one in slices:
        orientation = one.common.orientation
        if orientation in number:
            continue
        direction = np.array(orientation)
        same = [k for k, other in enumerate(known) if np.abs(direction - other).max() <= SAME_DIRECTION]
        number[orientation] = same[0] if same else len(known)
        if not same:
            known.append(direction)
    commons = [one.common for one in slices]
    return [(number[c.orientation], c.rows, c.columns, c.spacing_mm) for c in commons]


def _contents(slices: list[Slice]) -> list[list[Slice]]:
    """Parallel slices by kernel, echo and image type where these overlap along the normal."""
    parts = [slices]
    keys: tuple[Callable[[Slice], Hashable], ...] = (
        lambda one: (one.common.kernel, one.common.echo),
        lambda one: one.common.image_type,
    )
    for key in keys:
        split: list[list[Slice]] = []
        for part in parts:
            groups = _grouped(part, [key(one) for one in part])
            split += groups if _overlap(groups) else [part]
        parts = split
    return parts


def _by_pass(slices: list[Slice]) -> list[Part]:
    """Parallel slices by their passes through the body, where these are scans.

    They are where each shows at least half of what another one does, at other positions, and they have as many slices
    as a scan needs on average. Else the slices stay one stack: of passes that only touch reading notes it, images at
    one position are a series over time, and numbers in no order would leave single slices.
    """
    heights = heights_of(slices)
    passes = passes_of([one.acquisition for one in slices], heights)
    if len(passes) < 2 or len(slices) < MIN_SLICES * len(passes):
        return [Part(tuple(slices))]
    scans = all(any(_shows_half(one, first) for first in passes[:k]) for k, one in enumerate(passes) if k)
    if not scans or _meet(slices, heights):
        return [Part(tuple(slices))]
    return [Part(tuple(slices[k] for k in sorted(one.slices)), f"acquisition {one.numbers[0]}") for one in passes]


def _shows_half(one: Pass, other: Pass) -> bool:
    """Whether two passes share at least half of what the shorter one shows."""
    return one.shared_mm(other) >= max(0.0, 0.5 * min(one.high - one.low, other.high - other.low))


def _meet(slices: Sequence[Slice], heights: NDArray[np.float64]) -> bool:
    """Whether two acquisitions have a slice at one position."""
    order = np.argsort(heights, kind="stable")
    numbers = [slices[k].acquisition for k in order]
    near = np.diff(heights[order]) < SAME_POSITION_MM
    return any(numbers[k] != numbers[k + 1] for k in np.flatnonzero(near))


def _overlap(groups: Sequence[Sequence[Slice]]) -> bool:
    """Whether any two groups of parallel slices show the same part of the body."""
    if len(groups) < 2:
        return False
    ranges = sorted((float(h.min()), float(h.max())) for h in (heights_of(group, groups[0][0]) for group in groups))
    highest = ranges[0][1]
    for low, high in ranges[1:]:
        if low < highest + SAME_POSITION_MM:
            return True
        highest = max(highest, high)
    return False


def heights_of(slices: Sequence[Slice], like: Slice | None = None) -> NDArray[np.float64]:
    """Heights of parallel slices along the normal of the first (or of another slice), mm."""
    directions = np.array((like or slices[0]).common.orientation)
    normal = np.cross(directions[:3], directions[3:])
    size = float(np.linalg.norm(normal))
    positions = np.array([one.position for one in slices])
    return np.asarray(positions @ (normal / size if size > 0 else normal))


def _grouped(items: Sequence[T], keys: Sequence[Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def _part_name(part: Part) -> str:
    """What tells a part from others and stays the same when slices are added: it goes into the identity of the scan."""
    if not part.placed:
        return "no position"
    common = part.slices[0].common
    direction = ",".join(f"{value:.2f}" for value in np.round(common.orientation, 2) + 0.0)
    spacing = "x".join(f"{value:.3f}" for value in common.spacing_mm)
    kind = (common.kernel, common.echo, "/".join(common.image_type))
    told = (direction, f"{common.rows}x{common.columns}", spacing, *kind)
    return "|".join((*told, part.name) if part.name else told)


def without_repeats(slices: Sequence[Slice]) -> tuple[list[Slice], int]:
    """Slices that are there twice under different UIDs, with the same pixels, are taken once.

    Pixels are read of slices at one position only, and no more after the first two that differ: then it is a series
    over time, and all are kept for its reader to refuse.

    Returns:
        The slices, and how many were left out.
    """
    heights = heights_of(slices)
    order = np.argsort(heights, kind="stable")
    kept: list[int] = []
    first = -1
    reader = PixelReader()
    for k in order:
        if first >= 0 and heights[k] - heights[first] < SAME_POSITION_MM:
            if not _same_picture(reader, slices[first], slices[k]):
                return list(slices), 0
            continue
        first = int(k)
        kept.append(first)
    return [slices[k] for k in sorted(kept)], len(slices) - len(kept)


def _same_picture(reader: PixelReader, one: Slice, other: Slice) -> bool:
    moved = float(np.linalg.norm(np.array(one.position) - other.position))
    try:
        return moved < SAME_POSITION_MM and reader.same(one, other)
    except ImageReadError:  # reading the scan names the slice
        return False
