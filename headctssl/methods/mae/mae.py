"""Mae: masked patches (transformer) or blocks (CNN) are predicted from what is left of the scan."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.mae.mae_loss import draw_masks, masked_error, masked_targets
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.networks.decoders import TokenDecoder, VoxelDecoder, voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import gather_tokens, grid_of, mask_from_indices, patchify
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Mae", "MaeSettings"]

Shape = tuple[int, int, int]


class MaeSettings(BaseSettings):
    """Defaults are HeadCT-Foundation's (arXiv 2502.02779) and nnssl's (arXiv 2412.17041)."""

    mask_ratio: float = Field(0.75, gt=0, lt=1, description="Share of tokens or blocks that are masked.")
    decoder_width: int = Field(768, ge=8, description="Transformers: width of the decoder.")
    decoder_depth: int = Field(8, ge=1, description="Transformers: blocks of the decoder.")
    decoder_heads: int = Field(16, ge=1, description="Transformers: attention heads of the decoder.")
    decoder_mlp_ratio: float = Field(4.0, gt=0, description="Transformers: hidden width of the MLP over the width.")
    norm_target: bool = Field(False, description="Whether each patch to predict is brought to mean 0, variance 1.")
    mask_block: Shape | None = Field(
        None,
        description="CNNs: voxels (z, y, x) of a masked block; none = 16 per axis where the input has at least four"
        " whole ones, else the total stride.",
    )


class Mae(Method):
    """Masked autoencoder (arXiv 2111.06377).

    A transformer encodes the kept tokens only and a light decoder predicts the masked patches. A CNN sees the input
    with masked blocks zeroed, and a U-Net decoder predicts the volume (arXiv 2410.23132). Either way only masked
    voxels that were stored count, and the targets are the input's windows.

    Args:
        settings: mask and decoder.
    """

    Settings: ClassVar[type[BaseSettings]] = MaeSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset({"mask"})

    def __init__(self, settings: MaeSettings) -> None:
        super().__init__(settings)
        self.settings: MaeSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser for one kind of encoder."""
        if kind == "transformer":
            return OptimizerDefaults(
                optimizer="adamw",
                lr=1.5e-4,
                lr_reference_batch=256,
                lr_rule="linear",
                weight_decay=0.05,
                weight_decay_end=0.05,
                clip_norm=3.0,
                warmup_share=0.05,
                min_lr_share=0.0,
                schedule="cosine",
                betas=(0.9, 0.95),
                source="arXiv 2111.06377 appendix A; arXiv 2502.02779",
            )
        return OptimizerDefaults(
            optimizer="sgd",
            lr=1e-2,
            lr_reference_batch=8,
            lr_rule="fixed",
            weight_decay=3e-5,
            weight_decay_end=3e-5,
            clip_norm=12.0,
            warmup_share=0.0,
            min_lr_share=0.0,
            schedule="poly",
            momentum=0.99,
            source="arXiv 2412.17041; arXiv 2410.23132",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: the input cannot be divided into blocks, a setting of CNNs is given for a transformer, or the
                encoder has no decoder.
        """
        self.encoder = encoder
        self.plan = ViewPlan((global_group(run.views, run.input),))
        check_views(self.plan, encoder)
        channels = len(run.input.windows)
        self.decoder: TokenDecoder | VoxelDecoder
        if encoder.drops_tokens:
            if self.settings.mask_block is not None:
                raise UsageError(
                    "A transformer masks its own tokens.",
                    got=f"method.mask_block={self.settings.mask_block}",
                    expected="no method.mask_block",
                    do="Leave method.mask_block out, or set encoder.patch.",
                )
            self.block = encoder.token_size
            self.decoder = self._token_decoder(encoder, channels, run.input.shape)
        else:
            self.block = self.settings.mask_block or _block(run.input.shape, encoder.token_size)
            self.decoder = voxel_decoder(encoder, channels)
        try:
            grid_of(run.input.shape, self.block)
        except ValueError as error:
            raise UsageError(
                "The input cannot be divided into blocks to mask.",
                got=str(error),
                expected=f"an input shape that is a multiple of {self.block}",
                do="Set method.mask_block to a divisor of the input shape.",
            ) from None

    def views(self) -> ViewPlan:
        """Global views only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        losses, logs = [], {}
        for index, volume in enumerate(views.groups["global"]):
            grid = grid_of(volume.shape[2:], self.block)
            generators = views.generators("mask" if index == 0 else f"mask{index}")
            keep, masked = draw_masks(generators, grid[0] * grid[1] * grid[2], self.settings.mask_ratio)
            keep, masked = keep.to(volume.device), masked.to(volume.device)
            prediction, features = self.reconstruct(volume, keep, masked, grid)
            targets, counts = masked_targets(
                volume, views.inside["global"][index], masked, self.block, normalise=self.settings.norm_target
            )
            losses.append(masked_error(prediction, targets, counts))
        loss = torch.stack(losses).mean()
        with torch.no_grad():
            share = counts.mean()
            mean = (targets * counts).sum() / counts.sum().clamp(min=1.0)
            spread = ((targets - mean).square() * counts).sum() / counts.sum().clamp(min=1.0)
            unit = functional.normalize(features.float(), dim=-1)
            logs = {
                "error_over_variance": losses[-1].detach() / spread.clamp(min=1e-12),
                "stored_share": share,
                "feature_std": unit.std(0, unbiased=False).mean() * unit.shape[1] ** 0.5,
            }
        return StepResult(loss, logs)

    def reconstruct(self, volume: Tensor, keep: Tensor, masked: Tensor, grid: Shape) -> tuple[Tensor, Tensor]:
        """Predict the masked patches or blocks.

        Args:
            volume: (B, C, D, H, W).
            keep: (B, K) int64 visible tokens.
            masked: (B, M) int64 hidden tokens.
            grid: tokens or blocks (d, h, w).

        Returns:
            Predictions (B, M, P) and the encoder's features (B, C).
        """
        if isinstance(self.decoder, TokenDecoder):
            out = self.encoder(volume, keep=keep)
            return self.decoder(out.tokens, out.cls, keep, masked), out.features
        out = self.encoder(volume, mask=mask_from_indices(masked, grid))
        return gather_tokens(patchify(self.decoder(out, volume), self.block), masked), out.features

    def encoder_to_export(self) -> Encoder:
        """The trained encoder."""
        return self.encoder

    def _token_decoder(self, encoder: Encoder, channels: int, shape: Shape) -> TokenDecoder:
        s = self.settings
        pz, py, px = encoder.token_size
        return TokenDecoder(
            encoder.embed_dim,
            channels * pz * py * px,
            grid_of(shape, encoder.token_size),
            width=s.decoder_width,
            depth=s.decoder_depth,
            heads=s.decoder_heads,
            mlp_ratio=s.decoder_mlp_ratio,
            # The published decoder copies these two of the encoder: 151.1 M parameters in all.
            qkv_bias=getattr(encoder.settings, "qkv_bias", True),
            trainable_position=getattr(encoder.settings, "position", "sincos") == "trainable",
        )


def _block(shape: Shape, stride: Shape) -> Shape:
    """Blocks of 16 voxels (nnssl, arXiv 2410.23132) where at least four whole ones fit, else the total stride."""
    z, y, x = (16 if side % 16 == 0 and side >= 64 else step for side, step in zip(shape, stride, strict=True))
    return (z, y, x)
