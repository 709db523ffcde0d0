"""ViT: a 3D vision transformer with mask and keep, any grid, class token and registers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import (
    gather_tokens,
    grid_from_tokens,
    grid_of,
    patchify,
    sincos_table,
    tokens_from_grid,
)
from headctssl.networks.transformer import Block, init_linear
from headctssl.presets import ViTSettings
from headctssl.types import EncoderOutput

__all__ = ["ViTEncoder"]

# Legend: B samples, N tokens of the grid, K kept tokens, C width, R registers.


class PatchEmbedding(nn.Module):
    """A strided convolution of kernel = stride = patch, computed as one matrix product per chosen patch.

    The weight has the shape of the convolution (C, channels, pz, py, px), so that published kernels fit.
    """

    def __init__(self, in_channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, in_channels, *patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """(B, channels, D, H, W) to (B, N, C), or (B, K, C) where `keep` (B, K) chooses patches."""
        patches = patchify(x, self.patch)
        if keep is not None:
            patches = gather_tokens(patches, keep)
        return functional.linear(patches, self.weight.flatten(1), self.bias)


class ViTEncoder(Encoder):
    """A pre-norm 3D ViT. `features` is the class token after the final norm.

    Tokens stand as [class, registers, patches]; only patches get a position. The mask token exists only after
    `add_mask_token`, because objectives that drop tokens or never mask must not carry an untrained parameter.

    Args:
        settings: all dimensions.

    Raises:
        UsageError: the width is not a multiple of the heads.
    """

    kind: ClassVar[Literal["transformer", "cnn"]] = "transformer"

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        self.settings: ViTSettings = settings
        self.embed_dim = settings.width
        self.token_size = settings.patch
        self.reference_grid = grid_of(settings.input_shape, settings.patch)
        self.patch_embed = PatchEmbedding(settings.in_channels, settings.width, settings.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, settings.width))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.registers: nn.Parameter | None = None
        if settings.registers:
            # Drawn at random: registers that start equal stay equal and act as one.
            self.registers = nn.Parameter(torch.empty(1, settings.registers, settings.width))
            nn.init.trunc_normal_(self.registers, std=0.02)
        self.pos_embed: nn.Parameter | None = None
        if settings.position == "trainable":
            self.pos_embed = nn.Parameter(sincos_table(self.reference_grid, settings.width))
        self.mask_token: nn.Parameter | None
        self.register_parameter("mask_token", None)
        self.blocks = nn.ModuleList(
            Block(
                settings.width,
                settings.heads,
                mlp_ratio=settings.mlp_ratio,
                qkv_bias=settings.qkv_bias,
                drop_path=settings.drop_path * index / max(1, settings.depth - 1),
                layer_scale=settings.layer_scale,
            )
            for index in range(settings.depth)
        )
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        self.blocks.apply(init_linear)
        self.no_weight_decay = ("cls_token", "registers", "pos_embed", "mask_token")
        self._tables: dict[tuple[tuple[int, int, int], torch.device], Tensor] = {}
        self.register_load_state_dict_pre_hook(_mask_token_on_load)  # type: ignore[no-untyped-call]  # torch's hook

    def add_mask_token(self) -> None:
        """Make the token that replaces masked places, random; nothing when it exists."""
        if self.mask_token is None:
            self.mask_token = nn.Parameter(torch.empty(1, 1, self.embed_dim, device=self.cls_token.device))
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Positions (N, C) float32 of a grid.

        Another grid than the reference one covers the same field of view: a trainable table is interpolated
        trilinearly (as DINO does in 2D, arXiv 2104.14294), the sin-cos functions are evaluated in between.
        """
        if self.pos_embed is not None:
            if grid == self.reference_grid:
                return self.pos_embed
            table = grid_from_tokens(self.pos_embed[None].float(), self.reference_grid)
            resized = functional.interpolate(table, size=grid, mode="trilinear", align_corners=False)
            return tokens_from_grid(resized)[0]
        key = (grid, self.cls_token.device)
        if key not in self._tables:
            self._tables[key] = sincos_table(grid, self.embed_dim, self.reference_grid).to(key[1])
        return self._tables[key]

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """See `Encoder.forward`.

        Raises:
            ValueError: a side is not a multiple of the patch, a mask is given before `add_mask_token`, or a mask
                does not have the shape of the grid.
        """
        grid = grid_of(x.shape[2:], self.token_size)
        tokens = self.patch_embed(x, keep)
        if mask is not None:
            tokens = self._replace(tokens, mask, keep, grid)
        positions = self.positions(grid)
        tokens = tokens + (positions if keep is None else positions[keep])
        prefix = [self.cls_token] if self.registers is None else [self.cls_token, self.registers]
        # The residual stream keeps the float32 of the positions, also under autocast.
        sequence = torch.cat([*(p.expand(x.shape[0], -1, -1).to(tokens.dtype) for p in prefix), tokens], dim=1)
        for block in self.blocks:
            sequence = block(sequence)
        sequence = self.norm(sequence)
        cls = sequence[:, 0]
        return EncoderOutput(tokens=sequence[:, 1 + self.settings.registers :], grid=grid, cls=cls, features=cls)

    def _replace(self, tokens: Tensor, mask: Tensor, keep: Tensor | None, grid: tuple[int, int, int]) -> Tensor:
        if self.mask_token is None:
            raise ValueError("a mask needs the mask token: call add_mask_token() before training")
        if mask.shape != (tokens.shape[0], *grid):
            raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {(tokens.shape[0], *grid)}")
        chosen = tokens_from_grid(mask[:, None])
        if keep is not None:
            chosen = gather_tokens(chosen, keep)
        return torch.where(chosen, self.mask_token.to(tokens.dtype), tokens)


def _mask_token_on_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make the mask token when the weights to load have one."""
    if isinstance(module, ViTEncoder) and f"{prefix}mask_token" in state:
        module.add_mask_token()
