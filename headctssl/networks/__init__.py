"""Networks: encoders behind one contract, decoders, heads."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from headctssl.families import settings_class
from headctssl.plugins import ENCODER_GROUP, find_plugins
from headctssl.presets import EncoderSettings, encoder_preset, encoder_presets
from headctssl.settings import JsonValue, with_overrides

if TYPE_CHECKING:
    from headctssl.networks.encoder import Encoder

__all__ = ["ENCODERS", "build_encoder", "build_from_settings", "encoder_class", "list_encoders"]

ENCODERS: dict[str, str] = {
    "vit": "headctssl.networks.vit:ViTEncoder",
    "primus": "headctssl.networks.primus:PrimusEncoder",
    "resenc": "headctssl.networks.resenc:ResEncEncoder",
    "unet3d": "headctssl.networks.unet3d:UNet3DEncoder",
    "swin_unetr": "headctssl.networks.monai_nets:SwinUNETREncoder",
    "segresnet": "headctssl.networks.monai_nets:SegResNetEncoder",
}
"""Family of encoders -> ``module:class``. Sizes by name are in `headctssl.presets.ENCODER_PRESETS`.

Another package adds a family through the entry-point group ``headctssl.encoders``: its class takes one settings
object and has the attributes ``Settings``, a `FamilySettings` whose ``family`` is the name, and ``presets``.
"""


def encoder_class(family: str) -> type[Encoder]:
    """The class of a family of encoders.

    Raises:
        UsageError: the family is unknown, two packages give one name, or a package's class is no encoder.
    """
    if family in ENCODERS:
        module, _, name = ENCODERS[family].partition(":")
        found: type[Encoder] = getattr(importlib.import_module(module), name)
        return found
    settings_class(family)  # says what is wrong with an unknown family or its package
    plugin = find_plugins(ENCODER_GROUP)[family]
    added = plugin.load()
    from headctssl.networks.encoder import Encoder  # imports torch, which listing names must not

    if not issubclass(added, Encoder):
        raise plugin.fault(added, "a subclass of headctssl.networks.encoder.Encoder")
    return added


def build_from_settings(settings: EncoderSettings) -> Encoder:
    """A randomly initialised encoder of these dimensions (torch's global generator)."""
    from headctssl.networks.thin_convolution import guard_convolutions  # imports torch, which listing names must not

    encoder = encoder_class(settings.family)(settings)
    guard_convolutions(encoder)
    return encoder


def build_encoder(name: str, **overrides: JsonValue) -> Encoder:
    """A randomly initialised encoder by preset name.

    Args:
        name: a preset, e.g. ``"vit_s"``; `list_encoders` has them all.
        overrides: fields of its settings, e.g. ``registers=4``.

    Raises:
        UsageError: unknown name, unknown field, or a value that does not fit.
    """
    defaults = encoder_preset(name).settings
    return build_from_settings(with_overrides(defaults, overrides, "encoder."))


def list_encoders() -> list[tuple[str, str]]:
    """(name, description) of every encoder; torch is imported only where another package adds one."""
    return [(preset.name, preset.description) for preset in encoder_presets().values()]
