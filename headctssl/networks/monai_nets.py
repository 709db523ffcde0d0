"""Monai nets: SwinUNETR and SegResNet of MONAI behind the Encoder contract; needs the extra ``monai``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.families import SegResNetSettings, SwinUNETRSettings
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of, tokens_from_grid
from headctssl.types import EncoderOutput

__all__ = ["SegResNetEncoder", "SwinUNETREncoder"]


class SwinUNETREncoder(Encoder):
    """The Swin transformer of SwinUNETR (arXiv 2201.01266). `features` is the mean of the last stage.

    The pyramid is the input as the encoder saw it, masked voxels zero, which the decoder convolves too, then the five
    levels of strides 2 to 32, each normalised over its channels.

    Args:
        settings: all dimensions.

    Raises:
        UsageError: MONAI is not installed.
    """

    settings: SwinUNETRSettings

    def __init__(self, settings: SwinUNETRSettings) -> None:
        super().__init__(settings)
        # MONAI reads numbers from tensors while it builds, and those of the meta device have none.
        device = torch.get_default_device()
        with torch.device("cpu"):
            network = _nets(settings.family).swin_unetr.SwinTransformer(
                in_chans=settings.in_channels,
                embed_dim=settings.feature_size,
                window_size=(settings.window,) * 3,
                patch_size=(2, 2, 2),
                depths=settings.depths,
                num_heads=settings.heads,
                drop_path_rate=settings.drop_path,
            )
        self.network = network.to(device)
        tables = (name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table"))
        self.no_weight_decay = tuple(tables)  # as the published code of Swin (arXiv 2103.14030)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Embedding and blocks; what halves the grid after a stage counts to the stage's last block."""
        found: list[tuple[str, ...]] = [("network.patch_embed",)]
        for stage, depth in enumerate(self.settings.depths, start=1):
            names = f"network.layers{stage}.0"
            found += [(f"{names}.blocks.{block}",) for block in range(depth)]
            found[-1] = (*found[-1], f"{names}.downsample")
        return tuple(found)

    def make_decoder(self, outputs: int) -> SwinUNETRDecoder:
        """The convolutions of SwinUNETR."""
        return SwinUNETRDecoder(self.settings, outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """See `Encoder.forward`.

        Raises:
            ValueError: a side is not a multiple of 32 or of the mask's grid, or `keep` is given.
        """
        grid = grid_of(x.shape[2:], self.token_size)
        volume = self.hide_voxels(x, mask, keep)
        levels = tuple(self.network(volume, normalize=True))
        tokens = tokens_from_grid(levels[-1])
        features = tokens.float().mean(1)
        return EncoderOutput(tokens=tokens, grid=grid, cls=None, features=features, pyramid=(volume, *levels))


class SwinUNETRDecoder(nn.Module):
    """Everything of SwinUNETR but its transformer: residual convolutions on each level and on the input, and between.

    Args:
        settings: of the encoder.
        outputs: channels of the volume to predict.
    """

    def __init__(self, settings: SwinUNETRSettings, outputs: int) -> None:
        super().__init__()
        device = torch.get_default_device()
        with torch.device("cpu"):
            whole = _nets(settings.family).SwinUNETR(
                in_channels=settings.in_channels,
                out_channels=outputs,
                depths=(1, 1, 1, 1),  # of the transformer, which goes
                feature_size=settings.feature_size,
            )
        del whole.swinViT
        self.network = whole.to(device)

    def forward(self, out: EncoderOutput) -> Tensor:
        """The pyramid as a volume (B, outputs, D, H, W)."""
        assert out.pyramid is not None, "SwinUNETR gives a pyramid"
        net = self.network
        volume, half, fourth, eighth, sixteenth, last = out.pyramid
        up = net.decoder5(net.encoder10(last), sixteenth)
        up = net.decoder4(up, net.encoder4(eighth))
        up = net.decoder3(up, net.encoder3(fourth))
        up = net.decoder2(up, net.encoder2(half))
        predicted: Tensor = net.out(net.decoder1(up, net.encoder1(volume)))
        return predicted


class SegResNetEncoder(Encoder):
    """The encoder of SegResNet (arXiv 1810.11654), with GroupNorm. `features` is the mean of the last stage.

    Args:
        settings: all dimensions.

    Raises:
        UsageError: MONAI is not installed.
    """

    settings: SegResNetSettings

    def __init__(self, settings: SegResNetSettings) -> None:
        super().__init__(settings)
        whole = _seg_res_net(settings, outputs=1)
        self.first = whole.convInit
        self.stages = whole.down_layers

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """First convolution and stages."""
        return (("first",), *((f"stages.{index}",) for index in range(len(self.settings.blocks))))

    def make_decoder(self, outputs: int) -> SegResNetDecoder:
        """The expanding half of SegResNet."""
        return SegResNetDecoder(self.settings, outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> EncoderOutput:
        """See `Encoder.forward`.

        Raises:
            ValueError: a side is not a multiple of the total stride or of the mask's grid, or `keep` is given.
        """
        grid = grid_of(x.shape[2:], self.token_size)
        volume = self.first(self.hide_voxels(x, mask, keep))
        pyramid: list[Tensor] = []
        for stage in self.stages:
            volume = stage(volume)
            pyramid.append(volume)
        tokens = tokens_from_grid(volume)
        features = tokens.float().mean(1)
        return EncoderOutput(tokens=tokens, grid=grid, cls=None, features=features, pyramid=tuple(pyramid))


class SegResNetDecoder(nn.Module):
    """The expanding half of SegResNet: 1 x 1 x 1 convolution, linear interpolation, sum with the skipped stage, block.

    Args:
        settings: of the encoder.
        outputs: channels of the volume to predict.
    """

    def __init__(self, settings: SegResNetSettings, outputs: int) -> None:
        super().__init__()
        whole = _seg_res_net(settings, outputs)
        del whole.convInit, whole.down_layers
        self.network = whole

    def forward(self, out: EncoderOutput) -> Tensor:
        """The pyramid as a volume (B, outputs, D, H, W)."""
        assert out.pyramid is not None, "SegResNet gives a pyramid"
        predicted: Tensor = self.network.decode(out.pyramid[-1], list(reversed(out.pyramid)))
        return predicted


def _nets(family: str) -> Any:
    """The module ``monai.networks.nets``, imported when an encoder is built."""
    try:
        from monai.networks import nets
    except ImportError as error:
        raise UsageError(
            f"The encoders of the family {family} need MONAI, which is not installed.",
            got=str(error),
            expected="the package monai",
            do="pip install headctssl[monai]",
        ) from None
    return nets


def _seg_res_net(settings: SegResNetSettings, outputs: int) -> Any:
    return _nets(settings.family).SegResNet(
        init_filters=settings.init_filters,
        in_channels=settings.in_channels,
        out_channels=outputs,
        blocks_down=settings.blocks,
        blocks_up=(1,) * (len(settings.blocks) - 1),
    )
