"""Contract: what feeding an encoder takes, travelling inside every checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

from pydantic import Field

from headctssl.errors import ContractError
from headctssl.presets import EncoderSettings
from headctssl.settings import Settings

__all__ = [
    "Contract",
    "HeadSettings",
    "InputSpec",
    "LabelSpec",
    "SegmentationClass",
    "StorageRule",
    "Synthetic",
    "Window",
    "column_slices",
    "output_slices",
    "require_same",
]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Synthetic = Literal["all", "some", "no"]


class Window(Settings):
    """A Hounsfield window, clipped and scaled to [0, 1]."""

    level: float = Field(description="Centre in HU.")
    width: float = Field(gt=0, description="Width in HU.")


class StorageRule(Settings):
    """How cases are stored. Its digest names the folder; chunking and codec are not part of it."""

    format: Literal[1] = 1
    axes: Literal["SPL"] = Field("SPL", description="Axes (z, y, x) grow to superior, posterior, patient left.")
    spacing_mm: Triple = Field((1.0, 1.0, 1.0), description="Voxel spacing (z, y, x) in mm.")
    crop_rule: str = Field("head_box_margin10mm:1", description="How the stored box is found, with its version.")
    resample_rule: str = Field("separable_antialias:3", description="How voxels are resampled, with its version.")
    hu_clip: tuple[int, int] = Field((-1024, 3071), description="Lowest and highest HU kept.")
    dtype: Literal["int16"] = "int16"
    masks: tuple[str, ...] = Field(("head",), description="Masks stored beside each case.")
    mask_rule: str = Field(
        "largest_part_anonymised_any:1",
        description="How masks of the dataset are brought to the stored voxels, with version.",
    )

    def digest(self) -> str:
        """SHA-256 over all fields, first 16 hex digits; the mask rule only where a mask of the dataset is stored."""
        unused = {"mask_rule"} if self.masks == ("head",) else set()
        text = json.dumps(self.model_dump(mode="json", exclude=unused), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_masks(self, masks: tuple[str, ...]) -> StorageRule:
        """The same voxels with these masks beside them: masks are the dataset's, all else is the encoder's."""
        return self.model_copy(update={"masks": masks})

    @property
    def storage_id(self) -> str:
        """Folder name, e.g. ``spl_1.0x1.0x1.0mm_3fa2b9c1``."""
        z, y, x = self.spacing_mm
        return f"spl_{z:g}x{y:g}x{x:g}mm_{self.digest()[:8]}"


class InputSpec(Settings):
    """What the encoder sees of a stored case."""

    rule: Literal["fixed_spacing", "stretch_to_shape"] = Field(
        description="fixed_spacing: centred on the head, larger heads scaled down; stretch_to_shape: the head box is"
        " resized to the shape, each axis by itself."
    )
    shape: Shape = Field(description="Voxels (z, y, x).")
    spacing_mm: Triple = Field(description="Voxel spacing (z, y, x) in mm; nominal for stretch_to_shape.")
    windows: tuple[Window, ...] = Field(description="One channel per window.")

    @property
    def field_of_view_mm(self) -> Triple:
        """Side lengths (z, y, x) in mm."""
        (d, h, w), (sz, sy, sx) = self.shape, self.spacing_mm
        return (d * sz, h * sy, w * sx)


class LabelSpec(Settings):
    """One label of a dataset."""

    name: str = Field(description="Column of cases.csv.")
    type: Literal["binary", "multiclass", "ordinal", "continuous"] = "binary"
    classes: tuple[str, ...] = Field((), description="Class names in order, multiclass and ordinal only.")
    mirror: str | None = Field(
        None, description="The label this one becomes when left and right are swapped; 'self' when it does not change."
    )
    mean: float | None = Field(None, description="Mean of the training cases in the label's unit, continuous only.")
    deviation: float | None = Field(
        None, gt=0, description="Standard deviation of the training cases in the label's unit, continuous only."
    )

    @property
    def num_outputs(self) -> int:
        """Outputs of the network: binary and continuous 1, multiclass one per class, ordinal one per threshold."""
        return {"multiclass": len(self.classes), "ordinal": len(self.classes) - 1}.get(self.type, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is predicted, by name: ``LABEL``, or ``LABEL=CLASS`` for each class of multiclass and ordinal."""
        return tuple(f"{self.name}={name}" for name in self.classes) if self.has_classes else (self.name,)

    @property
    def has_classes(self) -> bool:
        """Whether the values are named classes."""
        return self.type in ("multiclass", "ordinal")


def output_slices(labels: Sequence[LabelSpec]) -> tuple[slice, ...]:
    """Where each label's outputs stand among those of the network."""
    return _slices([spec.num_outputs for spec in labels])


def column_slices(labels: Sequence[LabelSpec]) -> tuple[slice, ...]:
    """Where each label's columns stand in a table of predictions."""
    return _slices([len(spec.columns) for spec in labels])


def _slices(widths: Sequence[int]) -> tuple[slice, ...]:
    stops = tuple(accumulate(widths, initial=0))
    return tuple(slice(first, last) for first, last in pairwise(stops))


class SegmentationClass(Settings):
    """One class of a dataset's segmentations. Over datasets, classes are the same when their names are."""

    name: str = Field(min_length=1, description="Name of the class; the same name means the same in every dataset.")
    value: int = Field(ge=1, le=255, description="Value of its voxels in the label maps; 0 is none of the classes.")


class HeadSettings(Settings):
    """The classifier on top of an encoder."""

    kind: Literal["linear", "attentive"] = Field(
        "linear", description="linear: on the encoder's features; attentive: on its tokens, pooled by attention."
    )
    heads: int = Field(1, ge=1, description="Attention heads that pool the tokens, attentive only.")
    batch_norm: bool = Field(
        True, description="BatchNorm without affine parameters on the features, or on every channel of the tokens."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the linear layer.")
    scans: Literal["single", "attention"] = Field(
        "single",
        description="single: every scan is learnt from by itself; attention: the scans of a study, by attention.",
    )
    scan_width: int = Field(128, ge=1, description="Hidden units of the attention over scans, scans=attention only.")


class Contract(Settings):
    """Everything needed to feed an encoder or classifier and to read what it says. No case data."""

    format: Literal[1] = 1
    package_version: str
    kind: Literal["encoder", "classifier"]
    storage: StorageRule
    input: InputSpec
    preset: str = Field(description="Encoder preset by name, or 'scratch' sizes given in `encoder`.")
    encoder: EncoderSettings = Field(description="All dimensions of the encoder.")
    method: str = Field(description="Pretraining method, or 'scratch'.")
    settings: str = Field(description="JSON text of the settings of the run.")
    num_scans: int = Field(ge=0, description="Scans the weights were trained on.")
    cases_digest: str = Field(description="SHA-256 of the sorted list of case identities, first 16 hex digits.")
    synthetic: Synthetic | None = Field(
        None,
        description="How many of the datasets it was trained on are synthetic by their dataset.json; none: not noted.",
    )
    weights_hash: str = Field("", description="SHA-256 over names, shapes and bytes of the tensors.")
    labels: tuple[LabelSpec, ...] = Field((), description="Labels in the order of the outputs, classifiers only.")
    head: HeadSettings | None = None
    temperature: float = Field(1.0, gt=0, description="Divides the logits before the sigmoid or softmax.")


def require_same(field: str, got: object, expected: object, do: str) -> None:
    """Raise when a field of a contract does not match.

    Raises:
        ContractError: the values differ; the field is named.
    """
    if got != expected:
        raise ContractError(f"The checkpoint and this run differ in '{field}'.", got=got, expected=expected, do=do)
