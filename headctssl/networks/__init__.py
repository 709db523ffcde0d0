"""Networks: encoders behind one contract, decoders, heads."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from headctssl.errors import UsageError, unknown_name
from headctssl.presets import ENCODER_PRESETS, EncoderSettings, encoder_preset
from headctssl.settings import JsonValue, with_overrides

if TYPE_CHECKING:
    from headctssl.networks.encoder import Encoder

__all__ = ["ENCODERS", "build_encoder", "build_from_settings", "encoder_class", "list_encoders"]

ENCODERS: dict[str, str] = {
    "vit": "headctssl.networks.vit:ViTEncoder",
    "resenc": "headctssl.networks.resenc:ResEncEncoder",
}
"""Family of encoders -> ``module:class``. Sizes by name are in `headctssl.presets.ENCODER_PRESETS`.

A third party adds a family through the entry-point group ``headctssl.encoders``; its class takes one settings
object and has an attribute ``Settings``, a model with a ``family`` of the same name and a default for every field.
"""


@functools.cache
def _families() -> dict[str, str]:
    """The table and the entry points of group ``headctssl.encoders`` in one."""
    families = dict(ENCODERS)
    for point in entry_points(group="headctssl.encoders"):
        if point.name in families or point.name in ENCODER_PRESETS:
            raise UsageError(
                f"Two encoders are called '{point.name}'.",
                got=point.value,
                expected="a name that is not taken",
                do=f"Rename or uninstall the package that provides '{point.value}'.",
            )
        families[point.name] = point.value
    return families


def encoder_class(family: str) -> type[Encoder]:
    """The class of a family of encoders.

    Raises:
        UsageError: the family is unknown, or two packages give one name.
    """
    families = _families()
    if family not in families:
        raise unknown_name("encoder family", family, families)
    module, _, name = families[family].partition(":")
    found: type[Encoder] = getattr(importlib.import_module(module), name)
    return found


def build_from_settings(settings: EncoderSettings) -> Encoder:
    """A randomly initialised encoder of these dimensions (torch's global generator)."""
    build = encoder_class(settings.family)
    return build(settings)


def build_encoder(name: str, **overrides: JsonValue) -> Encoder:
    """A randomly initialised encoder by preset name.

    Args:
        name: a preset, e.g. ``"vit_s"``; `list_encoders` has them all.
        overrides: fields of its settings, e.g. ``registers=4``.

    Raises:
        UsageError: unknown name, unknown field, or a value that does not fit.
    """
    if name not in ENCODER_PRESETS and name in _families() and name not in ENCODERS:
        defaults: EncoderSettings = encoder_class(name).Settings()  # type: ignore[attr-defined]  # third parties give it
    else:
        defaults = encoder_preset(name).settings
    return build_from_settings(with_overrides(defaults, overrides, "encoder."))


def list_encoders() -> list[tuple[str, str]]:
    """(name, description) of every encoder, without importing torch."""
    known = [(preset.name, preset.description) for preset in ENCODER_PRESETS.values()]
    extra = [(name, target) for name, target in _families().items() if name not in ENCODERS]
    return known + extra
