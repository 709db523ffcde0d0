"""Methods: one folder per self-supervised objective."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headctssl.errors import unknown_name
from headctssl.plugins import METHOD_GROUP, find_plugins, left_out_when_broken, name_taken

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
    "dinov2": MethodEntry(
        "headctssl.methods.dinov2.dinov2:Dinov2",
        "self-distillation of scans and of masked tokens (arXiv 2304.07193)",
    ),
    "jepa": MethodEntry(
        "headctssl.methods.jepa.jepa:Jepa",
        "prediction of a teacher's tokens from a part of the scan (arXiv 2511.18640)",
    ),
    "lejepa": MethodEntry(
        "headctssl.methods.lejepa.lejepa:Lejepa",
        "views meet at one point, all scans form a Gaussian (arXiv 2511.08544)",
    ),
    "mae": MethodEntry(
        "headctssl.methods.mae.mae:Mae", "reconstruction of masked patches or blocks (arXiv 2111.06377)"
    ),
    "models_genesis": MethodEntry(
        "headctssl.methods.models_genesis.models_genesis:ModelsGenesis",
        "repair of shuffled, remapped and painted scans (arXiv 1908.06912)",
    ),
    "simclr": MethodEntry(
        "headctssl.methods.simclr.simclr:Simclr",
        "overlapping crops of a scan find each other among all others (arXiv 2002.05709)",
    ),
    "simmim": MethodEntry(
        "headctssl.methods.simmim.simmim:Simmim", "reconstruction of masked tokens by a linear head (arXiv 2111.09886)"
    ),
    "spark": MethodEntry(
        "headctssl.methods.spark.spark:Spark", "reconstruction of masked blocks by a sparse CNN (arXiv 2301.03580)"
    ),
    "supervised": MethodEntry(
        "headctssl.methods.supervised.supervised:Supervised",
        "segmentation with labels that each dataset has a part of (SuPreM, arXiv 2501.11253)",
    ),
    "swin_ssl": MethodEntry(
        "headctssl.methods.swin_ssl.swin_ssl:SwinSsl",
        "turns, the other copy of a scan, and what was cut out of it (Swin UNETR, arXiv 2111.14791)",
    ),
    "volume_fusion": MethodEntry(
        "headctssl.methods.volume_fusion.volume_fusion:VolumeFusion",
        "two crops mixed in boxes, each voxel's share is told (arXiv 2306.16925)",
    ),
    "voco": MethodEntry(
        "headctssl.methods.voco.voco:Voco",
        "where a crop lies is told by its likeness to the crops of a jittered grid (arXiv 2410.09890)",
    ),
}
"""Every built-in method by name. Third parties add theirs through the entry-point group ``headctssl.methods``."""


@functools.cache
def _methods() -> dict[str, MethodEntry]:
    """The table and the entry points in one."""
    methods = dict(METHODS)
    for plugin in find_plugins(METHOD_GROUP).values():
        with left_out_when_broken(plugin):
            if plugin.name in METHODS:
                raise name_taken(plugin, "a method of headctssl")
            plugin.require_alone()
            methods[plugin.name] = MethodEntry(plugin.target, f"from the package {plugin.package}")
    return methods


def list_methods() -> list[tuple[str, str]]:
    """(name, description) of every method, without importing torch."""
    return [(name, entry.description) for name, entry in _methods().items()]


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: the name is unknown, two packages give one name, or a package's class is no method.
    """
    if name in METHODS:
        module, _, attribute = METHODS[name].target.partition(":")
        found: type[Method] = getattr(importlib.import_module(module), attribute)
        return found
    plugin = find_plugins(METHOD_GROUP).get(name)
    if plugin is None:
        raise unknown_name("method", name, _methods())
    added = plugin.load()
    from headctssl.methods.method import Method  # imports torch, which listing names must not

    if not issubclass(added, Method):
        raise plugin.fault(added, "a subclass of headctssl.methods.method.Method")
    return added
