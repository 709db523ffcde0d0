"""Encoder: the contract that every backbone keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from headctssl.contract import Contract
from headctssl.errors import UsageError
from headctssl.families import FamilySettings, Kind
from headctssl.networks.tokens import Grid, gather_tokens, grid_of, tokens_from_grid, voxels_of_mask
from headctssl.types import EncoderOutput

__all__ = ["Encoder"]


class Encoder(nn.Module, ABC):
    """A 3D encoder. Any grid is accepted whose sides are multiples of `token_size`.

    A plain transformer (`drops_tokens`) replaces masked tokens by a mask token, which exists only after
    `add_mask_token`: objectives that drop tokens or never mask must not carry an untrained parameter. Any other
    encoder sees masked voxels as zeros.

    Args:
        settings: all dimensions.
    """

    settings: FamilySettings
    mask_token: nn.Parameter | None
    no_weight_decay: tuple[str, ...] = ()  # own parameters that weight decay must not touch
    contract: Contract | None = None  # what feeding it takes; set by `load_encoder`

    def __init__(self, settings: FamilySettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_parameter("mask_token", None)
        if settings.drops_tokens:
            self.register_load_state_dict_pre_hook(_mask_token_on_load)  # type: ignore[no-untyped-call]  # torch's

    @property
    def kind(self) -> Kind:
        """Which published optimisers apply."""
        return self.settings.kind

    @property
    def drops_tokens(self) -> bool:
        """Whether it is a plain sequence of tokens: `keep` works, and there is no pyramid."""
        return self.settings.drops_tokens

    @property
    def embed_dim(self) -> int:
        """Channels C of `tokens` and `features`."""
        return self.settings.embed_dim

    @property
    def token_size(self) -> Grid:
        """Voxels (z, y, x) per token."""
        return self.settings.token_size

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            x: (B, C, D, H, W) float in [0, 1].
            mask: bool, True places are hidden. Plain transformers: (B, d, h, w) on the grid of tokens. Others: any
                grid that divides the input; the voxels of its places are set to zero.
            keep: (B, K) int64 token indices in `networks.tokens` order, the same K over the batch;
                only these are encoded. Plain transformers only.

        Raises:
            ValueError: a side is not a multiple of the token size, a mask does not fit or comes before
                `add_mask_token`, or `keep` is given to an encoder that has no plain tokens.
        """

    def features_only(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """The features (B, F) that `forward` gives, for callers that look at nothing else: less work in some encoders.

        Args:
            x: as in `forward`.
            keep: as in `forward`.
        """
        features: Tensor = self(x, keep=keep).features
        return features

    def make_decoder(self, outputs: int) -> nn.Module:
        """The family's decoder from `EncoderOutput` to (B, outputs, D, H, W); see `networks.decoders.voxel_decoder`.

        Raises:
            UsageError: the family has none.
        """
        raise UsageError(
            "This encoder has no decoder to voxels.",
            got=f"family {self.settings.family}",
            expected="an encoder with a method make_decoder",
            do="Choose another encoder with -c, or a method that predicts no voxels.",
        )

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The encoder cut into layers, from the input on, for rates that fall towards the input.

        Returns:
            Per layer the names of its modules or parameters; every parameter is under exactly one of them.

        Raises:
            UsageError: the family does not say.
        """
        raise UsageError(
            "This encoder does not say which of its layers is nearer to the input.",
            got=f"family {self.settings.family}",
            expected="an encoder with a method layers",
            do="Leave out task.layer_decay.",
        )

    def add_mask_token(self) -> None:
        """Make the token that replaces masked places, random; nothing when it exists or none is needed."""
        if self.drops_tokens and self.mask_token is None:
            device = next(self.parameters()).device
            self.mask_token = nn.Parameter(torch.empty(1, 1, self.embed_dim, device=device))
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def hide_tokens(self, tokens: Tensor, mask: Tensor, keep: Tensor | None, grid: Grid) -> Tensor:
        """Tokens (B, N, C), or the kept ones (B, K, C), with the mask token where `mask` is True."""
        if self.mask_token is None:
            raise ValueError("a mask needs the mask token: call add_mask_token() before training")
        if mask.shape != (tokens.shape[0], *grid):
            raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {(tokens.shape[0], *grid)}")
        chosen = tokens_from_grid(mask[:, None])
        if keep is not None:
            chosen = gather_tokens(chosen, keep)
        return torch.where(chosen, self.mask_token.to(tokens.dtype), tokens)

    def hide_voxels(self, x: Tensor, mask: Tensor | None, keep: Tensor | None) -> Tensor:
        """A volume (B, C, D, H, W) with the blocks of `mask` set to zero."""
        if keep is not None:
            raise ValueError("a CNN cannot drop tokens: give a mask")
        if mask is None:
            return x
        block = grid_of(x.shape[2:], (mask.shape[1], mask.shape[2], mask.shape[3]))
        return x.masked_fill(voxels_of_mask(mask, block), 0.0)


def _mask_token_on_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make the mask token when the weights to load have one."""
    if isinstance(module, Encoder) and f"{prefix}mask_token" in state:
        module.add_mask_token()
