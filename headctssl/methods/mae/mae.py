"""Mae: masked patches (transformer) or blocks (CNN) are predicted from what is left of the scan."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.masked import Masking, check_blocks, masked_step, squared_error
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.optimizers import OPENMIND_CNN
from headctssl.methods.token_share import check_token_share
from headctssl.networks.decoders import TokenDecoder, voxel_decoder
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
    token_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Transformers: share of a view's tokens that are used, those with tissue before those of air; the"
        " others are neither encoded nor predicted. 1 uses all, as published.",
    )
    norm_target: bool = Field(False, description="Whether each patch to predict is brought to mean 0, variance 1.")
    mask_block: Shape | None = Field(
        None,
        description="CNNs and Swin: voxels (z, y, x) of a masked block; none = per axis the largest of 16, 8, 4, 2, 1"
        " that divides the input at least four times.",
    )


class Mae(Method):
    """Masked autoencoder (arXiv 2111.06377).

    An encoder that can drop tokens encodes the kept ones only, and a light transformer predicts the masked patches.
    Any other sees the input with masked blocks zeroed, and its own decoder predicts the volume (arXiv 2410.23132).
    Either way only masked voxels that were measured count, and the targets are the input's windows.

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
        return OPENMIND_CNN

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: the input cannot be divided into blocks, or a setting does not apply to the encoder.
        """
        self.encoder = encoder
        self.plan = ViewPlan((global_group(run.views, run.input),), tissue=self.settings.token_share < 1.0)
        check_views(self.plan, encoder)
        channels = len(run.input.windows)
        drops = encoder.drops_tokens
        self._check_settings(drops, run.overrides)
        self.decoder: nn.Module
        if drops:
            block = encoder.token_size
            self.decoder = self._token_decoder(encoder, channels, run.input.shape)
        else:
            block = self.settings.mask_block or _block(run.input.shape)
            self.decoder = voxel_decoder(encoder, channels)
        check_blocks(run.input.shape, block, "method.mask_block")
        self.masking = Masking(block, self.settings.mask_ratio, share=self.settings.token_share)

    def views(self) -> ViewPlan:
        """Global views only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        return masked_step(views, self.masking, self.reconstruct, squared_error, normalise=self.settings.norm_target)

    def reconstruct(self, volume: Tensor, keep: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the masked patches or blocks.

        Args:
            volume: (B, C, D, H, W).
            keep: (B, K) int64 visible patches.
            masked: (B, M) int64 hidden patches.

        Returns:
            Predictions (B, M, P) and the encoder's features (B, C).
        """
        if isinstance(self.decoder, TokenDecoder):
            out = self.encoder(volume, keep=keep)
            return self.decoder(out.tokens, out.cls, keep, masked), out.features
        block = self.masking.patch
        hidden = mask_from_indices(masked, grid_of(volume.shape[2:], block))
        out = self.encoder(volume, mask=hidden)
        return gather_tokens(patchify(self.decoder(out, volume), block), masked), out.features

    def encoder_to_export(self) -> Encoder:
        """The trained encoder."""
        return self.encoder

    def _check_settings(self, drops: bool, overrides: tuple[str, ...]) -> None:
        s = self.settings
        decoder = [text for text in overrides if text.startswith("method.decoder_")]
        if not drops and decoder:
            raise UsageError(
                "Only a plain transformer is given a decoder whose size can be set.",
                got=f"{decoder[0]} with {type(self.encoder).__name__}, which brings its own decoder",
                expected="no method.decoder_*",
                do="Leave it out, or choose an encoder of the family vit or primus with -c.",
            )
        if drops and s.mask_block is not None:
            raise UsageError(
                "A transformer masks its own tokens.",
                got=f"method.mask_block={s.mask_block}",
                expected="no method.mask_block",
                do="Leave method.mask_block out, or choose an encoder with other tokens.",
            )
        check_token_share(self.encoder, s.token_share)

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
            # The published decoder copies these two of the ViT: 151.1 M parameters in all.
            qkv_bias=getattr(encoder.settings, "qkv_bias", True),
            trainable_position=getattr(encoder.settings, "position", "sincos") == "trainable",
        )


def _block(shape: Shape) -> Shape:
    """Blocks of 16 voxels (nnssl, arXiv 2410.23132), halved until at least four whole ones fit along each axis.

    An axis of fewer than four voxels has blocks of one voxel.
    """
    z, y, x = (
        next(step for step in (16, 8, 4, 2, 1) if step == 1 or (side % step == 0 and side >= 4 * step))
        for side in shape
    )
    return (z, y, x)
