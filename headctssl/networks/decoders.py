"""Decoders: what turns an encoder's output back into voxels while pretraining."""

from __future__ import annotations

import torch
from dynamic_network_architectures.building_blocks.patch_encode_decode import LayerNormNd
from torch import Tensor, nn

from headctssl.families import patch_decoder_stages
from headctssl.networks.encoder import Encoder
from headctssl.networks.thin_convolution import guard_convolutions
from headctssl.networks.tokens import Grid, grid_from_tokens, sincos_table
from headctssl.networks.transformer import Block, init_linear
from headctssl.types import EncoderOutput

__all__ = ["PatchDecoder", "TokenDecoder", "VoxelDecoder", "voxel_decoder"]

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
            masked_BM: int64 token indices to predict; no token is in both or twice, and one may be in neither.

        Returns:
            (B, M, P), row m for token ``masked_BM[:, m]``.
        """
        visible = self.embed(tokens_BKC)
        visible = visible + self.pos_embed[keep_BK]
        hidden = self.mask_token + self.pos_embed[masked_BM]
        prefix = [] if cls_BC is None else [self.embed(cls_BC[:, None]).to(visible.dtype)]
        # Attention knows no order but the positions, so the sequence needs no scatter into grid order.
        sequence = torch.cat([*prefix, visible, hidden], dim=1)
        for block in self.blocks[:-1]:
            sequence = block(sequence)
        sequence = self.blocks[-1](sequence, slice(-masked_BM.shape[1], None))
        out: Tensor = self.predict(self.norm(sequence))
        return out


class PatchDecoder(nn.Module):
    """The light decoder of Primus (arXiv 2503.01835, section 4): transposed convolutions from tokens to voxels.

    LayerNorm over the channels and GELU stand between the stages of `families.patch_decoder_stages`.

    Args:
        width: channels of the tokens.
        token_size: voxels (z, y, x) per token, of any size.
        outputs: channels of the volume to predict.
    """

    def __init__(self, width: int, token_size: Grid, outputs: int) -> None:
        super().__init__()
        stages = patch_decoder_stages(width, token_size, outputs)
        layers: list[nn.Module] = []
        for stage in stages:
            layers.append(nn.ConvTranspose3d(stage.inputs, stage.outputs, stage.stride, stage.stride))
            if stage is not stages[-1]:
                layers += [LayerNormNd(stage.outputs), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, out: EncoderOutput) -> Tensor:
        """All tokens of the grid as a volume (B, outputs, D, H, W).

        Raises:
            ValueError: some tokens were dropped.
        """
        d, h, w = out.grid
        if out.tokens.shape[1] != d * h * w:
            raise ValueError(f"{out.tokens.shape[1]} tokens of a grid {out.grid}: a decoder to voxels needs them all")
        volume: Tensor = self.layers(grid_from_tokens(out.tokens, out.grid))
        return volume


class VoxelDecoder(nn.Module):
    """A family's decoder behind one call; see `voxel_decoder`."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, out: EncoderOutput, volume: Tensor) -> Tensor:
        """Predict voxels.

        Args:
            out: what the encoder gave, with every token.
            volume: (B, C, D, H, W) as given to the encoder. Only its shape is looked at: a decoder that reads voxels
                takes them from the pyramid, where masked ones are zero, so that nothing hidden leaks.

        Returns:
            (B, outputs, D, H, W).
        """
        predicted: Tensor = self.decoder(out)
        assert predicted.shape[2:] == volume.shape[2:], "the decoder gives the shape of the encoder's input"
        return predicted


def voxel_decoder(encoder: Encoder, outputs: int) -> VoxelDecoder:
    """The published decoder of an encoder's family, randomly initialised (torch's global generator).

    Args:
        encoder: gives the sizes; it does not become part of the decoder.
        outputs: channels of the volume to predict.

    Raises:
        UsageError: the family has no decoder.
    """
    decoder = VoxelDecoder(encoder.make_decoder(outputs))
    guard_convolutions(decoder)
    return decoder
