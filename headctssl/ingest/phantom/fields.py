"""Fields: smooth functions of position, and how they are evaluated quickly on the slices of a scan.

Positions are in mm in head coordinates (z, y, x), growing to superior, posterior, patient left,
with the origin in the middle of the cranial cavity. Smooth fields are computed on a coarse grid
that is aligned with the scan and interpolated linearly, which is exact to about 0.05 mm
(h^2 / 8 x curvature, h = 4 mm, curvature 1/50 mm); small parts are evaluated directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

__all__ = [
    "Array",
    "Block",
    "CoarseGrid",
    "Frame",
    "Position",
    "Ranges",
    "TextureNoise",
    "Waves",
    "coverage",
    "sheet_coverage",
    "smooth_max",
]

Array = NDArray[np.float32]
Position = tuple[Array, Array, Array]
"""Broadcastable z, y, x in mm, head coordinates."""

Range = tuple[float, float]
Ranges = tuple[Range, Range, Range]
"""Lowest and highest z, y, x in mm of a box in head coordinates."""


def coverage(distance: Array, width: float) -> Array:
    """Share of a voxel inside a surface: 1 deep inside (negative distance), 0 outside.

    Args:
        distance: signed distance to the surface in mm.
        width: extent of the transition in mm, about the size of a pixel.
    """
    out = distance * np.float32(-1.0 / width)
    out += np.float32(0.5)
    return np.clip(out, 0.0, 1.0, out=out)


def sheet_coverage(offset: Array, half: Array | float, width: float) -> Array:
    """Share of a voxel inside a sheet that may be thinner than the voxel.

    Args:
        offset: distance from the middle of the sheet in mm, 0 or more.
        half: half the thickness of the sheet in mm.
        width: extent of the transition in mm.
    """
    out = (half - offset) * np.float32(1.0 / width)
    out += np.float32(0.5)
    most = np.minimum(np.float32(1.0), np.maximum(np.asarray(half, np.float32), 0.0) * np.float32(2.0 / width))
    return np.clip(out, np.float32(0.0), most, out=out)


def smooth_max(a: Array, b: Array, radius: float) -> Array:
    """Maximum of two distances with a rounded edge of the given radius in mm; -smooth_max(-a, -b) is the minimum."""
    h = np.clip(np.float32(radius) - np.abs(a - b), 0.0, None)
    return np.asarray(np.maximum(a, b) + h * h * np.float32(0.25 / radius), np.float32)


@dataclass(frozen=True)
class Waves:
    """A random smooth function: a sum of a few plane waves, standard deviation `amplitude`."""

    wave_vectors: tuple[tuple[float, float, float], ...]  # radians per mm (z, y, x)
    phases: tuple[float, ...]
    amplitude: float

    @staticmethod
    def draw(rng: np.random.Generator, amplitude: float, shortest_mm: float, longest_mm: float, n: int = 5) -> Waves:
        """Draw `n` waves with lengths between two limits in mm."""
        directions = rng.normal(size=(n, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        k = directions * (2 * np.pi / rng.uniform(shortest_mm, longest_mm, size=(n, 1)))
        vectors = tuple((float(a), float(b), float(c)) for a, b, c in k)
        return Waves(vectors, tuple(float(p) for p in rng.uniform(0, 2 * np.pi, n)), amplitude)

    def at(self, position: Position) -> Array:
        """The value at positions, in the unit of `amplitude`."""
        z, y, x = position
        total: Array | None = None
        for (kz, ky, kx), phase in zip(self.wave_vectors, self.phases, strict=True):
            wave = np.cos(z * np.float32(kz) + y * np.float32(ky) + (x * np.float32(kx) + np.float32(phase)))
            total = wave if total is None else total + wave
        assert total is not None
        return np.asarray(total * np.float32(self.amplitude * np.sqrt(2.0 / len(self.phases))), np.float32)


@dataclass(frozen=True, eq=False)
class TextureNoise:
    """Band-limited periodic noise with mean 0 and standard deviation 1."""

    values: Array  # (n, n, n)
    step_mm: float

    @staticmethod
    def draw(rng: np.random.Generator, wavelength_mm: float, step_mm: float, n: int) -> TextureNoise:
        """Draw noise whose waves are between 0.7 and 1.5 times `wavelength_mm` long."""
        white = rng.standard_normal((n, n, n), dtype=np.float32)
        spectrum = fft.rfftn(white)
        f = np.fft.fftfreq(n, step_mm).astype(np.float32)
        fx = np.fft.rfftfreq(n, step_mm).astype(np.float32)
        radius = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + fx[None, None, :] ** 2) * wavelength_mm
        spectrum *= ((radius > 1 / 1.5) & (radius < 1 / 0.7)).astype(np.float32)
        values = fft.irfftn(spectrum, s=(n, n, n)).astype(np.float32)
        return TextureNoise(values / max(float(values.std()), 1e-6), step_mm)

    def at(self, position: Position) -> Array:
        """The value at positions, interpolated linearly."""
        index = np.stack(np.broadcast_arrays(*[p * np.float32(1 / self.step_mm) for p in position]))
        return ndimage.map_coordinates(self.values, index, order=1, mode="grid-wrap", output=np.float32)


@dataclass(frozen=True)
class Frame:
    """An affine map from scan index (k, j, i) to head coordinates (z, y, x) in mm."""

    matrix: NDArray[np.float64]  # (3, 3)
    offset: NDArray[np.float64]  # (3,)
    _boxes: dict[Ranges, NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)

    def position(self, k: NDArray[np.float64], j: NDArray[np.float64], i: NDArray[np.float64]) -> Position:
        """Head coordinates of the grid spanned by three index vectors, each (len k, len j, len i)."""
        out = []
        for axis in range(3):
            a, b, c = self.matrix[axis]
            plane = (b * j)[:, None] + (c * i)[None, :]
            value = plane.astype(np.float32)[None] + (a * k + self.offset[axis]).astype(np.float32)[:, None, None]
            out.append(value)
        return (out[0], out[1], out[2])

    def index_box(self, ranges: Ranges) -> NDArray[np.float64]:
        """Lowest and highest index (3, 2) along (k, j, i) of a box in head coordinates, not to be changed."""
        if ranges not in self._boxes:  # every block of slices asks for the same ones
            corners = np.array([[z, y, x] for z in ranges[0] for y in ranges[1] for x in ranges[2]], np.float64)
            index = np.linalg.solve(self.matrix, (corners - self.offset).T)
            self._boxes[ranges] = np.stack([index.min(axis=1), index.max(axis=1)], axis=1)
        return self._boxes[ranges]


class CoarseGrid:
    """Named fields on a coarse grid aligned with the scan, interpolated linearly on demand.

    Args:
        frame: the scan's index to head coordinates.
        box: (3, 2) index range to cover.
        step_mm: distance between nodes, about, in mm.
        compute: positions of the nodes -> fields by name.
    """

    def __init__(
        self,
        frame: Frame,
        box: NDArray[np.float64],
        step_mm: float,
        compute: Callable[[Position], Mapping[str, Array]],
    ) -> None:
        spacing = np.linalg.norm(frame.matrix, axis=0)
        self.box = box
        self.start = box[:, 0] - 0.5
        extent = box[:, 1] + 0.5 - self.start
        self.counts = np.maximum(2, np.ceil(extent * spacing / step_mm).astype(int) + 1)
        self.step = extent / (self.counts - 1)
        nodes = [self.start[a] + self.step[a] * np.arange(self.counts[a]) for a in range(3)]
        self.fields = dict(compute(frame.position(nodes[0], nodes[1], nodes[2])))

    def _weights(self, axis: int, index: NDArray[np.float64]) -> tuple[NDArray[np.intp], Array]:
        place = np.clip((index - self.start[axis]) / self.step[axis], 0, self.counts[axis] - 1.001)
        low = np.floor(place).astype(np.intp)
        return low, (place - low).astype(np.float32)

    def at(self, name: str, k: NDArray[np.float64], j: NDArray[np.float64], i: NDArray[np.float64]) -> Array:
        """One field on the grid spanned by three index vectors; positions outside take the edge value.

        Args:
            name: of the field.
            k: indices of slices.
            j: indices of rows.
            i: indices of columns, ascending.
        """
        field = self.fields[name]
        low, w = self._weights(0, k)
        planes = field[low]
        planes = planes + w[:, None, None] * (field[low + 1] - planes)
        low, w = self._weights(1, j)
        rows = planes[:, low]
        rows += w[None, :, None] * (planes[:, low + 1] - rows)
        low, w = self._weights(2, i)
        # Columns between two nodes follow each other: repeated they are made twice as fast as looked up one by one.
        times = np.bincount(low, minlength=self.counts[2] - 1)
        out = np.repeat(np.diff(rows, axis=2), times, axis=2)
        out *= w
        out += np.repeat(rows[:, :, :-1], times, axis=2)
        return np.asarray(out, np.float32)


class Block:
    """A few neighbouring slices being painted: Hounsfield units, optional tissue ids, positions.

    Args:
        frame: the scan's index to head coordinates.
        k: slice positions in index units, ascending, evenly spaced.
        j: row indices.
        i: column indices.
        width: extent of partial-volume transitions in mm.
        background: HU to begin with.
        tissues: also keep the id of the tissue that fills most of each voxel.
    """

    def __init__(
        self,
        frame: Frame,
        k: NDArray[np.float64],
        j: NDArray[np.float64],
        i: NDArray[np.float64],
        *,
        width: float,
        background: float,
        tissues: bool = False,
    ) -> None:
        self.frame, self.k, self.j, self.i, self.width = frame, k, j, i, width
        shape = (len(k), len(j), len(i))
        self.hu = np.full(shape, background, np.float32)
        self.tissue = np.zeros(shape, np.uint8) if tissues else None
        self._covered: dict[CoarseGrid, tuple[slice, slice, slice] | None] = {}
        self._fields: dict[tuple[CoarseGrid, str], Array] = {}

    def window(self, ranges: Ranges) -> tuple[slice, slice, slice] | None:
        """The part of the block that a box in head coordinates touches, or None."""
        return self._touched(self.frame.index_box(ranges))

    def _touched(self, box: NDArray[np.float64]) -> tuple[slice, slice, slice] | None:
        """The part of the block that a box (3, 2) of scan indices touches, or None."""
        out = []
        for (low, high), axis in zip(box, (self.k, self.j, self.i), strict=True):
            start, stop = int(np.searchsorted(axis, low - 1)), int(np.searchsorted(axis, high + 1))
            if start >= stop:
                return None
            out.append(slice(start, stop))
        return (out[0], out[1], out[2])

    def position(self, window: tuple[slice, slice, slice]) -> Position:
        """Head coordinates of a part of the block."""
        return self.frame.position(self.k[window[0]], self.j[window[1]], self.i[window[2]])

    def field(self, grid: CoarseGrid, name: str, window: tuple[slice, slice, slice]) -> Array:
        """A coarse field on a part of the block, not to be changed.

        It is made once for all of the block that the grid covers: most pieces of a head ask for the same few fields.
        """
        if grid not in self._covered:
            self._covered[grid] = self._touched(grid.box)
        whole = self._covered[grid]
        if whole is None or any(w.start < a.start or w.stop > a.stop for w, a in zip(window, whole, strict=True)):
            return grid.at(name, self.k[window[0]], self.j[window[1]], self.i[window[2]])
        values = self._fields.get((grid, name))
        if values is None:
            values = grid.at(name, self.k[whole[0]], self.j[whole[1]], self.i[whole[2]])
            values.flags.writeable = False
            self._fields[grid, name] = values
        z, y, x = (slice(w.start - a.start, w.stop - a.start) for w, a in zip(window, whole, strict=True))
        return values[z, y, x]

    def paint(
        self, window: tuple[slice, slice, slice], cover: Array, value: Array | float, tissue: int | None = None
    ) -> None:
        """Mix `value` (HU) into a part of the block with weight `cover` in [0, 1]."""
        part = self.hu[window]
        change = value - part
        change *= cover
        part += change
        if self.tissue is not None and tissue is not None:
            self.tissue[window][cover > 0.5] = tissue
