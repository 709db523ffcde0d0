"""Base head: a real scan as the head of phantoms: where its skull, ventricles and CSF are, and how it is varied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headctssl.errors import DataError
from headctssl.ingest.phantom.fields import Array, Position, Ranges, Waves
from headctssl.ingest.phantom.shapes import Part, Triple
from headctssl.types import Volume

__all__ = ["BaseHead", "load_base", "vary_base"]

_BONE_HU = 200.0
_SOFT_HU = 110.0  # brain and blood are below it; thin bone that shares voxels with them is above
_STEP_MM = 2.0  # grid on which the skull and the ventricles are looked for
_FINEST_MM = 1.0  # of the image itself
_THICKEST_MM = 16.0  # of a skull
_CUT_MM = 9.0  # the cavity is separated from what is below the skull where it is narrower than twice this
_TALLEST_MM = 150.0  # of a cranial cavity
_DEEP_MM = 18.0  # CSF further from the skull than this belongs to the ventricles
_LEAST_CAVITY_ML = 700.0
_LEAST_VENTRICLE_ML = 2.0
_NOMINAL = (72.0, 84.0, 67.0)  # half extents of the cranial cavity (z up, y, x) that places of findings refer to


@dataclass(frozen=True, eq=False)
class BaseHead:
    """A real head in head coordinates; see `HeadShape` for what its methods give."""

    hu: Array  # (z, y, x)
    hu_step_mm: Triple
    fields: dict[str, Array]  # signed distances inner, outer, ventricle in mm, and the share spaces
    step_mm: Triple  # of the fields
    origin_mm: Triple  # of the middle of the cranial cavity, from the first voxel
    half_mm: Triple
    stretch: Triple = (1.0, 1.0, 1.0)  # size against the image per axis
    bend: tuple[Waves, ...] = ()  # displacement along z, y, x in mm
    gap_mm: float = 1.5
    base_parts: tuple[Part, ...] = ()
    face_parts: tuple[Part, ...] = ()
    contrast: bool = False
    white_hu: float = 28.0

    @property
    def scale(self) -> Triple:
        """Size against the nominal head per axis."""
        a, b, c = (h / n for h, n in zip(self.half_mm, _NOMINAL, strict=True))
        return (a, b, c)

    @property
    def vertex_mm(self) -> float:
        """Height of the skin at the vertex."""
        return self.half_mm[0] + 20.0

    @property
    def head_ranges(self) -> Ranges:
        """A box in head coordinates that holds the image."""
        low_high = [
            (-o * f - 6, ((n - 1) * s - o) * f + 6)
            for n, o, s, f in zip(self.hu.shape, self.origin_mm, self.hu_step_mm, self.stretch, strict=True)
        ]
        return (low_high[0], low_high[1], low_high[2])

    @property
    def cavity_ranges(self) -> Ranges:
        """A box in head coordinates that holds the cranial cavity."""
        z, y, x = ((-h - 12, h + 12) for h in self.half_mm)
        return (z, y, x)

    def density(self, position: Position) -> Array:
        """HU of the image at head coordinates, air beyond its border."""
        return self._sample(self.hu, self.hu_step_mm, position, -1000.0)

    def _field(self, name: str, position: Position, outside: float) -> Array:
        return self._sample(self.fields[name], self.step_mm, position, outside)

    def _sample(self, values: Array, step_mm: Triple, position: Position, outside: float) -> Array:
        moved = [
            p * np.float32(1 / f) + (wave.at(position) if wave is not None else np.float32(0))
            for p, f, wave in zip(position, self.stretch, self.bend or (None, None, None), strict=True)
        ]
        index = [
            (m + np.float32(o)) * np.float32(1 / s) for m, s, o in zip(moved, step_mm, self.origin_mm, strict=True)
        ]
        places = np.stack(np.broadcast_arrays(*index))
        out: Array = ndimage.map_coordinates(values, places, order=1, mode="constant", cval=outside, output=np.float32)
        return out

    def inner_table(self, position: Position) -> Array:
        """Signed distance to the inner surface of the skull in mm, negative in the cavity."""
        return self._field("inner", position, 50.0)

    def skull_thickness(self, position: Position) -> Array:
        """Thickness of the skull in mm, at least 2."""
        outer = self._field("outer", position, 45.0)
        return np.asarray(np.maximum(self.inner_table(position) - outer, 2), np.float32)

    def lateral_ventricle(self, position: Position) -> Array:
        """Signed distance to the ventricles in mm."""
        return self._field("ventricle", position, 50.0)

    def subarachnoid(self, position: Position, own: Position, surface: Array, ventricle: Array) -> Array:
        """Share of each place that is CSF between brain and skull."""
        share = self._field("spaces", own, 0.0)
        return np.asarray(share * (surface < 0), np.float32)

    def head_fields(self, position: Position) -> dict[str, Array]:
        """Signed distances `inner` and `outer`."""
        inner = self.inner_table(position)
        return {"inner": inner, "outer": inner - self.skull_thickness(position)}

    def brain_fields(self, position: Position) -> dict[str, Array]:
        """Signed distance to the ventricles, in the brain's own coordinates."""
        return {"ventricle": self.lateral_ventricle(position)}

    def gap(self, position: Position) -> Array:
        """Width of the CSF between skull and brain in mm."""
        return np.full((1, 1, 1), self.gap_mm, np.float32)


