"""Decoders: what turns an encoder's output back into voxels while pretraining."""

from __future__ import annotations

import torch
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from headctssl.networks.resenc import ResEncEncoder
from headctssl.networks.tokens import sincos_table
from headctssl.networks.transformer import Block, init_linear

__all__ = ["ConvDecoder", "TokenDecoder"]

# Legend: B samples, N tokens of the grid, K kept tokens, M masked tokens, C width, P values per patch.


class TokenDecoder(nn.Module):
    """The light transformer decoder of MAE (arXiv 2111.06377, section 3).

    Args:
        encoder_width: channels of the encoder's tokens.
        outputs: values per patch P.
        grid: tokens (d, h, w) of the input.
        width: channels of the decoder.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: whether query, key and value have a bias.
        trainable_position: a trainable position table that starts as sin-cos, instead of a fixed one.
    """

    def __init__(
        self,
        encoder_width: int,
        outputs: int,
        grid: tuple[int, int, int],
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        trainable_position: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        table = sincos_table(grid, width)
        self.pos_embed: Tensor
        if trainable_position:
            self.pos_embed = nn.Parameter(table)
        else:
            self.register_buffer("pos_embed", table, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, outputs)
        self.no_weight_decay = ("mask_token", "pos_embed")
        self.apply(init_linear)

    def forward(self, tokens_BKC: Tensor, cls_BC: Tensor | None, keep_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Predict the masked patches.

        Args:
            tokens_BKC: encoded tokens in the order of `keep_BK`.
            cls_BC: class token, decoded along without a position; or None.
            keep_BK: int64 token indices that were encoded.
            masked_BM: int64 token indices to predict; together with `keep_BK` every token exactly once.

        Returns:
            (B, M, P), row m for token ``masked_BM[:, m]``.
        """
        visible = self.embed(tokens_BKC)
        visible = visible + self.pos_embed[keep_BK]
        hidden = self.mask_token + self.pos_embed[masked_BM]
        prefix = [] if cls_BC is None else [self.embed(cls_BC[:, None]).to(visible.dtype)]
        # Attention knows no order but the positions, so the sequence needs no scatter into grid order.
        sequence = torch.cat([*prefix, visible, hidden], dim=1)
        for block in self.blocks:
            sequence = block(sequence)
        out: Tensor = self.predict(self.norm(sequence[:, -masked_BM.shape[1] :]))
        return out


class ConvDecoder(nn.Module):
    """dynamic-network-architectures' U-Net decoder, one convolution per stage, on an encoder's pyramid.

    Args:
        encoder: the encoder; its stages give the sizes, it does not become part of the decoder.
        outputs: channels of the volume to predict.
    """

    def __init__(self, encoder: ResEncEncoder, outputs: int) -> None:
        super().__init__()
        decoder = UNetDecoder(encoder.network, outputs, n_conv_per_stage=1, deep_supervision=False)
        # The library keeps the encoder as a submodule and a prediction layer per stage. The encoder would be listed
        # twice among the parameters, and the unused layers would never get a gradient.
        del decoder.encoder
        decoder.seg_layers = nn.ModuleList([decoder.seg_layers[-1]])
        self.network = decoder

    def forward(self, pyramid: tuple[Tensor, ...]) -> Tensor:
        """The stages, finest first, as a volume (B, outputs, D, H, W)."""
        out: Tensor = self.network(list(pyramid))
        return out
