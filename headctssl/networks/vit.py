"""ViT: a 3D vision transformer with mask and keep, any grid, class token and registers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headctssl.families import ViTSettings
from headctssl.networks.decoders import PatchDecoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import Grid, grid_of, resized_table, sincos_table
from headctssl.networks.transformer import Block, PatchEmbedding, init_linear
from headctssl.types import EncoderOutput

__all__ = ["ViTEncoder"]

# Legend: B samples, N tokens of the grid, K kept tokens, C width, R registers.


class ViTEncoder(Encoder):
    """A pre-norm 3D ViT. `features` is the class token after the final norm.

    Tokens stand as [class, registers, patches]; only patches get a position.

    Args:
        settings: all dimensions.

    Raises:
        UsageError: the width is not a multiple of the heads.
    """

    settings: ViTSettings

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__(settings)
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

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Embedding, blocks, final norm."""
        blocks = [(f"blocks.{index}",) for index in range(self.settings.depth)]
        return (("patch_embed", "cls_token", "registers", "pos_embed", "mask_token"), *blocks, ("norm",))

    def make_decoder(self, outputs: int) -> PatchDecoder:
        """Transposed convolutions from tokens to voxels."""
        return PatchDecoder(self.embed_dim, self.token_size, outputs)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Positions (N, C) float32 of a grid.

        Another grid than the reference one covers the same field of view: a trainable table is interpolated, the
        sin-cos functions are evaluated in between.
        """
        if self.pos_embed is not None:
            return resized_table(self.pos_embed, self.reference_grid, grid)
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
        sequence = self._embedded(x, grid, mask, keep)
        for block in self.blocks:
            sequence = block(sequence)
        sequence = self.norm(sequence)
        cls = sequence[:, 0]
        return EncoderOutput(tokens=sequence[:, 1 + self.settings.registers :], grid=grid, cls=cls, features=cls)

    def features_only(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """See `Encoder.features_only`; the last block is computed for the class token alone."""
        sequence = self._embedded(x, grid_of(x.shape[2:], self.token_size), None, keep)
        for block in self.blocks[:-1]:
            sequence = block(sequence)
        features: Tensor = self.norm(self.blocks[-1](sequence, slice(1)))[:, 0]
        return features

    def _embedded(self, x: Tensor, grid: Grid, mask: Tensor | None, keep: Tensor | None) -> Tensor:
        """What the first block sees: class token, registers and patches with their positions."""
        tokens = self.patch_embed(x, keep)
        if mask is not None:
            tokens = self.hide_tokens(tokens, mask, keep, grid)
        positions = self.positions(grid)
        tokens = tokens + (positions if keep is None else positions[keep])
        prefix = [self.cls_token] if self.registers is None else [self.cls_token, self.registers]
        # The residual stream keeps the float32 of the positions, also under autocast.
        return torch.cat([*(p.expand(x.shape[0], -1, -1).to(tokens.dtype) for p in prefix), tokens], dim=1)
