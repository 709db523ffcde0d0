"""Projector: the MLP between an encoder's features and the space in which an objective compares them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Projector"]


class Projector(nn.Module):
    """Linear layers with BatchNorm and ReLU between them, in float32.

    BatchNorm takes its statistics from what it is given: gather the samples of all processes first
    (`methods.gather`), so that the statistics are those of the global batch.

    Args:
        in_features: channels of the features.
        hidden: width of the hidden layers.
        outputs: channels of the embedding.
        layers: linear layers, at least 1.
    """

    def __init__(self, in_features: int, hidden: int, outputs: int, layers: int = 3) -> None:
        super().__init__()
        assert layers >= 1, "a projector has a layer"
        parts: list[nn.Module] = []
        width = in_features
        for _ in range(layers - 1):
            # The bias would be taken out again by the norm.
            parts += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
            width = hidden
        parts.append(nn.Linear(width, outputs))
        self.layers = nn.Sequential(*parts)

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (B, outputs) float32 of features (B, C)."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.layers(features.float())
        return out