def load_base(path: Path) -> BaseHead:
    """Read a real head CT and find its skull, cavity and ventricles.

    Args:
        path: any image that `image_io.read` opens, in Hounsfield units, with the whole vault.

    Raises:
        DataError: the image cannot be read, is not in Hounsfield units, or has no closed skull or no ventricles.
    """
    from headctssl.dataset.image_io import read

    return base_of(read(path), path.name)


def base_of(volume: Volume, name: str) -> BaseHead:
    """A base head of a volume; `name` is for messages, errors as `load_base`."""
    fine, fine_step = _coarsened(volume, _FINEST_MM)
    hu, step = _coarsened(volume, _STEP_MM)
    cavity = _cavity(hu, step, name)
    where = np.argwhere(cavity)
    low, high = where.min(axis=0), where.max(axis=0)
    middle, half = (low + high) / 2 * np.array(step), (high - low + 1) / 2 * np.array(step)
    inner = _signed(cavity, step)
    skull = cavity | ((hu > _BONE_HU) & (inner < _THICKEST_MM))
    skull = ndimage.binary_closing(skull, iterations=2) | cavity
    brain = float(np.median(hu[cavity & (inner < -6)]))
    water = np.clip((brain - 8 - hu) * np.float32(1 / max(brain - 14, 8)), 0, 1).astype(np.float32)
    ventricle = _ventricles(water, inner, step, name)
    spaces = np.where(cavity & ~ndimage.binary_dilation(ventricle, iterations=2), water, 0).astype(np.float32)
    fields = {"inner": inner, "outer": _signed(skull, step), "ventricle": _signed(ventricle, step), "spaces": spaces}
    return BaseHead(fine, fine_step, fields, step, _triple(middle), _triple(half), white_hu=brain - 3)


def _coarsened(volume: Volume, least_mm: float) -> tuple[Array, Triple]:
    """HU on the volume's grid, or on one of the least spacing where that is finer; its first voxel stays."""
    zoom = [max(s, least_mm) / s for s in volume.spacing_mm]
    shape = tuple(int(np.floor((n - 1) / f)) + 1 for n, f in zip(volume.hu.shape, zoom, strict=True))
    soft = ndimage.gaussian_filter(volume.hu.astype(np.float32), [0.4 * (f - 1) for f in zoom])
    hu = ndimage.affine_transform(soft, np.array(zoom), output_shape=shape, order=1, mode="nearest")
    return np.asarray(hu, np.float32), _triple(np.array(volume.spacing_mm) * zoom)


def _triple(values: NDArray[np.float64]) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))


