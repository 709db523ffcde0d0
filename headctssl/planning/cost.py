"""Cost: what passes through layers take, counted from their dimensions.

Coefficients are measured on one thread of an AVX512-BF16 CPU with torch 2.14, widths 48-768, 60-500 tokens,
unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

__all__ = [
    "CUT_TOGETHER",
    "MOST_TOKENS_UNFUSED",
    "Convolution",
    "Cost",
    "convolutions",
    "transformer_blocks",
]

CONV_CHANNELS = 32.0
"""Channels of the measured convolution. With fewer input channels the throughput falls in proportion, to a sixth at
least; at best a CNN reaches 0.9 of it; measured with 3-256 channels."""

BLOCK_ELEMENTS = 26.0
"""Elementwise work of a transformer block per token and channel, in GELUs: norms, casts, sums; measured 12.4 ns."""

CONV_ELEMENTS = 2.0
"""Elementwise work per output of a convolution, in GELUs: norm, activation, sum; measured 0.8 ns and its backward."""

MOST_TOKENS_UNFUSED = 1024
"""Tokens up to which `networks.transformer.attend` keeps the probabilities on a CPU in bfloat16: 2 MB per head."""

CUT_TOGETHER = 16
"""Samples that a GPU cuts at once: some calls for all of them, about 1 GB of intermediate numbers at 1 mm."""

CONV_KEPT = 3.3
"""Values kept per output of a convolution: the output, the norm's, the activation's, and a tenth more for what kernels
work in; measured with ResEnc encoders."""

CONV_OPS = 6
"""Operations launched for a convolution with its norm and activation."""


@dataclass(frozen=True)
class Cost:
    """What passes take; costs add up."""

    matmul: float = 0.0  # operations (2 per multiply-add) in linear layers
    attention: float = 0.0  # operations in attention
    conv: float = 0.0  # operations in convolutions, as if all had 32 channels
    elements: float = 0.0  # elementwise work in GELUs
    ops: float = 0.0  # operations launched
    stored: float = 0.0  # bytes of activations kept for the backward pass, but for what the next two count
    within: float = 0.0  # bytes kept in transformer blocks beyond their inputs, which computing them again frees
    once: float = 0.0  # bytes of one block at a time, where blocks are computed again
    on_cpu: float = 0.0  # bytes that a CPU keeps beside `within` and a GPU does not: see `transformer_blocks`

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))

    def times(self, factor: float, *, ops: float = 1.0) -> Cost:
        """`factor` times the work; operations on a batch are launched `ops` times."""
        scaled = {f.name: getattr(self, f.name) * factor for f in fields(Cost)}
        scaled["ops"] = self.ops * ops
        return Cost(**scaled)


@dataclass(frozen=True)
class Convolution:
    """A convolution with its norm and activation; a transposed one that does not overlap has kernel 1 and a spread."""

    voxels: float  # places of the output
    inputs: int  # channels
    outputs: int  # channels
    kernel: float  # places of the kernel; 1 more where a 1 x 1 x 1 convolution skips the block
    spread: float = 1  # places that a transposed convolution makes of one, each with its own weights


def convolutions(layers: Iterable[Convolution], half: bool) -> tuple[Cost, float]:
    """The forward pass of convolutions, and their parameters.

    Args:
        layers: every convolution.
        half: activations in 2 bytes.
    """
    conv = outputs = weights = 0.0
    ops = 0
    for layer in layers:
        own = layer.kernel * layer.inputs * layer.outputs
        conv += 2 * layer.voxels * own / min(0.9, max(1 / 6, layer.inputs / CONV_CHANNELS))
        outputs += layer.voxels * layer.outputs
        weights += own * layer.spread
        ops += CONV_OPS
    # Kept per convolution: its output, the norm's and the activation's.
    kept = outputs * CONV_KEPT * (2 if half else 4)
    return Cost(conv=conv, elements=outputs * CONV_ELEMENTS, ops=ops, stored=kept), weights


def transformer_blocks(
    tokens: float,
    width: float,
    depth: float,
    mlp_ratio: float,
    half: bool,
    *,
    gated: bool = False,
    seen: float = 0,
    heads: float = 0,
) -> tuple[Cost, float]:
    """The forward pass of pre-norm blocks (q, k, v, attention, projection, MLP), and their parameters.

    What the backward pass needs, by autograd's formulas: the inputs of two norms in float32 (the residual stream), the
    norms' outputs as the linear layers take them, q, k, v, attention's output, and the hidden layer before and after
    its activation. A CPU was measured to hold more: attention's probabilities where it is not fused, and some bytes
    per value for copies (of q, k, v by head, and of sums), which fused attention on a GPU does not make.

    Args:
        tokens: of one sample.
        width: channels.
        depth: blocks.
        mlp_ratio: hidden width of the MLP over the width.
        half: activations in 2 bytes where autocast allows.
        gated: the MLP has a gate beside its hidden layer.
        seen: tokens that a token attends to; all when 0.
        heads: whose probabilities are kept where attention is not fused; 0 where it always is.
    """
    size = 2 if half else 4
    layers = 3 if gated else 2
    linear = width * width * (4 + layers * mlp_ratio)
    kept = width * (2 * (4 + size) + 4 * size + layers * mlp_ratio * size)
    on_cpu = tokens * width * (size + 8)
    if half and tokens <= MOST_TOKENS_UNFUSED:
        on_cpu += heads * tokens**2 * 2
    cost = Cost(
        matmul=depth * 2 * tokens * linear,
        attention=depth * 4 * tokens * (seen or tokens) * width,
        elements=depth * tokens * width * BLOCK_ELEMENTS,
        ops=depth * 24,
        stored=depth * tokens * width * 4,
        within=depth * tokens * (kept - width * 4),
        once=tokens * kept + on_cpu,
        on_cpu=depth * on_cpu,
    )
    return cost, depth * linear
