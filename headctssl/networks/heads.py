"""Heads: what stands on top of the features or tokens of an encoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from headctssl.contract import HeadSettings
from headctssl.errors import UsageError
from headctssl.networks.batch_norm import GlobalBatchNorm1d
from headctssl.networks.scan_attention import ScanAttention
from headctssl.networks.transformer import init_linear

__all__ = ["AttentiveHead", "ClassifierHead", "DinoHead", "LinearHead", "build_head"]

# Legend: B samples, N tokens, C features, H attention heads, D = C / H, K prototypes, L outputs.


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
        scans: gives the score of a scan among those of its study.
    """

    reads_tokens: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        outputs: int,
        *,
        batch_norm: bool = True,
        dropout: float = 0.0,
        scans: ScanAttention | None = None,
    ) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm1d(in_features, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, outputs)
        init_linear(self.linear)
        self.scans = scans

    def forward(self, features_BC: Tensor) -> Tensor:
        """Logits (B, L) float32; with `scans` the score of each scan follows in a last column."""
        with torch.autocast(features_BC.device.type, enabled=False):
            return _of_vectors(self, self.norm(features_BC.float()))


class AttentiveHead(nn.Module):
    """Tokens pooled by attention, then linear: the attentive probe of AIM (arXiv 2401.08541).

    Each attention head has one query, which is learnt, and linear keys and values without bias. The order of the tokens
    does not matter. Scores are taken with the query brought back through the keys, and values of the pooled tokens
    instead of pooled values, which is the same function without a product of (C, C) with every token.

    Args:
        in_features: channels C of the tokens.
        outputs: logits L.
        heads: attention heads H; they share out the channels.
        batch_norm: whether each channel is normalised by BatchNorm without affine parameters over samples and tokens.
        dropout: chance that a pooled feature is zeroed while training.
        scans: gives the score of a scan among those of its study, by its pooled feature.

    Raises:
        UsageError: the channels cannot be shared out.
    """

    reads_tokens: ClassVar[bool] = True
    no_weight_decay = ("query",)

    def __init__(
        self,
        in_features: int,
        outputs: int,
        *,
        heads: int = 1,
        batch_norm: bool = True,
        dropout: float = 0.0,
        scans: ScanAttention | None = None,
    ) -> None:
        super().__init__()
        if in_features % heads:
            raise UsageError(
                "The tokens cannot be shared out to the heads of attentive pooling.",
                got=f"head.heads={heads}, {in_features} channels",
                expected="a number that divides the channels",
                do="Choose another head.heads.",
            )
        self.norm = GlobalBatchNorm1d(in_features, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.query = nn.Parameter(torch.empty(heads, in_features // heads))
        self.key = nn.Parameter(torch.empty(in_features, in_features))
        self.value = nn.Parameter(torch.empty(in_features, in_features))
        for parameter in (self.query, self.key, self.value):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, outputs)
        init_linear(self.linear)
        self.scans = scans

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Logits (B, L) float32; with `scans` the score of each scan follows in a last column."""
        with torch.autocast(tokens_BNC.device.type, enabled=False):
            flat = self.norm(tokens_BNC.float().flatten(0, 1))
            tokens_BNC = flat.unflatten(0, tokens_BNC.shape[:2])
            scores_BNH = tokens_BNC @ self._queries().T
            pooled_BHC = scores_BNH.softmax(dim=1).transpose(1, 2) @ tokens_BNC
            values_BHD = torch.einsum("bhc,hdc->bhd", pooled_BHC, self._per_head(self.value))
            return _of_vectors(self, values_BHD.flatten(1))

    def _queries(self) -> Tensor:
        """What a token is multiplied with for its score in each head, (H, C)."""
        width = self.query.shape[1]
        return torch.einsum("hd,hdc->hc", self.query * width**-0.5, self._per_head(self.key))

    def _per_head(self, weight_CC: Tensor) -> Tensor:
        return weight_CC.view(*self.query.shape, -1)


ClassifierHead = LinearHead | AttentiveHead


def _of_vectors(head: ClassifierHead, vectors_BC: Tensor) -> Tensor:
    """Logits (B, L) of one vector per scan, and with attention over scans their scores in a last column."""
    logits: Tensor = head.linear(head.dropout(vectors_BC))
    return logits if head.scans is None else torch.cat([logits, head.scans(vectors_BC)[:, None]], dim=1)


def build_head(settings: HeadSettings, in_features: int, outputs: int) -> ClassifierHead:
    """The classifier that the settings describe, randomly initialised.

    Args:
        settings: of the head.
        in_features: channels of the encoder's features and tokens.
        outputs: logits.

    Raises:
        UsageError: the settings do not fit the encoder.
    """
    norm, dropout = settings.batch_norm, settings.dropout
    scans = ScanAttention(in_features, settings.scan_width) if settings.scans == "attention" else None
    if settings.kind == "attentive":
        return AttentiveHead(in_features, outputs, heads=settings.heads, batch_norm=norm, dropout=dropout, scans=scans)
    return LinearHead(in_features, outputs, batch_norm=norm, dropout=dropout, scans=scans)