def _cavity(hu: Array, step: Triple, name: str) -> NDArray[np.bool_]:
    """The inside of the skull: the largest soft thing that is left when narrow connections are cut."""
    soft = (hu > -30) & (hu < _SOFT_HU)
    core = ndimage.distance_transform_edt(soft, sampling=step) > _CUT_MM
    body = _largest(core)
    grown = (ndimage.distance_transform_edt(~body, sampling=step) < _CUT_MM + 1) & soft
    rows = np.flatnonzero(grown.any(axis=(1, 2)))
    if rows.size:
        grown[: max(0, int(rows[-1]) + 1 - round(_TALLEST_MM / step[0]))] = False
    # The base of the skull is thin and open in places, but no wider than the vault above it.
    middle = int(np.argwhere(grown)[:, 0].mean()) if grown.any() else 0
    grown[:middle] &= grown[middle:].any(axis=0)
    grown = _largest(ndimage.binary_opening(grown, iterations=2))
    millilitres = float(grown.sum() * np.prod(step) / 1000)
    ringed = _share_under_bone(grown, hu, step)
    if millilitres < _LEAST_CAVITY_ML or ringed < 0.5:
        raise DataError(
            f"{name} cannot be the base of a phantom: no closed skull was found.",
            got=f"a cavity of {millilitres:.0f} ml, {ringed:.0%} of its surface under bone",
            expected=f"at least {_LEAST_CAVITY_ML:.0f} ml and half of the surface under bone above {_BONE_HU:g} HU",
            do="Give a head CT in Hounsfield units that shows the whole vault.",
        )
    return np.asarray(grown, np.bool_)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == int(sizes.argmax()))


def _share_under_bone(cavity: NDArray[np.bool_], hu: Array, step: Triple) -> float:
    """Share of the surface of the cavity, above its middle, with bone within 8 mm."""
    rim = ndimage.binary_dilation(cavity) & ~cavity
    rows = np.flatnonzero(cavity.any(axis=(1, 2)))
    if not rows.size:
        return 0.0
    rim[: int(rows.mean())] = False
    near = ndimage.distance_transform_edt(hu < _BONE_HU, sampling=step) < 8
    return float(near[rim].mean()) if rim.any() else 0.0


def _ventricles(water: Array, inner: Array, step: Triple, name: str) -> NDArray[np.bool_]:
    deep = (water > 0.45) & (inner < -_DEEP_MM)
    deep[: int(np.argwhere(inner < 0)[:, 0].mean()) - round(22 / step[0])] = False  # cisterns of the base
    labels, count = ndimage.label(ndimage.binary_dilation(deep))
    keep = np.zeros_like(deep)
    if count:
        sizes = ndimage.sum_labels(deep, labels, np.arange(1, count + 1))
        keep = deep & np.isin(labels, 1 + np.flatnonzero(sizes > 0.25 * sizes.max()))
    millilitres = float(keep.sum() * np.prod(step) / 1000)
    if millilitres < _LEAST_VENTRICLE_ML:
        raise DataError(
            f"{name} cannot be the base of a phantom: no ventricles were found.",
            got=f"{millilitres:.1f} ml of CSF deeper than {_DEEP_MM:g} mm",
            expected=f"at least {_LEAST_VENTRICLE_ML:g} ml",
            do="Give another head CT without contrast medium.",
        )
    return np.asarray(keep, np.bool_)


def _signed(mask: NDArray[np.bool_], step: Triple) -> Array:
    """Signed distance in mm, negative inside, 0 half a voxel from both sides."""
    outside = ndimage.distance_transform_edt(~mask, sampling=step)
    within = ndimage.distance_transform_edt(mask, sampling=step)
    half = min(step) / 2
    return np.asarray(np.where(mask, half - within, outside - half), np.float32)


def vary_base(base: BaseHead, rng: np.random.Generator) -> BaseHead:
    """Another subject: the head stretched by up to 6 % per axis and bent smoothly by about 1.5 mm."""
    from dataclasses import replace

    stretch = tuple(float(f) for f in rng.uniform(0.94, 1.06, 3))
    bend = tuple(Waves.draw(rng, 1.5, 70, 160) for _ in range(3))
    half = tuple(h * f for h, f in zip(base.half_mm, stretch, strict=True))
    return replace(base, stretch=(stretch[0], stretch[1], stretch[2]), bend=bend, half_mm=(half[0], half[1], half[2]))
