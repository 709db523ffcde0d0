"""Encoder cost: the forward pass and the parameters of every family of encoders and of its decoder."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod

from headctssl.errors import UsageError
from headctssl.families import (
    FamilySettings,
    PrimusSettings,
    ResEncSettings,
    SegResNetSettings,
    SwinUNETRSettings,
    UNet3DSettings,
    ViTSettings,
    patch_decoder_stages,
)
from headctssl.planning.cost import CONV_ELEMENTS, Convolution, Cost, convolutions, transformer_blocks

__all__ = ["decoder_cost", "encoder_cost"]

Shape = tuple[int, int, int]

PATCH_ELEMENTS = 6.0
"""Elementwise work per input value of a patch embedding: cutting into patches and casting."""

PRIMUS_ELEMENTS = 30.0
"""Elementwise work of an EVA-02 block per token and channel beyond that of a plain one, in GELUs: rotations of queries
and keys, the norm after attention, the gate and norm of the wider MLP."""

WINDOW_ELEMENTS = 16.0
"""Elementwise work of window attention per pair of places and head, in GELUs: scores, bias, mask and softmax are
tensors of their own in MONAI, where fused attention keeps none."""


def encoder_cost(settings: FamilySettings, shape: Shape, share: float, half: bool) -> tuple[Cost, float]:
    """The forward pass of one view, and the encoder's parameters.

    Args:
        settings: the encoder.
        shape: voxels (z, y, x) of the view.
        share: share of its tokens that are encoded; only plain transformers encode less than all.
        half: activations in 2 bytes where autocast allows.

    Raises:
        UsageError: another package's family does not say what a view takes.
    """
    match settings:
        case ViTSettings() | PrimusSettings():
            return _patches(settings, shape, share, half)
        case ResEncSettings():
            return convolutions(_resenc(settings, shape), half)
        case UNet3DSettings():
            return convolutions(_unet3d(settings, shape), half)
        case SegResNetSettings():
            return convolutions(_segresnet(settings, shape), half)
        case SwinUNETRSettings():
            return _swin(settings, shape, half)
        case _:
            return _stated(settings, shape, share, half)


def decoder_cost(settings: FamilySettings, shape: Shape, outputs: int, half: bool) -> tuple[Cost, float]:
    """The forward pass of the family's voxel decoder on one view, and its parameters.

    Args:
        settings: the encoder.
        shape: voxels (z, y, x) of the view.
        outputs: channels of the volume to predict.
        half: activations in 2 bytes where autocast allows.

    Raises:
        UsageError: another package's family does not say what a view takes.
    """
    match settings:
        case ResEncSettings():
            return convolutions(_resenc_decoder(settings, shape, outputs), half)
        case UNet3DSettings():
            return convolutions(_unet3d_decoder(settings, shape, outputs), half)
        case SegResNetSettings():
            return convolutions(_segresnet_decoder(settings, shape, outputs), half)
        case SwinUNETRSettings():
            return convolutions(_swin_decoder(settings, shape, outputs), half)
        case _ if settings.drops_tokens:
            return convolutions(_patch_decoder(settings, shape, outputs), half)
        case _:
            # Another package's decoder is taken to cost as much as its encoder.
            return _stated(settings, shape, 1.0, half)


def _patches(settings: ViTSettings | PrimusSettings, shape: Shape, share: float, half: bool) -> tuple[Cost, float]:
    tokens = prod(s / p for s, p in zip(shape, settings.patch, strict=True)) * share
    patch = prod(settings.patch) * settings.in_channels
    embed = Cost(
        matmul=2.0 * tokens * patch * settings.width,
        elements=PATCH_ELEMENTS * prod(shape) * settings.in_channels,
        ops=12,
        stored=tokens * (patch * (2 if half else 4) + settings.width * 4),
    )
    gated = isinstance(settings, PrimusSettings)
    prefix = 0 if isinstance(settings, PrimusSettings) else 1 + settings.registers
    blocks, params = transformer_blocks(
        tokens + prefix,
        settings.width,
        settings.depth,
        settings.mlp_ratio,
        half,
        gated=gated,
        heads=0 if gated else settings.heads,
    )
    if gated:
        values = settings.depth * tokens * settings.width
        # Kept beyond a plain block: rotated queries and keys, the inputs of two more norms.
        blocks += Cost(elements=values * PRIMUS_ELEMENTS, ops=settings.depth * 30, stored=values * 24)
        params += prod(s // p for s, p in zip(settings.input_shape, settings.patch, strict=True)) * settings.width
    return embed + blocks, params + patch * settings.width


def _patch_decoder(settings: FamilySettings, shape: Shape, outputs: int) -> Iterator[Convolution]:
    """Transposed convolutions."""
    places = prod(shape) / prod(settings.token_size)
    for stage in patch_decoder_stages(settings.embed_dim, settings.token_size, outputs):
        places *= prod(stage.stride)
        yield Convolution(places, stage.inputs, stage.outputs, 1, prod(stage.stride))


def _resenc(settings: ResEncSettings, shape: Shape) -> Iterator[Convolution]:
    """A first convolution, then residual blocks of two."""
    voxels, channels = float(prod(shape)), settings.features[0]
    yield Convolution(voxels, settings.in_channels, channels, prod(settings.kernels[0]))
    stages = zip(settings.features, settings.blocks, settings.strides, settings.kernels, strict=True)
    for features, blocks, stride, kernel in stages:
        voxels /= prod(stride)
        for _ in range(blocks):
            yield Convolution(voxels, channels, features, prod(kernel) + (channels != features))
            yield Convolution(voxels, features, features, prod(kernel))
            channels = features


def _resenc_decoder(settings: ResEncSettings, shape: Shape, outputs: int) -> Iterator[Convolution]:
    """Per stage a transposed convolution and one on it and the skipped stage."""
    voxels = float(prod(shape))
    stages = zip(
        settings.features[:-1], settings.features[1:], settings.strides[1:], settings.kernels[:-1], strict=True
    )
    for fine, deep, stride, kernel in stages:
        yield Convolution(voxels, deep, fine, 1, prod(stride))
        yield Convolution(voxels, 2 * fine, fine, prod(kernel))
        voxels /= prod(stride)
    yield Convolution(prod(shape), settings.features[0], outputs, 1)


def _unet3d(settings: UNet3DSettings, shape: Shape) -> Iterator[Convolution]:
    """Two convolutions per stage, to half of its channels and to all."""
    voxels, channels = float(prod(shape)), settings.in_channels
    for features, stride in zip(settings.features, settings.strides, strict=True):
        voxels /= prod(stride)
        yield Convolution(voxels, channels, features // 2, 27)
        yield Convolution(voxels, features // 2, features, 27)
        channels = features


def _unet3d_decoder(settings: UNet3DSettings, shape: Shape, outputs: int) -> Iterator[Convolution]:
    """Per stage a transposed convolution and two more, the first on the skipped stage too."""
    voxels = float(prod(shape))
    for fine, deep, stride in zip(settings.features[:-1], settings.features[1:], settings.strides[1:], strict=True):
        yield Convolution(voxels, deep, deep, 1, prod(stride))
        yield Convolution(voxels, deep + fine, fine, 27)
        yield Convolution(voxels, fine, fine, 27)
        voxels /= prod(stride)
    yield Convolution(prod(shape), settings.features[0], outputs, 1)


def _segresnet(settings: SegResNetSettings, shape: Shape) -> Iterator[Convolution]:
    """A first convolution, then per stage one of stride 2 and residual blocks of two."""
    voxels, channels = float(prod(shape)), settings.init_filters
    yield Convolution(voxels, settings.in_channels, channels, 27)
    for stage, blocks in enumerate(settings.blocks):
        if stage:
            voxels /= 8
            yield Convolution(voxels, channels, 2 * channels, 27)
            channels *= 2
        for _ in range(2 * blocks):
            yield Convolution(voxels, channels, channels, 27)


def _segresnet_decoder(settings: SegResNetSettings, shape: Shape, outputs: int) -> Iterator[Convolution]:
    """Per stage a 1 x 1 x 1 convolution before the interpolation, and one residual block of two."""
    voxels, channels = float(prod(shape)), settings.init_filters
    for _ in range(len(settings.blocks) - 1):
        yield Convolution(voxels / 8, 2 * channels, channels, 1)
        yield Convolution(voxels, channels, channels, 27)
        yield Convolution(voxels, channels, channels, 27)
        voxels, channels = voxels / 8, 2 * channels
    yield Convolution(prod(shape), settings.init_filters, outputs, 1)


def _swin(settings: SwinUNETRSettings, shape: Shape, half: bool) -> tuple[Cost, float]:
    """Patches of 2 voxels, then per stage blocks of window attention and the merging of 8 places into one."""
    size = 2 if half else 4
    sides = [side // 2 for side in shape]
    width, patch = settings.feature_size, 8 * settings.in_channels
    total = Cost(
        matmul=2.0 * prod(sides) * patch * width, elements=prod(sides) * width * CONV_ELEMENTS, ops=6, stored=0.0
    )
    params = float(patch * width)
    for depth, heads in zip(settings.depths, settings.heads, strict=True):
        window = [min(settings.window, side) for side in sides]
        places = float(prod(ceil(side / w) * w for side, w in zip(sides, window, strict=True)))
        blocks, own = transformer_blocks(places, width, depth, 4.0, half, seen=prod(window))
        pairs = depth * places * prod(window) * heads
        values = prod(sides) * width
        total += blocks + Cost(elements=pairs * WINDOW_ELEMENTS, ops=depth * 40, stored=pairs * 2 * size)
        # Merging: a norm over 8 times the channels and a linear layer to twice the channels.
        total += Cost(matmul=4.0 * values * width, elements=values * 8, ops=20, stored=values * (4 + size))
        params += own + depth * heads * (2 * settings.window - 1) ** 3 + 16 * width * width
        sides, width = [side // 2 for side in sides], 2 * width
    return total, params


def _swin_decoder(settings: SwinUNETRSettings, shape: Shape, outputs: int) -> Iterator[Convolution]:
    """Residual blocks of two on the input and on the levels but the fourth, five enlargements with one each."""
    width, voxels = settings.feature_size, float(prod(shape))
    levels = (
        (0, settings.in_channels, width),
        *((level, width << (level - 1), width << (level - 1)) for level in (1, 2, 3, 5)),
    )
    for level, inputs, channels in levels:
        yield Convolution(voxels / 8**level, inputs, channels, 27 + (inputs != channels))
        yield Convolution(voxels / 8**level, channels, channels, 27)
    for level in range(5):
        fine, deep = width << max(0, level - 1), width << level
        yield Convolution(voxels / 8**level, deep, fine, 1, 8)
        yield Convolution(voxels / 8**level, 2 * fine, fine, 28)
        yield Convolution(voxels / 8**level, fine, fine, 27)
    yield Convolution(voxels, width, outputs, 1)


def _stated(settings: FamilySettings, shape: Shape, share: float, half: bool) -> tuple[Cost, float]:
    """A family that says itself what a view takes; attention grows with the square of the tokens that are kept.

    Raises:
        UsageError: it does not say it.
    """
    stated = settings.forward_cost(shape)
    if stated is None:
        raise UsageError(
            f"The encoder family '{settings.family}' does not say what a view takes, so no run can be planned.",
            got=f"{type(settings).__name__} without forward_cost",
            expected="a ForwardCost",
            do="Define forward_cost(shape) in its settings class.",
        )
    transformer = settings.kind == "transformer"
    if not settings.drops_tokens:
        share = 1.0  # what is masked is encoded too
    cost = Cost(
        matmul=2 * stated.multiply_adds * share if transformer else 0.0,
        attention=2 * stated.attention * share * share,
        conv=0.0 if transformer else 2 * stated.multiply_adds,
        elements=stated.outputs * share * CONV_ELEMENTS,
        ops=stated.operations,
        stored=stated.outputs * share * 3 * (2 if half else 4),
    )
    return cost, stated.parameters
