"""Encoder: the contract that every backbone keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from headctssl.contract import Contract
from headctssl.presets import ResEncSettings, ViTSettings
from headctssl.types import EncoderOutput

__all__ = ["Encoder"]


class Encoder(nn.Module, ABC):
    """A 3D encoder. Any grid is accepted whose sides are multiples of `token_size`."""

    kind: ClassVar[Literal["transformer", "cnn"]]
    settings: ViTSettings | ResEncSettings
    embed_dim: int  # channels C of `tokens` and `features`
    token_size: tuple[int, int, int]  # voxels (z, y, x) per token
    no_weight_decay: tuple[str, ...] = ()  # own parameters that weight decay must not touch
    contract: Contract | None = None  # what feeding it takes; set by `load_encoder`

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            x: (B, C, D, H, W) float in [0, 1].
            mask: (B, d, h, w) bool; True places are replaced by the mask token (CNN: input voxels zeroed).
            keep: (B, K) int64 token indices in `networks.tokens` order, the same K over the batch;
                only these are encoded. Transformers only.

        Raises:
            ValueError: a side is not a multiple of the token size, or `keep` is given to a CNN.
        """
