"""Mask store: masks and label maps on disk beside their case, under the checksums of `volume.store`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from headctssl.contract import SegmentationClass
from headctssl.settings import Settings
from headctssl.types import Box
from headctssl.volume.layout import StoreLayout
from headctssl.volume.store import StoredArray, corrupt_case, write_array

__all__ = ["MaskMeta", "StoredLabels", "StoredMask", "write_labels", "write_mask"]


_STANDARD = StoreLayout()


class MaskMeta(Settings):
    """What a stored mask of the dataset knows about itself: enough to notice that its source changed. Holds no path."""

    format: Literal[1] = 1
    name: str = Field(description="Column of cases.csv.")
    classes: tuple[SegmentationClass, ...] = Field((), description="What the values of a label map mean.")
    source_sha256: str = Field(description="SHA-256 of the mask's file or folder.")
    source_size: int = Field(ge=0, description="Bytes of the source.")
    source_mtime_ns: int = Field(description="Modification time of the source in ns.")


def write_mask(
    path: Path,
    mask: NDArray[np.bool_],
    meta: MaskMeta | None = None,
    *,
    layout: StoreLayout = _STANDARD,
    num_threads: int = 1,
) -> None:
    """Write a mask as `write_case` writes a case.

    Args:
        path: the file, ``CASE.<mask>.b2nd``.
        mask: bool (z, y, x).
        meta: of a mask of the dataset; None for the head mask, which follows from the case.
        layout: chunks and codec.
        num_threads: threads of the compressor.

    Raises:
        CorruptCaseError: the file does not read back as written.
    """
    assert mask.dtype == np.bool_, "a mask is bool"
    assert mask.ndim == 3, "a mask is (z, y, x)"
    text = "null" if meta is None else meta.model_dump_json()
    write_array(path, mask[None].view(np.uint8), "mask", text, layout, num_threads)


def write_labels(
    path: Path, labels: NDArray[np.uint8], meta: MaskMeta, *, layout: StoreLayout = _STANDARD, num_threads: int = 1
) -> None:
    """Write a label map as `write_case` writes a case.

    Args:
        path: the file, ``CASE.segmentation.b2nd``.
        labels: uint8 (z, y, x), values as in ``meta.classes``; 0 is none of them.
        meta: what the label map knows about itself.
        layout: chunks and codec.
        num_threads: threads of the compressor.

    Raises:
        CorruptCaseError: the file does not read back as written.
    """
    assert labels.dtype == np.uint8, "a label map is uint8"
    assert labels.ndim == 3, "a label map is (z, y, x)"
    write_array(path, labels[None], "labels", meta.model_dump_json(), layout, num_threads)


class _StoredPart(StoredArray):
    """A mask or label map that belongs to a case."""

    @property
    def meta(self) -> MaskMeta | None:
        """What the mask knows about itself; None for the head mask.

        Raises:
            CorruptCaseError: the metadata are not of this version.
        """
        try:
            return None if self.meta_json == "null" else MaskMeta.model_validate_json(self.meta_json)
        except ValidationError as error:
            raise corrupt_case(self.path, error.errors()[0]["msg"], "metadata of format 1") from None


class StoredMask(_StoredPart):
    """A mask: bool (z, y, x). Arguments and errors as `StoredArray`."""

    kind = "mask"

    def read(self, box: Box) -> NDArray[np.bool_]:
        """Read a box as bool (d, h, w); errors as `StoredCase.read`."""
        mask: NDArray[np.bool_] = self.read_box(box)[0].view(np.bool_)
        return mask


class StoredLabels(_StoredPart):
    """A label map: uint8 (z, y, x). Arguments and errors as `StoredArray`."""

    kind = "labels"

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read a box as uint8 (d, h, w); errors as `StoredCase.read`."""
        labels: NDArray[np.uint8] = self.read_box(box)[0]
        return labels
