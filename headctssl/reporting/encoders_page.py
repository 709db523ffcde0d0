"""Encoders page: the table of documentation/encoders.md, from the encoders themselves."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from headctssl.presets import ENCODER_PRESETS, EncoderPreset

__all__ = ["encoders_table", "write_encoders_table"]

_START, _END = "<!-- encoders: made by make docs -->", "<!-- end of encoders -->"


def encoders_table() -> str:
    """One line per preset that users choose from: sizes as built here, for three windows."""
    columns = ("encoder", "family", "parameters", "with decoder", "input", "token", "tokens", "width", "what")
    presets = [preset for preset in ENCODER_PRESETS.values() if not preset.name.endswith("_test")]
    lines: list[Sequence[str]] = [columns, ["---"] * len(columns), *(_row(preset) for preset in presets)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_encoders_table(path: Path) -> None:
    """Put the table between its marks.

    Args:
        path: documentation/encoders.md of a checkout.
    """
    before, _, rest = path.read_text(encoding="utf-8").partition(_START)
    after = rest.partition(_END)[2]
    path.write_text(f"{before}{_START}\n{encoders_table()}\n{_END}{after}", encoding="utf-8")


def _row(preset: EncoderPreset) -> tuple[str, ...]:
    import torch

    from headctssl.networks import build_from_settings
    from headctssl.networks.decoders import voxel_decoder

    settings = preset.settings
    with torch.device("meta"):
        encoder = build_from_settings(settings)
        decoder = voxel_decoder(encoder, settings.in_channels)
    own, added = (sum(p.numel() for p in module.parameters()) / 1e6 for module in (encoder, decoder))
    tokens = prod(settings.input_shape) // prod(settings.token_size)
    return (
        f"`{preset.name}`",
        settings.family,
        f"{own:.2f} M",
        f"{own + added:.2f} M",
        " x ".join(map(str, settings.input_shape)),
        " x ".join(map(str, settings.token_size)),
        f"{tokens:,}",
        str(settings.embed_dim),
        preset.description,
    )
