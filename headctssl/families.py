"""Families: the dimensions of every family of encoders, as plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, SerializeAsAny, ValidationError

from headctssl.errors import UsageError
from headctssl.plugins import ENCODER_GROUP, find_plugins
from headctssl.settings import Settings

__all__ = [
    "FAMILIES",
    "EncoderSettings",
    "Enlargement",
    "FamilySettings",
    "ForwardCost",
    "Kind",
    "PrimusSettings",
    "ResEncSettings",
    "SegResNetSettings",
    "SwinUNETRSettings",
    "UNet3DSettings",
    "ViTSettings",
    "patch_decoder_stages",
    "settings_class",
]

Shape = tuple[int, int, int]
Kind = Literal["transformer", "cnn"]


@dataclass(frozen=True)
class ForwardCost:
    """What one view takes on its way through an encoder."""

    multiply_adds: float  # in linear layers and convolutions
    outputs: float  # values that layers give, all together
    operations: float  # operations launched
    parameters: float
    attention: float = 0.0  # multiply-adds between queries, keys and values


class FamilySettings(Settings, ABC):
    """What every family of encoders has. A subclass fixes `family` to its name."""

    kind: ClassVar[Kind]  # which published optimisers apply
    drops_tokens: ClassVar[bool] = False  # a plain sequence of tokens: `keep` works, there is no pyramid
    thin_tokens: ClassVar[bool] = True  # tokens may be thinner along z where slices are thick
    family: str
    in_channels: int = Field(3, ge=1, description="Input channels, one per window.")
    input_shape: Shape = Field((96, 96, 96), description="Reference input (z, y, x) in voxels; other grids work.")

    @property
    @abstractmethod
    def token_size(self) -> Shape:
        """Voxels (z, y, x) per token: the patch, or the total stride."""

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Channels of the tokens and of the features."""

    def forward_cost(self, shape: Shape) -> ForwardCost | None:
        """What one view of this shape (z, y, x) in voxels takes; None where `planning.budget` knows the family."""
        return None

    def fitted(self, *, in_channels: int, input_shape: Shape, token_size: Shape) -> Self:
        """A copy for data that want this input.

        Args:
            in_channels: one per window.
            input_shape: voxels (z, y, x), whole tokens.
            token_size: voxels (z, y, x) per token; the family's own, thinner along z only where `thin_tokens`.
        """
        assert token_size == self.token_size, "this family has tokens of one size"
        return self.model_copy(update={"in_channels": in_channels, "input_shape": input_shape})


class _PatchSettings(FamilySettings):
    """A plain transformer over patches."""

    kind: ClassVar[Kind] = "transformer"
    drops_tokens: ClassVar[bool] = True
    patch: Shape = Field((12, 12, 12), description="Token size (z, y, x) in voxels.")
    width: int = Field(384, ge=8, description="Token width in channels.")
    depth: int = Field(12, ge=1, description="Number of blocks.")
    heads: int = Field(6, ge=1, description="Attention heads.")

    @property
    def token_size(self) -> Shape:
        """The patch."""
        return self.patch

    @property
    def embed_dim(self) -> int:
        """The width."""
        return self.width

    def fitted(self, *, in_channels: int, input_shape: Shape, token_size: Shape) -> Self:
        """See `FamilySettings.fitted`: the token size becomes the patch."""
        return self.model_copy(update={"in_channels": in_channels, "input_shape": input_shape, "patch": token_size})


