"""Crop masks: the masks and the label map of a crop, read from beside its case when somebody wants them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headctssl.dataset.masks import ANATOMY, ANONYMIZATION, SEGMENTATION
from headctssl.errors import DataError
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.types import Box
from headctssl.volume.mask_store import StoredLabels, StoredMask

if TYPE_CHECKING:
    from headctssl.loading.volume_dataset import Crop

__all__ = ["MASK_NAMES", "NO_MASKS", "UNKNOWN", "MaskReads", "with_masks"]

MASK_NAMES = {ANATOMY: "anatomy", ANONYMIZATION: "anonymization"}
"""Stored mask -> its name in `PretrainBatch.masks`."""

UNKNOWN = -1
"""Value of a segmentation where nobody knows what is there."""


@dataclass(frozen=True)
class MaskReads:
    """What is read beside the voxels, of the cases that have it. Nothing by default."""

    anonymization: bool = False  # voxels that were changed to hide a face
    anatomy: bool = False  # where to look more often
    classes: tuple[str, ...] = ()  # classes of the segmentation by name; () = it is not read

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of the stored masks."""
        wanted = ((ANATOMY, self.anatomy), (ANONYMIZATION, self.anonymization), (SEGMENTATION, bool(self.classes)))
        return tuple(name for name, yes in wanted if yes)

    @property
    def bytes_per_voxel(self) -> int:
        """At most, beside the voxel itself."""
        return int(self.anatomy) + int(self.anonymization) + 2 * bool(self.classes)


NO_MASKS = MaskReads()
"""Voxels alone."""


def with_masks(crop: Crop, index: CaseIndex, position: int, reads: MaskReads) -> Crop:
    """The crop with the masks of its case; the same crop, and no file opened, when it has none of those wanted.

    Args:
        crop: the voxels that were read.
        index: where the case is stored.
        position: of the case in the index.
        reads: what is wanted.

    Raises:
        CorruptCaseError: a chunk fails its checksum; the file is named.
        DataError: the values of the label map have no names.
    """
    names = [name for name in reads.stored if name in index.table.masks_of(position)]
    if not names:
        return crop
    case_id = index.case_ids[position]
    masks: dict[str, NDArray[np.bool_]] = {}
    segmentation = known = None
    for name in names:
        path = mask_path(index.folder, case_id, name)
        if name == SEGMENTATION:
            segmentation, known = _classes_of(StoredLabels(path), crop, reads.classes)
            continue
        marks = np.zeros(crop.volume.shape, np.bool_)
        marks[_inside(crop)] = StoredMask(path).read(_stored_box(crop))
        masks[MASK_NAMES[name]] = marks
    return replace(crop, masks=masks, segmentation=segmentation, known_classes=known)


def _classes_of(
    stored: StoredLabels, crop: Crop, classes: tuple[str, ...]
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """The label map in the run's classes, (1, d, h, w), and which of them its dataset marks, (K,)."""
    meta = stored.meta
    if meta is None or not meta.classes:
        raise DataError(
            f"The values of the segmentation {stored.path.name} have no names.",
            got="no segmentation_classes",
            expected="{name: value} under segmentation_classes of dataset.json",
            do="Add them and run headct_plan_and_preprocess again.",
        )
    position = {name: number for number, name in enumerate(classes, start=1)}
    to_run = np.full(256, UNKNOWN, np.int16)
    to_run[0] = 0
    for spec in meta.classes:
        to_run[spec.value] = position.get(spec.name, 0)
    labels = np.full(crop.volume.shape, UNKNOWN, np.int16)
    labels[_inside(crop)] = to_run[stored.read(_stored_box(crop))]
    marked = {spec.name for spec in meta.classes}
    return labels, np.array([name in marked for name in classes])


def _inside(crop: Crop) -> tuple[slice | int, ...]:
    """Where the stored voxels lie in the crop."""
    return (0, *(slice(start, stop) for start, stop in crop.inside_box.tolist()))


def _stored_box(crop: Crop) -> Box:
    """Where the crop's stored voxels lie in the case."""
    z, y, x = (
        (start + low, start + high) for start, (low, high) in zip(crop.start, crop.inside_box.tolist(), strict=True)
    )
    return (z, y, x)
