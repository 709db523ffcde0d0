"""Spark: a CNN encodes visible blocks as if the others did not exist, and a light decoder predicts those."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.masked import Masking, check_blocks, masked_step, squared_error
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.optimizers import OPENMIND_CNN
from headctssl.methods.spark.spark_decoder import SparkDecoder
from headctssl.methods.spark.sparse import check_layers, sparse_layers
from headctssl.networks.encoder import Encoder
from headctssl.networks.thin_convolution import guard_convolutions
from headctssl.networks.tokens import gather_tokens, grid_of, mask_from_indices, patchify
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Spark", "SparkSettings"]

Shape = tuple[int, int, int]


class SparkSettings(BaseSettings):
    """Defaults are S3D's (arXiv 2410.23132), the 3D form of SparK (arXiv 2301.03580)."""

    mask_ratio: float = Field(0.75, gt=0, lt=1, description="Share of blocks that are masked.")
    mask_block: Shape | None = Field(
        None,
        description="Voxels (z, y, x) of a masked block, a multiple of the encoder's total stride; none = per axis 16"
        " where that is one and divides the input at least four times, else the total stride.",
    )
    decoder_width: int | None = Field(
        None,
        ge=4,
        description="Width of the decoder at the coarsest stage, halved at every finer one; none = that of the"
        " encoder's last stage.",
    )
    norm_target: bool = Field(True, description="Whether each block to predict is brought to mean 0, variance 1.")


class Spark(Method):
    """SparK (arXiv 2301.03580) in 3D, as S3D (arXiv 2410.23132).

    Blocks of the input are hidden, every convolution and norm of the encoder works on visible places alone, a mask
    token fills the holes of each stage, and a light U-Net decoder predicts the hidden blocks, each normalised by
    itself. Only hidden voxels that were measured count.

    Args:
        settings: mask and decoder.
    """

    Settings: ClassVar[type[BaseSettings]] = SparkSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset({"mask", "pyramid"})

    def __init__(self, settings: SparkSettings) -> None:
        super().__init__(settings)
        self.settings: SparkSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser, S3D's; the method does not train transformers."""
        return OPENMIND_CNN

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: the encoder cannot be made sparse, or the block fits neither its stages nor the input.
        """
        self.encoder = encoder
        self.plan = ViewPlan((global_group(run.views, run.input),))
        check_views(self.plan, encoder)
        check_layers(encoder)
        channels, strides = _stages(encoder)
        block = self.settings.mask_block or _block(run.input.shape, encoder.token_size)
        if any(side % step for side, step in zip(block, encoder.token_size, strict=True)):
            raise UsageError(
                "A masked block must be whole places of the encoder's coarsest stage.",
                got=f"method.mask_block={block}",
                expected=f"a multiple of the total stride {encoder.token_size}",
                do="Set method.mask_block to one, or leave it out.",
            )
        check_blocks(run.input.shape, block, "method.mask_block")
        self.masking = Masking(block, self.settings.mask_ratio)
        width = channels[-1] if self.settings.decoder_width is None else self.settings.decoder_width
        self.decoder = SparkDecoder(channels, strides, len(run.input.windows), width)
        guard_convolutions(self.decoder)

    def views(self) -> ViewPlan:
        """Global views only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        return masked_step(views, self.masking, self.reconstruct, squared_error, normalise=self.settings.norm_target)

    def reconstruct(self, volume: Tensor, keep: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the masked blocks.

        Args:
            volume: (B, C, D, H, W).
            keep: (B, K) int64 visible blocks.
            masked: (B, M) int64 hidden blocks.

        Returns:
            Predictions (B, M, P) and the encoder's features (B, C).
        """
        block = self.masking.patch
        hidden = mask_from_indices(masked, grid_of(volume.shape[2:], block))
        with sparse_layers(self.encoder, ~hidden):
            out = self.encoder(volume, mask=hidden)
        assert out.pyramid is not None, "build saw a pyramid"
        predicted = self.decoder(out.pyramid, ~hidden)
        return gather_tokens(patchify(predicted, block), masked), out.features

    def encoder_to_export(self) -> Encoder:
        """The trained encoder, a plain dense one."""
        return self.encoder


def _stages(encoder: Encoder) -> tuple[tuple[int, ...], tuple[Shape, ...]]:
    """Channels and voxels (z, y, x) per place of the encoder's stages, finest first, seen on a small empty input.

    Raises:
        UsageError: the encoder has no stages.
    """
    z, y, x = encoder.token_size
    shape = (2 * z, 2 * y, x)
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        parameter = next(encoder.parameters())
        pyramid = encoder(torch.zeros(1, encoder.settings.in_channels, *shape, device=parameter.device)).pyramid
    encoder.train(training)
    if pyramid is None:
        raise UsageError(
            "SparK needs an encoder with stages of several resolutions.",
            got=type(encoder).__name__,
            expected="an encoder of the family resenc, unet3d or segresnet",
            do="Choose another encoder with -c, or the method mae or simmim with -m.",
        )
    return tuple(stage.shape[1] for stage in pyramid), tuple(grid_of(shape, _sides(stage)) for stage in pyramid)


def _sides(stage: Tensor) -> Shape:
    d, h, w = stage.shape[2:]
    return (d, h, w)


def _block(shape: Shape, stride: Shape) -> Shape:
    """Blocks of 16 voxels (nnssl, arXiv 2410.23132) where these are whole places, else of one place (SparK)."""
    z, y, x = (
        16 if 16 % step == 0 and side % 16 == 0 and side >= 64 else step
        for side, step in zip(shape, stride, strict=True)
    )
    return (z, y, x)
