"""ResEnc: the residual encoder of dynamic-network-architectures behind the Encoder contract."""

from __future__ import annotations

from typing import ClassVar, Literal

from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of, tokens_from_grid, voxels_of_mask
from headctssl.presets import ResEncSettings
from headctssl.types import EncoderOutput

__all__ = ["ResEncEncoder"]


class ResEncEncoder(Encoder):
    """A residual CNN encoder. `features` is the mean of the last stage, `pyramid` all stages, finest first.

    InstanceNorm with affine parameters and eps 1e-5, LeakyReLU, convolutions with bias, as nnU-Net's ResEnc
    presets (arXiv 2404.09556).

    Args:
        settings: all dimensions.
    """

    kind: ClassVar[Literal["transformer", "cnn"]] = "cnn"

    def __init__(self, settings: ResEncSettings) -> None:
        super().__init__()
        self.settings: ResEncSettings = settings
        z = y = x = 1
        for stride in settings.strides:
            z, y, x = z * stride[0], y * stride[1], x * stride[2]
        self.token_size = (z, y, x)
        self.embed_dim = settings.features[-1]
        self.network = ResidualEncoder(
            input_channels=settings.in_channels,
            n_stages=len(settings.features),
            features_per_stage=list(settings.features),
            conv_op=nn.Conv3d,
            kernel_sizes=[list(k) for k in settings.kernels],
            strides=[list(s) for s in settings.strides],
            n_blocks_per_stage=list(settings.blocks),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            return_skips=True,
        )
        self.network.apply(_init_conv)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """See `Encoder.forward`. The mask may have any grid that divides the input: its blocks are zeroed.

        Raises:
            ValueError: a side is not a multiple of the total stride or of the mask's grid, or `keep` is given.
        """
        if keep is not None:
            raise ValueError("a CNN cannot drop tokens: give a mask")
        grid = grid_of(x.shape[2:], self.token_size)
        if mask is not None:
            block = grid_of(x.shape[2:], (mask.shape[1], mask.shape[2], mask.shape[3]))
            x = x.masked_fill(voxels_of_mask(mask, block), 0.0)
        pyramid = tuple(self.network(x))
        tokens = tokens_from_grid(pyramid[-1])
        return EncoderOutput(tokens=tokens, grid=grid, cls=None, features=tokens.float().mean(1), pyramid=pyramid)


def _init_conv(module: nn.Module) -> None:
    """He initialisation with the slope of the LeakyReLU (arXiv 1502.01852), zero biases."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
