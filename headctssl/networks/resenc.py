"""ResEnc: the residual encoder of dynamic-network-architectures behind the Encoder contract."""

from __future__ import annotations

from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from headctssl.families import ResEncSettings
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of, tokens_from_grid
from headctssl.types import EncoderOutput

__all__ = ["ResEncEncoder"]


class ResEncEncoder(Encoder):
    """A residual CNN encoder. `features` is the mean of the last stage, `pyramid` all stages, finest first.

    InstanceNorm with affine parameters and eps 1e-5, LeakyReLU, convolutions with bias, as nnU-Net's ResEnc
    presets (arXiv 2404.09556).

    Args:
        settings: all dimensions.
    """

    settings: ResEncSettings

    def __init__(self, settings: ResEncSettings) -> None:
        super().__init__(settings)
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
        x = self.hide_voxels(x, mask, keep)
        grid = grid_of(x.shape[2:], self.token_size)
        pyramid = tuple(self.network(x))
        tokens = tokens_from_grid(pyramid[-1])
        return EncoderOutput(tokens=tokens, grid=grid, cls=None, features=tokens.float().mean(1), pyramid=pyramid)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Stem and stages."""
        return (("network.stem",), *((f"network.stages.{index}",) for index in range(len(self.settings.features))))

    def make_decoder(self, outputs: int) -> ResEncDecoder:
        """The U-Net decoder of the library."""
        return ResEncDecoder(self.network, outputs)


class ResEncDecoder(nn.Module):
    """dynamic-network-architectures' U-Net decoder, one convolution per stage, on the pyramid.

    Args:
        encoder: its stages give the sizes; it does not become part of the decoder.
        outputs: channels of the volume to predict.
    """

    def __init__(self, encoder: ResidualEncoder, outputs: int) -> None:
        super().__init__()
        decoder = UNetDecoder(encoder, outputs, n_conv_per_stage=1, deep_supervision=False)
        # The library keeps the encoder as a submodule and a prediction layer per stage. The encoder would be listed
        # twice among the parameters, and the unused layers would never get a gradient.
        del decoder.encoder
        decoder.seg_layers = nn.ModuleList([decoder.seg_layers[-1]])
        self.network = decoder

    def forward(self, out: EncoderOutput) -> Tensor:
        """The pyramid as a volume (B, outputs, D, H, W)."""
        assert out.pyramid is not None, "a residual encoder gives a pyramid"
        volume: Tensor = self.network(list(out.pyramid))
        return volume


def _init_conv(module: nn.Module) -> None:
    """He initialisation with the slope of the LeakyReLU (arXiv 1502.01852), zero biases."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
