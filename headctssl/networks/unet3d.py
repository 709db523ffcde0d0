"""UNet3D: the 3D U-Net of Models Genesis, its contracting half as the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headctssl.families import UNet3DSettings
from headctssl.networks.batch_norm import GlobalBatchNorm3d
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import Grid, grid_of, tokens_from_grid
from headctssl.types import EncoderOutput

__all__ = ["UNet3DEncoder"]


class UNet3DEncoder(Encoder):
    """The contracting half of the U-Net (arXiv 1908.06912). `features` is the mean of the last stage.

    Each stage is a max pooling and two 3 x 3 x 3 convolutions with BatchNorm and ReLU, to half of the stage's channels
    and to all of them. BatchNorm uses its running statistics in eval mode (the published code never does).

    Args:
        settings: all dimensions.
    """

    settings: UNet3DSettings

    def __init__(self, settings: UNet3DSettings) -> None:
        super().__init__(settings)
        inputs = (settings.in_channels, *settings.features)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.MaxPool3d(stride) if max(stride) > 1 else nn.Identity(),
                _convolution(inputs[stage], features // 2),
                _convolution(features // 2, features),
            )
            for stage, (features, stride) in enumerate(zip(settings.features, settings.strides, strict=True))
        )
        self.apply(_init)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Stages."""
        return tuple((f"stages.{index}",) for index in range(len(self.settings.features)))

    def make_decoder(self, outputs: int) -> UNet3DDecoder:
        """The expanding half of the U-Net."""
        return UNet3DDecoder(self.settings.features, self.settings.strides, outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """See `Encoder.forward`.

        Raises:
            ValueError: a side is not a multiple of the total stride or of the mask's grid, or `keep` is given.
        """
        grid = grid_of(x.shape[2:], self.token_size)
        volume = self.hide_voxels(x, mask, keep)
        pyramid: list[Tensor] = []
        for stage in self.stages:
            volume = stage(volume)
            pyramid.append(volume)
        tokens = tokens_from_grid(volume)
        features = tokens.float().mean(1)
        return EncoderOutput(tokens=tokens, grid=grid, cls=None, features=features, pyramid=tuple(pyramid))


class UNet3DDecoder(nn.Module):
    """The expanding half: transposed convolution, the skipped stage beside it, two convolutions; per stage.

    Args:
        features: channels of the encoder's stages, finest first.
        strides: pooling (z, y, x) before each stage.
        outputs: channels of the volume to predict.
    """

    def __init__(self, features: tuple[int, ...], strides: tuple[Grid, ...], outputs: int) -> None:
        super().__init__()
        pairs = list(zip(features[:-1], features[1:], strides[1:], strict=True))[::-1]
        self.enlarge = nn.ModuleList(nn.ConvTranspose3d(deep, deep, stride, stride) for _, deep, stride in pairs)
        self.merge = nn.ModuleList(
            nn.Sequential(_convolution(deep + fine, fine), _convolution(fine, fine)) for fine, deep, _ in pairs
        )
        self.predict = nn.Conv3d(features[0], outputs, 1)
        self.apply(_init)

    def forward(self, out: EncoderOutput) -> Tensor:
        """The pyramid as a volume (B, outputs, D, H, W)."""
        assert out.pyramid is not None, "a U-Net gives a pyramid"
        *skips, volume = out.pyramid
        for enlarge, merge, skip in zip(self.enlarge, self.merge, reversed(skips), strict=True):
            volume = merge(torch.cat([enlarge(volume), skip], dim=1))
        predicted: Tensor = self.predict(volume)
        return predicted


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), GlobalBatchNorm3d(outputs), nn.ReLU(inplace=True))


def _init(module: nn.Module) -> None:
    """He initialisation for ReLU (arXiv 1502.01852), zero biases."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