class ViTSettings(_PatchSettings):
    """A 3D vision transformer."""

    family: Literal["vit"] = "vit"
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of the MLP over the token width.")
    qkv_bias: bool = Field(True, description="Whether query, key and value projections have a bias.")
    registers: int = Field(0, ge=0, description="Register tokens after the class token.")
    position: Literal["sincos", "trainable"] = Field(
        "sincos", description="Fixed sin-cos table, or a trainable table that starts as one."
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth of the last block, rising linearly from 0.")
    layer_scale: float | None = Field(None, description="Initial LayerScale factor, none by default.")


class PrimusSettings(_PatchSettings):
    """Primus: EVA-02 blocks with rotary and trainable absolute positions (arXiv 2503.01835)."""

    family: Literal["primus"] = "primus"
    patch: Shape = Field((8, 8, 8), description="Token size (z, y, x) in voxels.")
    width: int = Field(396, ge=12, description="Token width in channels, six channels or a multiple per head.")
    mlp_ratio: float = Field(8 / 3, gt=0, description="Hidden width of the SwiGLU over the token width.")
    drop_path: float = Field(0.2, ge=0, lt=1, description="Stochastic depth of the last block, rising linearly from 0.")
    layer_scale: float | None = Field(0.1, description="Initial LayerScale factor; none leaves the factors out.")


class _StrideSettings(FamilySettings):
    """A CNN whose stages each have a stride, which may spare z."""

    kind: ClassVar[Kind] = "cnn"
    features: tuple[int, ...] = Field(description="Channels per stage.")
    strides: tuple[Shape, ...] = Field(description="Stride (z, y, x) at the start of each stage.")

    @property
    def token_size(self) -> Shape:
        """The total stride."""
        z, y, x = (prod(stride[axis] for stride in self.strides) for axis in range(3))
        return (z, y, x)

    @property
    def embed_dim(self) -> int:
        """Channels of the last stage."""
        return self.features[-1]

    def fitted(self, *, in_channels: int, input_shape: Shape, token_size: Shape) -> Self:
        """See `FamilySettings.fitted`: the first stages keep stride 1 along z until the total is small enough.

        There z voxels are still the longest (the rule of nnU-Net, arXiv 1904.08128, "architecture template").
        """
        total, strides = self.token_size[0], list(self.strides)
        for stage in range(1, len(strides)):
            if total <= token_size[0]:
                break
            total //= strides[stage][0]
            strides[stage] = (1, *strides[stage][1:])
        return self.model_copy(
            update={"in_channels": in_channels, "input_shape": input_shape, "strides": tuple(strides)}
        )


class ResEncSettings(_StrideSettings):
    """A residual encoder of dynamic-network-architectures."""

    family: Literal["resenc"] = "resenc"
    blocks: tuple[int, ...] = Field(description="Residual blocks per stage.")
    kernels: tuple[Shape, ...] = Field(description="Kernel (z, y, x) of each stage.")

    def fitted(self, *, in_channels: int, input_shape: Shape, token_size: Shape) -> Self:
        """As for every strided CNN, and the stage before a stride that spares z has kernel 1 along z."""
        fitted = super().fitted(in_channels=in_channels, input_shape=input_shape, token_size=token_size)
        kernels = list(self.kernels)
        for stage, (own, full) in enumerate(zip(fitted.strides, self.strides, strict=True)):
            if own[0] < full[0]:
                kernels[stage - 1] = (1, *kernels[stage - 1][1:])
        return fitted.model_copy(update={"kernels": tuple(kernels)})


class UNet3DSettings(_StrideSettings):
    """The contracting half of the 3D U-Net of Models Genesis (arXiv 1908.06912)."""

    family: Literal["unet3d"] = "unet3d"
    features: tuple[int, ...] = Field((64, 128, 256, 512), description="Channels per stage.")
    strides: tuple[Shape, ...] = Field(
        ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)), description="Pooling (z, y, x) before each stage."
    )


class SwinUNETRSettings(FamilySettings):
    """The Swin transformer of MONAI's SwinUNETR (arXiv 2201.01266)."""

    kind: ClassVar[Kind] = "transformer"
    thin_tokens: ClassVar[bool] = False
    family: Literal["swin_unetr"] = "swin_unetr"
    feature_size: int = Field(48, ge=12, multiple_of=12, description="Channels of the first stage.")
    depths: tuple[int, int, int, int] = Field((2, 2, 2, 2), description="Blocks per stage.")
    heads: tuple[int, int, int, int] = Field((3, 6, 12, 24), description="Attention heads per stage.")
    window: int = Field(7, ge=2, description="Side of the attention windows in places of a stage.")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth of the last block, rising linearly from 0.")

    @property
    def token_size(self) -> Shape:
        """Patches of 2 voxels, halved four times."""
        return (32, 32, 32)

    @property
    def embed_dim(self) -> int:
        """Channels after four doublings."""
        return 16 * self.feature_size


