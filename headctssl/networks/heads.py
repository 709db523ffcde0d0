"""Heads: what stands on top of the features of an encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from headctssl.contract import HeadSettings
from headctssl.networks.batch_norm import GlobalBatchNorm1d
from headctssl.networks.transformer import init_linear

__all__ = ["DinoHead", "LinearHead", "build_head"]

# Legend: B samples, C features, K prototypes, L outputs.


class DinoHead(nn.Module):
    """The projection head of DINO (arXiv 2104.14294, appendix C).

    A three-layer MLP with GELU, an L2 norm at the bottleneck, and K prototypes of unit length: the weight-normed
    linear layer of the paper with its scale g fixed at 1. The products with the prototypes are float32, because the
    temperature of .04 multiplies the rounding error of bfloat16 by 25.

    Args:
        in_features: channels C of the features.
        prototypes: K.
        hidden: width of the two hidden layers.
        bottleneck: channels that the prototypes live in.
    """

    def __init__(self, in_features: int, prototypes: int = 65_536, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.mlp.apply(init_linear)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.uniform_(self.prototypes, -(bottleneck**-0.5), bottleneck**-0.5)

    def forward(self, features_BC: Tensor) -> Tensor:
        """Cosines (B, K) float32 between the projected features and the prototypes."""
        unit = self.project(features_BC)
        with torch.autocast(features_BC.device.type, enabled=False):
            return functional.linear(unit, self.unit_prototypes())

    def project(self, features_BC: Tensor) -> Tensor:
        """The features in the bottleneck, of length 1, float32 (B, bottleneck)."""
        projected: Tensor = self.mlp(features_BC)
        return functional.normalize(projected.float(), dim=-1, eps=1e-6)

    def unit_prototypes(self) -> Tensor:
        """The prototypes at length 1, float32 (K, bottleneck)."""
        return functional.normalize(self.prototypes.float(), dim=-1)


class LinearHead(nn.Module):
    """The linear classifier of HeadCT-Foundation (arXiv 2502.02779): norm over the batch without affine, linear.

    Args:
        in_features: channels C of the features.
        outputs: logits L.
        batch_norm: whether the features are normalised by BatchNorm without affine parameters, eps 1e-6.
        dropout: chance that a feature is zeroed while training.
    """

    def __init__(self, in_features: int, outputs: int, *, batch_norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm1d(in_features, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, outputs)
        init_linear(self.linear)

    def forward(self, features_BC: Tensor) -> Tensor:
        """Logits (B, L) float32."""
        with torch.autocast(features_BC.device.type, enabled=False):
            logits: Tensor = self.linear(self.dropout(self.norm(features_BC.float())))
        return logits


def build_head(settings: HeadSettings, in_features: int, outputs: int) -> LinearHead:
    """The classifier that the settings describe, randomly initialised."""
    return LinearHead(in_features, outputs, batch_norm=settings.batch_norm, dropout=settings.dropout)
