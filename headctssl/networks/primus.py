"""Primus: EVA-02 blocks of dynamic-network-architectures walked with mask and keep, any grid."""

from __future__ import annotations

import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from timm.layers import build_rotary_pos_embed
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.families import PrimusSettings
from headctssl.networks.decoders import PatchDecoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import Grid, grid_of, resized_table
from headctssl.networks.transformer import PatchEmbedding
from headctssl.types import EncoderOutput

__all__ = ["PrimusEncoder"]

# Legend: B samples, N tokens of the grid, K kept tokens, C width, R channels of a head.


class PrimusEncoder(Encoder):
    """The encoder of Primus (arXiv 2503.01835). `features` is the mean of the tokens after the final norm.

    SwiGLU with a norm inside, a norm after attention, LayerScale, drop-path, 3D rotary positions and a trainable
    absolute one; no class token, no registers.

    Args:
        settings: all dimensions.

    Raises:
        UsageError: the width is not a multiple of 6 channels per head.
    """

    settings: PrimusSettings

    def __init__(self, settings: PrimusSettings) -> None:
        super().__init__(settings)
        if settings.width % (6 * settings.heads):
            raise UsageError(
                "The width of a Primus encoder does not fit its attention heads.",
                got=f"width {settings.width}, heads {settings.heads}",
                expected="a multiple of 6 channels per head: rotations turn pairs of channels for each of 3 axes",
                do="Change the width or the number of heads.",
            )
        self.reference_grid = grid_of(settings.input_shape, settings.patch)
        self.patch_embed = PatchEmbedding(settings.in_channels, settings.width, settings.patch)
        nn.init.kaiming_normal_(self.patch_embed.weight, a=0.01)
        tokens = self.reference_grid[0] * self.reference_grid[1] * self.reference_grid[2]
        self.pos_embed = nn.Parameter(torch.empty(tokens, settings.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        # The library's own forward takes neither mask nor keep and holds positions for one grid: only its blocks and
        # their initialisation are used.
        library = Eva(
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            ref_feat_shape=self.reference_grid,
            mlp_ratio=settings.mlp_ratio,
            drop_path_rate=settings.drop_path,
            init_values=settings.layer_scale,
            scale_attn_inner=True,
            use_abs_pos_emb=False,
            use_rot_pos_emb=False,
        )
        self.blocks = library.blocks
        self.norm = library.norm
        self.no_weight_decay = ("pos_embed", "mask_token")
        self._tables: dict[tuple[Grid, torch.device], Tensor] = {}

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Embedding, blocks, final norm."""
        blocks = [(f"blocks.{index}",) for index in range(self.settings.depth)]
        return (("patch_embed", "pos_embed", "mask_token"), *blocks, ("norm",))

    def make_decoder(self, outputs: int) -> PatchDecoder:
        """Transposed convolutions from tokens to voxels."""
        return PatchDecoder(self.embed_dim, self.token_size, outputs)

    def rotations(self, grid: Grid) -> Tensor:
        """Sines and cosines (N, 2 R) float32 of the rotary positions of a grid, in token order.

        As for the absolute positions another grid than the reference one covers the same field of view.
        """
        key = (grid, self.pos_embed.device)
        if key not in self._tables:
            table = build_rotary_pos_embed(
                list(grid),
                dim=self.settings.width // self.settings.heads * 2 // 3,
                in_pixels=False,
                ref_feat_shape=list(self.reference_grid),
                device=key[1],
            )
            self._tables[key] = torch.cat(table, dim=-1)
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
            tokens = self.hide_tokens(tokens, mask, keep, grid)
        positions = resized_table(self.pos_embed, self.reference_grid, grid)
        rotations = self.rotations(grid)
        if keep is not None:
            positions = positions[keep]
            rotations = rotations[keep][:, None]  # one axis for the heads
        # The residual stream keeps the float32 of the positions, also under autocast.
        tokens = tokens + positions
        for block in self.blocks:
            tokens = block(tokens, rope=rotations)
        tokens = self.norm(tokens)
        return EncoderOutput(tokens=tokens, grid=grid, cls=None, features=tokens.float().mean(1))
