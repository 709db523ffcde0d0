"""Plugins: what other packages add through entry points, found by name and imported when asked for."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from headctssl.errors import UsageError

__all__ = ["ENCODER_GROUP", "METHOD_GROUP", "Plugin", "find_plugins", "name_taken"]

METHOD_GROUP = "headctssl.methods"
"""Entry-point group of methods: ``name = "module:class"``, the class a `Method` with an attribute ``facts``."""

ENCODER_GROUP = "headctssl.encoders"
"""Entry-point group of encoders: ``family = "module:class"``, the class an `Encoder` with attributes ``Settings`` and
``presets``."""


@dataclass(frozen=True)
class Plugin:
    """One entry point of another package."""

    name: str
    target: str  # "module:class"
    package: str

    def load(self) -> type:
        """Import the class.

        Raises:
            UsageError: the package cannot be imported, or has no such class.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever another package's code raises, the user must learn which package it is
            raise self.fault(f"{type(error).__name__}: {error}", "a class that can be imported") from error
        if not isinstance(found, type):
            raise self.fault(f"a {type(found).__name__}", "a class")
        return found

    def fault(self, got: object, expected: str) -> UsageError:
        """An error that says what is wrong with the package."""
        return UsageError(
            f"'{self.name}' of the package {self.package} cannot be used ({self.target}).",
            got=got,
            expected=expected,
            do=f"Correct, update or uninstall {self.package}.",
        )


@functools.cache
def find_plugins(group: str) -> Mapping[str, Plugin]:
    """What is installed under an entry-point group, by name; nothing is imported.

    Args:
        group: `METHOD_GROUP` or `ENCODER_GROUP`.

    Raises:
        UsageError: two packages give one name.
    """
    found: dict[str, Plugin] = {}
    for point in entry_points(group=group):
        plugin = Plugin(point.name, point.value, point.dist.name if point.dist is not None else point.value)
        if point.name in found:
            raise name_taken(plugin, f"the package {found[point.name].package}")
        found[point.name] = plugin
    return found


def name_taken(plugin: Plugin, by: str, name: str | None = None) -> UsageError:
    """An error for a name that exists already.

    Args:
        plugin: what cannot be added.
        by: who has the name.
        name: the name; the plugin's own when None.
    """
    return plugin.fault(f"the name '{name or plugin.name}', which {by} has", "a name that is not taken")
