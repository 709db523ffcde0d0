"""Strided: an encoder of three strided convolutions."""

from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from headctssl.families import FamilySettings, ForwardCost, Kind
from headctssl.networks.decoders import PatchDecoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of, tokens_from_grid
from headctssl.presets import EncoderPreset
from headctssl.types import EncoderOutput


class StridedSettings(FamilySettings):
    kind: ClassVar[Kind] = "cnn"
    thin_tokens: ClassVar[bool] = False
    family: Literal["strided"] = "strided"
    width: int = Field(64, ge=8, multiple_of=4, description="Channels of the last stage.")

    @property
    def channels(self):
        return (self.in_channels, self.width // 4, self.width // 2, self.width)

    @property
    def token_size(self):
        return (8, 8, 8)

    @property
    def embed_dim(self):
        return self.width

    def forward_cost(self, shape):
        voxels = [prod(shape) / 8**stage for stage in (1, 2, 3)]
        weights = [27 * a * b for a, b in pairwise(self.channels)]
        outputs = sum(v * c for v, c in zip(voxels, self.channels[1:], strict=True))
        work = sum(v * w for v, w in zip(voxels, weights, strict=True))
        return ForwardCost(multiply_adds=work, outputs=outputs, operations=9, parameters=sum(weights))


class StridedEncoder(Encoder):
    Settings = StridedSettings
    presets = (EncoderPreset("strided_s", StridedSettings(), "fixed_spacing", "three strided convolutions"),)

    def __init__(self, settings):
        super().__init__(settings)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, stride=2, padding=1), nn.InstanceNorm3d(b, affine=True), nn.GELU())
            for a, b in pairwise(settings.channels)
        )

    def forward(self, x, mask=None, keep=None):
        grid, x = grid_of(x.shape[2:], self.token_size), self.hide_voxels(x, mask, keep)
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        tokens = tokens_from_grid(x)
        return EncoderOutput(tokens, grid, cls=None, features=tokens.float().mean(1), pyramid=tuple(pyramid))

    def make_decoder(self, outputs):
        return PatchDecoder(self.embed_dim, self.token_size, outputs)
