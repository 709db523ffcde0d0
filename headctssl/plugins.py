"""Plugins: what other packages add through entry points, found by name and imported when asked for.

One package that cannot be used takes nothing else with it: where names are gone through it is left out with a warning,
and an error is raised only where its own name is asked for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

from headctssl.console import warn
from headctssl.errors import HeadCTSSLError, UsageError

__all__ = ["ENCODER_GROUP", "METHOD_GROUP", "Plugin", "find_plugins", "left_out_when_broken", "name_taken"]

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
    rival: str | None = None  # another package that gives the same name, so that neither can be used

    def require_alone(self) -> None:
        """Refuse a name that two packages give.

        Raises:
            UsageError: there is a rival.
        """
        if self.rival is not None:
            raise name_taken(self, f"the package {self.rival}")

    def load(self) -> type:
        """Import the class.

        Raises:
            UsageError: the package cannot be imported, has no such class, or another package gives the same name.
        """
        self.require_alone()
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # whatever its code raises, the user must learn which package it is
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
    """
    found: dict[str, Plugin] = {}
    for point in entry_points(group=group):
        plugin = Plugin(point.name, point.value, point.dist.name if point.dist is not None else point.value)
        first = found.get(point.name)
        found[point.name] = plugin if first is None else replace(first, rival=plugin.package)
    return found


@contextmanager
def left_out_when_broken(plugin: Plugin) -> Iterator[None]:
    """Go on without a package whose code fails inside the block, and warn once which one and why.

    Args:
        plugin: what the block is about.
    """
    try:
        yield
    except HeadCTSSLError as error:
        what = "" if plugin.target in error.what else f"{error.what} "  # a fault's first line repeats the package
        _say_left_out(plugin, f"{what}got {error.got}; expected {error.expected}")
    except Exception as error:  # of another package's code, which can raise anything
        _say_left_out(plugin, f"{type(error).__name__}: {error}")


@functools.cache  # a name is gone through several times in one command
def _say_left_out(plugin: Plugin, reason: str) -> None:
    warn(
        f"'{plugin.name}' of the package {plugin.package} is left out, it cannot be used ({plugin.target}): "
        f"{' '.join(reason.split())}"
    )


def name_taken(plugin: Plugin, by: str, name: str | None = None) -> UsageError:
    """An error for a name that exists already.

    Args:
        plugin: what cannot be added.
        by: who has the name.
        name: the name; the plugin's own when None.
    """
    return plugin.fault(f"the name '{name or plugin.name}', which {by} has", "a name that is not taken")
