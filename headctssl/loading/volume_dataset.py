"""Volume dataset: reads crops of stored cases; all that reader processes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from numpy.typing import NDArray
from torch import Tensor

from headctssl.errors import DataError, HeadCTSSLError
from headctssl.loading.crop_masks import NO_MASKS, UNKNOWN, MaskReads, with_masks
from headctssl.loading.sampler import SampleRef
from headctssl.preprocessing.index import CaseIndex
from headctssl.seeding import sample_generator
from headctssl.types import Box
from headctssl.volume.geometry import AIR_HU
from headctssl.volume.store import StoredCase

__all__ = ["Crop", "CropBatch", "VolumeDataset", "collate", "crop_box", "read_crop"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Crop:
    """A box of one stored case, padded with air where it reaches outside."""

    volume: NDArray[np.int16]  # (1, d, h, w), HU
    inside_box: NDArray[np.int64]  # (3, 2), the stored voxels of `volume`, start and stop per axis
    head_box: NDArray[np.float32]  # (3, 2), start and stop of the head in voxels of `volume`
    spacing_mm: NDArray[np.float32]  # (3,)
    start: Shape = (0, 0, 0)  # voxel of the case at which the crop begins; negative where it begins outside
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)  # name -> (1, d, h, w), of those wanted
    segmentation: NDArray[np.int16] | None = None  # (1, d, h, w), as `PretrainBatch.segmentation`
    known_classes: NDArray[np.bool_] | None = None  # (K,)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(1, d, h, w), True where a stored voxel was read."""
        mask = np.zeros(self.volume.shape, bool)
        (z0, z1), (y0, y1), (x0, x1) = self.inside_box.tolist()
        mask[:, z0:z1, y0:y1, x0:x1] = True
        return mask


@dataclass
class CropBatch:
    """Crops of one batch as they cross from a reader process; `inside` is still a box per sample."""

    volume: Tensor  # int16 (B, 1, D, H, W), HU
    inside_box: Tensor  # int64 (B, 3, 2)
    head_box: Tensor  # float32 (B, 3, 2)
    spacing_mm: Tensor  # float32 (B, 3)
    refs: list[SampleRef]
    masks: dict[str, Tensor] = field(default_factory=dict)  # name -> bool (B, 1, D, H, W), of those that a case has
    segmentation: Tensor | None = None  # int16 (B, 1, D, H, W)
    known_classes: Tensor | None = None  # bool (B, K)


def crop_box(
    shape: Sequence[int], head_box: Box, read_shape: Shape, generator: np.random.Generator | None = None
) -> Box:
    """Where to read, decided before reading.

    Along an axis where the case is no longer than the box, all of it is read. Elsewhere the box lies inside the
    case and holds as much of the head as it can: at a drawn place, or as near to the head's centre as it gets.

    Args:
        shape: voxels (z, y, x) of the case.
        head_box: the head in voxels of the case.
        read_shape: voxels (z, y, x) of the box.
        generator: draws the place; the centre of the head when None.

    Returns:
        A box of ``read_shape`` that may reach outside the case.
    """
    u = np.full(3, 0.5) if generator is None else generator.random(3)
    sides = []
    for axis in range(3):
        size, read = int(shape[axis]), int(read_shape[axis])
        low, high = head_box[axis]
        if generator is None or size <= read:
            start = round((low + high - read) / 2)
        else:
            first, last = min(low, high - read), max(low, high - read)
            first, last = min(max(first, 0), size - read), min(max(last, 0), size - read)
            start = first + int(u[axis] * (last - first + 1))
        start = min(max(start, min(0, size - read)), max(0, size - read))
        sides.append((start, start + read))
    return (sides[0], sides[1], sides[2])


class _CheckedArray:
    """A stored case as acvl_utils wants an array: reading goes through the case's checksums."""

    def __init__(self, case: StoredCase) -> None:
        self.case = case
        self.shape = case.shape

    def __getitem__(self, slices: tuple[slice, ...]) -> NDArray[np.int16]:
        z, y, x = slices[1:]
        return self.case.read(((z.start, z.stop), (y.start, y.stop), (x.start, x.stop)))


def read_crop(case: StoredCase, read_shape: Shape | None, generator: np.random.Generator | None = None) -> Crop:
    """Read a box of fixed shape from a stored case.

    Args:
        case: the case.
        read_shape: voxels (z, y, x); the whole case when None.
        generator: draws where the box lies; about the centre of the head when None.

    Raises:
        CorruptCaseError: a chunk fails its checksum; the file is named.
    """
    meta = case.meta
    shape = case.shape[1:]
    full: Shape = (shape[0], shape[1], shape[2])
    box = crop_box(full, meta.head_box, read_shape or full, generator)
    volume = crop_and_pad_nd(_CheckedArray(case), [list(side) for side in box], pad_value=int(AIR_HU))
    start = np.array([side[0] for side in box])
    stop = np.array([side[1] for side in box])
    inside = np.stack([np.maximum(-start, 0), np.minimum(stop, full) - start], axis=1)
    head = np.asarray(meta.head_box, np.float32) - start[:, None].astype(np.float32)
    spacing = np.asarray(meta.spacing_mm, np.float32)
    return Crop(np.ascontiguousarray(volume, np.int16), inside, head, spacing, (box[0][0], box[1][0], box[2][0]))


