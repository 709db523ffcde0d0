"""Multi-view: several views of a batch through one encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headctssl.networks.encoder import Encoder

__all__ = ["encode_views"]


def encode_views(
    encoder: Encoder, views: Sequence[Tensor], keep: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """Features (B, C) per view; views of one shape go through the encoder together.

    Args:
        encoder: the encoder.
        views: each (B, channels, D, H, W).
        keep: per view the tokens that are encoded (B, K), one K per shape, or None for all; all of all when None.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for index, view in enumerate(views):
        by_shape.setdefault(view.shape, []).append(index)
    features: dict[int, Tensor] = {}
    for members in by_shape.values():
        chosen = [keep[i] for i in members] if keep is not None else []
        kept = [tokens for tokens in chosen if tokens is not None]
        together = encoder.features_only(torch.cat([views[i] for i in members]), torch.cat(kept) if kept else None)
        features.update(zip(members, together.chunk(len(members)), strict=True))
    return [features[index] for index in range(len(views))]
