"""Transformer: the pre-norm block that encoders and decoders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.networks.tokens import Grid, gather_tokens, patchify
from headctssl.planning.cost import MOST_TOKENS_UNFUSED

__all__ = ["Block", "DropPath", "PatchEmbedding", "init_linear"]

ALL_TOKENS = slice(None)

# Legend: B samples, N tokens, K kept tokens, C width, H heads.


def init_linear(module: nn.Module) -> None:
    """Truncated normal of standard deviation .02 for linear weights, zero for their biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PatchEmbedding(nn.Module):
    """A strided convolution of kernel = stride = patch, computed as one matrix product per chosen patch.

    The weight has the shape of the convolution (C, channels, pz, py, px), so that published kernels fit.
    """

    def __init__(self, in_channels: int, width: int, patch: Grid) -> None:
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


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a branch of a whole sample while training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Scale the branch (B, ...) of each sample by 0 or 1 / (1 - probability)."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * (torch.rand(shape, device=x.device) < keep).to(x.dtype) / keep


class LayerScale(nn.Module):
    """A trainable factor per channel on a branch (arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, N, C) per channel."""
        return x * self.gamma


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention; all (B, H, N, D), the result in the type of `value`.

    torch's fused kernel, but for up to `MOST_TOKENS_UNFUSED` tokens in bfloat16 on a CPU, where two batched matrix
    products are faster: forward and backward of 12 heads take 53 ms instead of 106 at 2 x 513 tokens, 19 instead of 68
    at 8 x 129 (one thread, AVX512-BF16, torch 2.14). They keep the probabilities, 2 N^2 bytes per head.
    """
    unfused = query.device.type == "cpu" and query.dtype is torch.bfloat16 and key.shape[2] <= MOST_TOKENS_UNFUSED
    if not unfused:
        return functional.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):  # which would make the probabilities float32 and cast them back
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        out: Tensor = scores.softmax(-1) @ value  # the kernel sums in float32
    return out


class Attention(nn.Module):
    """Multi-head self-attention through torch's fused kernels."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(
                "The width of a transformer is not a multiple of its attention heads.",
                got=f"width {width}, heads {heads}",
                expected="width divisible by heads",
                do="Change the width or the number of heads.",
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, wanted: slice = ALL_TOKENS) -> Tensor:
        """The `wanted` tokens attend to all of (B, N, C); (B, wanted, C)."""
        query, key, value = self.qkv(x_BNC).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(attend(query[:, :, wanted], key, value).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) in and out."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block (arXiv 2010.11929). The residual stream stays in the type of its input.

    Args:
        width: channels.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: whether query, key and value have a bias.
        drop_path: chance that a branch is dropped while training.
        layer_scale: initial LayerScale factor; none leaves the factors out.
        eps: added to the variance in the norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, round(width * mlp_ratio))
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, wanted: slice = ALL_TOKENS) -> Tensor:
        """(B, N, C) in and out.

        Args:
            x: tokens.
            wanted: tokens to return. All are attended to, and no work is done for what nobody looks at: the last block
                of a network that gives some tokens only costs a quarter.
        """
        x = x[:, wanted] + self.drop_path(self.scale1(self.attn(self.norm1(x), wanted)))
        out: Tensor = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return out
