"""Simmim: a transformer sees mask tokens in place of hidden patches, and a linear head predicts these patches."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.masked import Masking, absolute_error, check_blocks, masked_step
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import gather_tokens, grid_of, mask_from_indices
from headctssl.networks.transformer import init_linear
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Simmim", "SimmimSettings"]

Shape = tuple[int, int, int]


class SimmimSettings(BaseSettings):
    """Defaults are the paper's (arXiv 2111.09886)."""

    mask_ratio: float = Field(0.6, gt=0, lt=1, description="Share of units that are masked.")
    mask_unit: Shape | None = Field(
        None,
        description="Tokens (z, y, x) that are masked together; none = per axis the divisor of the grid nearest to a"
        " sixth of it, as 32 of 192 pixels in the paper.",
    )


class Simmim(Method):
    """SimMIM (arXiv 2111.09886).

    Hidden tokens are replaced by a trainable mask token before the first block, all tokens pass the encoder, and one
    linear layer predicts the voxels of a token from its output. The loss is the mean absolute error over hidden
    voxels that were measured (section 3.4); the targets are the input's windows.

    Args:
        settings: the mask.
    """

    Settings: ClassVar[type[BaseSettings]] = SimmimSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset({"mask"})

    def __init__(self, settings: SimmimSettings) -> None:
        super().__init__(settings)
        self.settings: SimmimSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser, ViT-B's; the method does not train CNNs."""
        return OptimizerDefaults(
            optimizer="adamw",
            lr=4e-4,
            lr_reference_batch=2048,
            lr_rule="linear",
            weight_decay=0.05,
            weight_decay_end=0.05,
            clip_norm=5.0,
            warmup_share=0.0125,  # 10 of 800 epochs
            min_lr_share=0.0,
            schedule="cosine",
            betas=(0.9, 0.999),
            source="arXiv 2111.09886 appendix A and its published ViT-B configuration",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: the encoder has no plain tokens, or its grid cannot be divided into units.
        """
        if not encoder.drops_tokens:
            raise UsageError(
                "SimMIM replaces tokens by a mask token, and this encoder is no plain sequence of tokens.",
                got=type(encoder).__name__,
                expected="an encoder of the family vit or primus",
                do="Choose another encoder with -c, or the method spark or mae with -m.",
            )
        self.encoder = encoder
        self.plan = ViewPlan((global_group(run.views, run.input),))
        check_views(self.plan, encoder)
        encoder.add_mask_token()
        grid = grid_of(run.input.shape, encoder.token_size)
        unit = self.settings.mask_unit or _unit(grid)
        pz, py, px = encoder.token_size
        check_blocks(run.input.shape, (pz * unit[0], py * unit[1], px * unit[2]), "method.mask_unit")
        self.masking = Masking(encoder.token_size, self.settings.mask_ratio, unit=unit)
        self.head = nn.Linear(encoder.embed_dim, len(run.input.windows) * pz * py * px)
        self.head.apply(init_linear)

    def views(self) -> ViewPlan:
        """Global views only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        return masked_step(views, self.masking, self.reconstruct, absolute_error, normalise=False)

    def reconstruct(self, volume: Tensor, keep: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the masked tokens.

        Args:
            volume: (B, C, D, H, W).
            keep: (B, K) int64 visible tokens.
            masked: (B, M) int64 hidden tokens.

        Returns:
            Predictions (B, M, P) and the encoder's features (B, C).
        """
        grid = grid_of(volume.shape[2:], self.encoder.token_size)
        out = self.encoder(volume, mask=mask_from_indices(masked, grid))
        return self.head(gather_tokens(out.tokens, masked)), out.features

    def encoder_to_export(self) -> Encoder:
        """The trained encoder, with its mask token."""
        return self.encoder


def _unit(grid: Shape) -> Shape:
    """Per axis the divisor of the grid nearest to a sixth of it; the smaller of two that are equally near."""
    z, y, x = (_nearest_divisor(places, places / 6) for places in grid)
    return (z, y, x)


def _nearest_divisor(number: int, wanted: float) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))
