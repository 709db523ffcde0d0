"""Methods: one folder per self-supervised objective."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from headctssl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from headctssl.methods.method import Method

__all__ = ["METHODS", "MethodEntry", "list_methods", "method_class"]


@dataclass(frozen=True)
class MethodEntry:
    """Where a method lives."""

    target: str  # "module:class"
    description: str  # one line


METHODS: dict[str, MethodEntry] = {
    "dino": MethodEntry(
        "headctssl.methods.dino.dino:Dino", "self-distillation between views without labels (arXiv 2104.14294)"
    ),
    "lejepa": MethodEntry(
        "headctssl.methods.lejepa.lejepa:Lejepa",
        "views meet at one point, all scans form a Gaussian (arXiv 2511.08544)",
    ),
    "mae": MethodEntry(
        "headctssl.methods.mae.mae:Mae", "reconstruction of masked patches or blocks (arXiv 2111.06377)"
    ),
}
"""Every built-in method by name. Third parties add theirs through the entry-point group ``headctssl.methods``."""


@functools.cache
def _methods() -> dict[str, MethodEntry]:
    """The table and the entry points in one."""
    methods = dict(METHODS)
    for point in entry_points(group="headctssl.methods"):
        if point.name in methods:
            raise UsageError(
                f"Two methods are called '{point.name}'.",
                got=point.value,
                expected="a name that is not taken",
                do=f"Rename or uninstall the package that provides '{point.value}'.",
            )
        package = point.dist.name if point.dist is not None else point.value
        methods[point.name] = MethodEntry(point.value, f"from the package {package}")
    return methods


def list_methods() -> list[tuple[str, str]]:
    """(name, description) of every method, without importing torch."""
    return [(name, entry.description) for name, entry in _methods().items()]


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: the name is unknown, or two packages give one name.
    """
    methods = _methods()
    if name not in methods:
        raise unknown_name("method", name, methods)
    module, _, attribute = methods[name].target.partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found
