"""Masks: what the masks and segmentations of a dataset must be, checked against their image and dataset.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headctssl.contract import SegmentationClass
from headctssl.dataset.image_io import read_label_map
from headctssl.dataset.label_map import LabelMap, MaskRule
from headctssl.errors import DataError
from headctssl.types import Volume

__all__ = ["ANATOMY", "ANONYMIZATION", "MASK_COLUMNS", "SEGMENTATION", "read_mask"]

ANATOMY, ANONYMIZATION, SEGMENTATION = "anatomy_mask", "anonymization_mask", "segmentation"

MASK_COLUMNS = (ANATOMY, ANONYMIZATION, SEGMENTATION)
"""Columns of cases.csv that name a mask, and the names of the masks everywhere else."""

_SAME_MM = 0.1  # the mask's voxels may lie this far from the image's


def read_mask(
    name: str,
    path: Path,
    image: Volume,
    classes: Sequence[SegmentationClass] = (),
    *,
    keep_detail: bool = False,
    fill_gaps: bool = False,
    rule: MaskRule | None = None,
) -> LabelMap:
    """Read one mask of a case and check it.

    Args:
        name: its column in cases.csv.
        path: the file.
        image: the image it belongs to, as `image_io.read` gave it.
        classes: segmentation only: the classes of dataset.json; without any, every value is taken.
        keep_detail: as the image was read.
        fill_gaps: as the image was read.
        rule: which values are inside, of a file that is no label map of a raw dataset yet.

    Returns:
        The mask on the voxels of the image. `anatomy_mask` and `anonymization_mask` mark what is above 0.

    Raises:
        DataError: the file cannot be read, does not lie on the voxels of the image, or has values
            that a mask cannot have or that dataset.json does not name.
    """
    mask = read_label_map(path, keep_detail=keep_detail, fill_gaps=fill_gaps, any_part=name == ANONYMIZATION, rule=rule)
    if mask.values.shape != image.hu.shape or not np.allclose(mask.affine, image.affine, atol=_SAME_MM):
        spacing = np.linalg.norm(mask.affine[:3, :3], axis=0)
        raise DataError(
            f"The mask '{name}' does not lie on the voxels of its image.",
            got=f"{_text(mask.values.shape)} voxels of {_text(spacing)} mm",
            expected=f"{_text(image.hu.shape)} voxels of {_text(image.spacing_mm)} mm at the same place",
            do=f"Resample {path.name} to its image, or empty the cell in cases.csv.",
        )
    _check_values(name, path, mask, classes)
    return mask


def _check_values(name: str, path: Path, mask: LabelMap, classes: Sequence[SegmentationClass]) -> None:
    lowest, highest = int(mask.values.min()), int(mask.values.max())
    if lowest < 0 or (highest > 255 and name == SEGMENTATION):
        raise DataError(
            f"The mask '{name}' has values that a mask cannot have.",
            got=f"values from {lowest} to {highest}",
            expected="0 where nothing is marked, 1 to 255 elsewhere",
            do=f"Check {path.name}: it may be an image, or mark something else by negative values.",
        )
    if name != SEGMENTATION or not classes:
        return
    known = {spec.value for spec in classes}
    found = np.flatnonzero(np.bincount(mask.values.ravel(), minlength=1))
    unknown = [int(value) for value in found if value and value not in known]
    if unknown:
        raise DataError(
            "The segmentation has values that dataset.json does not name.",
            got=", ".join(str(value) for value in unknown),
            expected="0, " + ", ".join(f"{spec.value} ({spec.name})" for spec in classes),
            do="Add the class to segmentation_classes of dataset.json, or correct the file.",
        )


def _text(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values)