class VolumeDataset(torch.utils.data.Dataset["Crop | HeadCTSSLError"]):
    """Crops by sample. A failure the user can act on is returned, not raised.

    torch would turn an error that crosses a process boundary into text about its own workers; the loader raises
    it as it is.

    Args:
        indexes: stored cases; a case index counts through all of them.
        read_shape: voxels (z, y, x) read per case; the whole case when None.
        seed: the run's seed; None reads about the centre of every head.
        masks: what is read beside the voxels.
    """

    def __init__(
        self,
        indexes: Sequence[CaseIndex],
        read_shape: Shape | None,
        seed: int | None,
        masks: MaskReads = NO_MASKS,
    ) -> None:
        self.indexes = tuple(indexes)
        self.read_shape = read_shape
        self.seed = seed
        self.masks = masks
        self._stops = np.cumsum([len(index) for index in self.indexes])

    def __len__(self) -> int:
        """Number of cases."""
        return int(self._stops[-1]) if len(self._stops) else 0

    def case_id(self, case_index: int) -> str:
        """The id of a case."""
        index, position = self._locate(case_index)
        return index.case_ids[position]

    def __getitem__(self, ref: SampleRef) -> Crop | HeadCTSSLError:
        """Read the crop of one sample."""
        index, position = self._locate(ref.case_index)
        generator = None
        if self.seed is not None:
            generator = sample_generator(self.seed, ref.epoch, ref.sample_index, "crop")
        try:
            crop = read_crop(StoredCase(index.path(position)), self.read_shape, generator)
            return with_masks(crop, index, position, self.masks)
        except HeadCTSSLError as error:
            return type(error)(
                f"The case '{index.case_ids[position]}' cannot be read. {error.what}",
                got=error.got,
                expected=error.expected,
                do=error.do,
            )
        except OSError as error:
            return DataError(
                f"The case '{index.case_ids[position]}' cannot be read.",
                got=error,
                expected="a readable file",
                do="Check the disk and the permissions of the preprocessed folder.",
            )

    def _locate(self, case_index: int) -> tuple[CaseIndex, int]:
        number = int(np.searchsorted(self._stops, case_index, side="right"))
        before = int(self._stops[number - 1]) if number else 0
        return self.indexes[number], case_index - before


def collate(items: Sequence[tuple[SampleRef, Crop | HeadCTSSLError]]) -> CropBatch | HeadCTSSLError:
    """Put crops into one batch, padded with air at their ends to the largest; the first failure takes its place.

    Args:
        items: samples and their crops.
    """
    crops: list[Crop] = []
    for _, crop in items:
        if isinstance(crop, HeadCTSSLError):
            return crop
        crops.append(crop)
    largest = np.max([crop.volume.shape for crop in crops], axis=0).tolist()
    volume = torch.empty((len(crops), *largest), dtype=torch.int16)
    if torch.utils.data.get_worker_info() is not None:
        # Crops are written straight to where the training process finds them.
        volume.share_memory_()  # type: ignore[no-untyped-call]  # torch has no annotation here
    for row, crop in zip(volume.numpy(), crops, strict=True):
        _, d, h, w = crop.volume.shape
        if (d, h, w) != tuple(largest[1:]):
            row.fill(int(AIR_HU))
        row[:, :d, :h, :w] = crop.volume
    known = next((crop.known_classes for crop in crops if crop.known_classes is not None), None)
    return CropBatch(
        volume=volume,
        inside_box=torch.from_numpy(np.stack([crop.inside_box for crop in crops]).astype(np.int64)),
        head_box=torch.from_numpy(np.stack([crop.head_box for crop in crops])),
        spacing_mm=torch.from_numpy(np.stack([crop.spacing_mm for crop in crops])),
        refs=[ref for ref, _ in items],
        masks={
            name: _stacked([crop.masks.get(name) for crop in crops], largest, torch.bool, 0)
            for name in sorted({name for crop in crops for name in crop.masks})
        },
        segmentation=None
        if known is None
        else _stacked([crop.segmentation for crop in crops], largest, torch.int16, UNKNOWN),
        known_classes=None
        if known is None
        else torch.from_numpy(
            np.stack([np.zeros_like(known) if c.known_classes is None else c.known_classes for c in crops])
        ),
    )


def _stacked(
    parts: Sequence[NDArray[np.generic] | None], largest: Sequence[int], dtype: torch.dtype, fill: int
) -> Tensor:
    """Arrays (1, d, h, w) in one tensor (B, *largest), `fill` at their ends and for a case that has none."""
    stacked = torch.full((len(parts), *largest), fill, dtype=dtype)
    for row, part in zip(stacked.numpy(), parts, strict=True):
        if part is not None:
            _, d, h, w = part.shape
            row[:, :d, :h, :w] = part
    return stacked