class SegResNetSettings(FamilySettings):
    """The encoder of MONAI's SegResNet (arXiv 1810.11654)."""

    kind: ClassVar[Kind] = "cnn"
    thin_tokens: ClassVar[bool] = False
    family: Literal["segresnet"] = "segresnet"
    init_filters: int = Field(16, ge=8, multiple_of=8, description="Channels of the first stage, doubled per stage.")
    blocks: tuple[int, ...] = Field((1, 2, 2, 4), min_length=2, description="Residual blocks per stage.")

    @property
    def token_size(self) -> Shape:
        """Halved once per stage after the first."""
        stride: int = 2 ** (len(self.blocks) - 1)
        return (stride, stride, stride)

    @property
    def embed_dim(self) -> int:
        """Channels of the last stage."""
        channels: int = self.init_filters * 2 ** (len(self.blocks) - 1)
        return channels


FAMILIES: dict[str, type[FamilySettings]] = {
    "vit": ViTSettings,
    "primus": PrimusSettings,
    "resenc": ResEncSettings,
    "unet3d": UNet3DSettings,
    "swin_unetr": SwinUNETRSettings,
    "segresnet": SegResNetSettings,
}
"""Settings of every built-in family. Other packages' are found through the entry-point group of encoders."""


def settings_class(family: str) -> type[FamilySettings]:
    """The settings class of a family of encoders, built-in or of another package.

    Raises:
        UsageError: no installed package gives the family, or its class has no usable `Settings`.
    """
    if family in FAMILIES:
        return FAMILIES[family]
    plugins = find_plugins(ENCODER_GROUP)
    if family not in plugins:
        raise UsageError(
            f"Unknown encoder family '{family}'.",
            got=family,
            expected="one of " + ", ".join(sorted({*FAMILIES, *plugins})),
            do="Install the package that this encoder comes from.",
        )
    found = getattr(plugins[family].load(), "Settings", None)
    if not (isinstance(found, type) and issubclass(found, FamilySettings)):
        raise plugins[family].fault(f"Settings = {found!r}", "a class with an attribute Settings, a FamilySettings")
    return found


def _of_its_family(value: object) -> FamilySettings:
    """Validate settings by the class of the family that they name."""
    if isinstance(value, FamilySettings):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("family"), str):
        raise ValueError("the settings of an encoder are an object that names its 'family'")
    try:
        return settings_class(value["family"]).model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


EncoderSettings = Annotated[FamilySettings, PlainValidator(_of_its_family), SerializeAsAny()]
"""Settings of any family: what files with an encoder in them declare, so that other packages' families are read too."""


@dataclass(frozen=True)
class Enlargement:
    """A transposed convolution of kernel = stride."""

    stride: Shape
    inputs: int  # channels
    outputs: int  # channels


def patch_decoder_stages(width: int, token_size: Shape, outputs: int) -> list[Enlargement]:
    """How Primus' decoder gets from tokens to voxels (arXiv 2503.01835), for tokens of any size.

    Each stage enlarges every axis by one prime factor of the token's side, the smallest first, or by 1 where none is
    left; channels shrink by one ratio per stage from the width to twice the outputs, in steps of 8.

    Args:
        width: channels of the tokens.
        token_size: voxels (z, y, x) per token.
        outputs: channels of the volume to predict.
    """
    factors = [_primes(side) for side in token_size]
    count = max(1, *(len(f) for f in factors))
    strides = zip(*([1] * (count - len(f)) + f for f in factors), strict=True)
    ratio = (width / (2 * outputs)) ** (1 / count)
    channels = [width, *(max(8, round(width / ratio**stage / 8) * 8) for stage in range(1, count)), outputs]
    return [
        Enlargement((z, y, x), before, after)
        for (z, y, x), before, after in zip(strides, channels[:-1], channels[1:], strict=True)
    ]


def _primes(number: int) -> list[int]:
    """Prime factors, rising."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found
