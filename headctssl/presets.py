"""Presets: dimensions of every encoder and cost facts of every method, as plain data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headctssl.errors import unknown_name
from headctssl.families import (
    FAMILIES,
    EncoderSettings,
    FamilySettings,
    Kind,
    PrimusSettings,
    ResEncSettings,
    SegResNetSettings,
    SwinUNETRSettings,
    UNet3DSettings,
    ViTSettings,
)
from headctssl.plugins import ENCODER_GROUP, METHOD_GROUP, Plugin, find_plugins, left_out_when_broken, name_taken

__all__ = [
    "ENCODER_PRESETS",
    "METHOD_FACTS",
    "EncoderPreset",
    "EncoderSettings",
    "FamilySettings",
    "MethodFacts",
    "OptimizerDefaults",
    "PrimusSettings",
    "ResEncSettings",
    "SegResNetSettings",
    "SwinUNETRSettings",
    "UNet3DSettings",
    "ViTSettings",
    "all_method_facts",
    "encoder_preset",
    "encoder_presets",
    "method_facts",
    "pair_refusal",
]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class EncoderPreset:
    """A named encoder: its dimensions and how its input is fitted to the data."""

    name: str
    settings: FamilySettings
    input_rule: Literal["fixed_spacing", "stretch_to_shape"]
    description: str

    @property
    def kind(self) -> Kind:
        """Which optimiser defaults apply."""
        return self.settings.kind

    @property
    def token_size(self) -> Shape:
        """Voxels (z, y, x) per token: the patch, or the total stride of a CNN."""
        return self.settings.token_size


def _vit(
    name: str, width: int, depth: int, heads: int, description: str, edge: int = 96, patch: int = 12
) -> EncoderPreset:
    settings = ViTSettings(
        width=width, depth=depth, heads=heads, input_shape=(edge, edge, edge), patch=(patch, patch, patch)
    )
    return EncoderPreset(name, settings, "fixed_spacing", description)


def _resenc(
    name: str, features: tuple[int, ...], blocks: tuple[int, ...], description: str, edge: int
) -> EncoderPreset:
    one, two = (1, 1, 1), (2, 2, 2)
    settings = ResEncSettings(
        features=features,
        blocks=blocks,
        strides=(one, *([two] * (len(features) - 1))),
        kernels=((3, 3, 3),) * len(features),
        input_shape=(edge, edge, edge),
    )
    return EncoderPreset(name, settings, "fixed_spacing", description)


def _primus(
    name: str, width: int, depth: int, heads: int, description: str, edge: int = 96, patch: int = 8
) -> EncoderPreset:
    settings = PrimusSettings(
        width=width, depth=depth, heads=heads, input_shape=(edge, edge, edge), patch=(patch, patch, patch)
    )
    return EncoderPreset(name, settings, "fixed_spacing", description)


def _preset(name: str, settings: FamilySettings, description: str) -> EncoderPreset:
    return EncoderPreset(name, settings, "fixed_spacing", description)


_HEADCT_FOUNDATION = EncoderPreset(
    "headct_foundation",
    ViTSettings(width=768, depth=12, heads=12, qkv_bias=False, registers=0, position="trainable"),
    "stretch_to_shape",
    "ViT-B/12 as published by HeadCT-Foundation (arXiv 2502.02779), 89,404,416 parameters",
)

ENCODER_PRESETS: dict[str, EncoderPreset] = {
    preset.name: preset
    for preset in (
        _vit("vit_tiny", 192, 12, 3, "ViT-Tiny/12: laptops and small datasets"),
        _vit("vit_s", 384, 12, 6, "ViT-S/12: thousands of scans on one GPU"),
        _vit("vit_b", 768, 12, 12, "ViT-B/12: tens of thousands of scans"),
        _vit("vit_l", 1024, 24, 16, "ViT-L/12: hundreds of thousands of scans"),
        _HEADCT_FOUNDATION,
        _resenc("resenc_s", (16, 32, 64, 128), (1, 2, 2, 2), "residual encoder, small", 96),
        _resenc("resenc_m", (32, 64, 128, 256, 256), (1, 3, 4, 6, 6), "residual encoder, medium", 96),
        _resenc(
            "resenc_l",
            (32, 64, 128, 256, 320, 320),
            (1, 3, 4, 6, 6, 6),
            "ResEnc-L as in OpenMind, 90.30 M",
            160,
        ),
        _primus("primus_s", 396, 12, 6, "Primus-S/8 (arXiv 2503.01835), 23.9 M with its decoder"),
        _primus("primus_b", 792, 12, 12, "Primus-B/8, 93.2 M with its decoder"),
        _primus("primus_m", 864, 16, 12, "Primus-M/8 as in OpenMind, 146.6 M with its decoder"),
        _primus("primus_l", 1056, 24, 16, "Primus-L/8, 325.6 M with its decoder"),
        _preset("unet3d", UNet3DSettings(), "U-Net of Models Genesis (arXiv 1908.06912), 19.08 M with its decoder"),
        _preset("swin_unetr", SwinUNETRSettings(), "SwinUNETR of MONAI, 62.19 M with its decoder; needs [monai]"),
        _preset("segresnet", SegResNetSettings(), "SegResNet of MONAI, 4.70 M with its decoder; needs [monai]"),
        _vit("vit_test", 48, 2, 3, "for tests only", edge=24, patch=6),
        _primus("primus_test", 48, 2, 4, "for tests only", edge=24, patch=6),
        _resenc("resenc_test", (8, 16, 24), (1, 1, 1), "for tests only", 24),
        _preset(
            "unet3d_test",
            UNet3DSettings(features=(8, 16, 24), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), input_shape=(24, 24, 24)),
            "for tests only",
        ),
        _preset(
            "swin_unetr_test",
            SwinUNETRSettings(
                feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), window=3, input_shape=(64, 64, 64)
            ),
            "for tests only; needs [monai]",
        ),
        _preset(
            "segresnet_test",
            SegResNetSettings(init_filters=8, blocks=(1, 1, 1), input_shape=(24, 24, 24)),
            "for tests only; needs [monai]",
        ),
    )
}
"""Every encoder by name. Code that builds them is in `headctssl.networks`."""


@dataclass(frozen=True)
class MethodFacts:
    """What a method costs and needs, for the planner and the estimate."""

    name: str
    default_preset: str  # when `-c` is not given and the data do not force a smaller one
    student_views: tuple[tuple[str, float], ...]  # (view group, share of its tokens the student encodes)
    teacher_views: tuple[str, ...]  # view groups whose used tokens are also all encoded without gradient
    reference: str  # sources of the numbers
    global_views: int = 2  # global views per scan
    local_views: int = 0  # local views per scan
    base_grid: int = 0  # rows and columns of a grid of views as large as local ones, the group "base"
    paper: str = ""  # authors, year and arXiv number of the objective
    smallest_batch: int = 2  # scans per step below which the objective says little
    families: tuple[str, ...] | None = None  # families of encoders it works with, None = all
    copies: int = 1  # how often the student encodes each view, changed anew every time
    predicts_voxels: bool = False  # a `voxel_decoder` stands on every global view, whatever the encoder
    overhead: float = 1.0  # work of encoder and decoder over what their layers take when nothing stands between them
    why_families: str = ""  # a sentence: why not with the others, and what to use there


@dataclass(frozen=True)
class OptimizerDefaults:
    """The optimiser a method was published with, for one kind of encoder. `resolve` scales it to the run."""

    optimizer: Literal["adamw", "sgd"]
    lr: float  # peak learning rate at `lr_reference_batch` scans per step
    lr_reference_batch: int  # scans per optimiser step that `lr` belongs to
    lr_rule: Literal["linear", "sqrt", "fixed"]  # how the rate follows the batch
    weight_decay: float  # at the first step
    weight_decay_end: float  # at the last step, reached by a cosine
    clip_norm: float | None  # largest gradient norm
    warmup_share: float  # share of all steps, linear from 0
    min_lr_share: float  # learning rate at the last step over the peak
    schedule: Literal["cosine", "poly"]
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW
    momentum: float = 0.99  # SGD, Nesterov
    source: str = ""  # where the numbers come from

    def peak_lr(self, batch_size: int) -> float:
        """The peak learning rate for a global batch of `batch_size` scans."""
        if self.lr_rule == "fixed":
            return self.lr
        ratio = batch_size / self.lr_reference_batch
        return self.lr * (ratio if self.lr_rule == "linear" else ratio**0.5)


METHOD_FACTS: dict[str, MethodFacts] = {
    facts.name: facts
    for facts in (
        MethodFacts(
            "dino",
            "vit_b",
            (("global", 1.0), ("local", 1.0)),
            ("global",),
            "arXiv 2104.14294; arXiv 2502.02779",
            local_views=2,
            paper="Caron et al. 2021, arXiv 2104.14294",
            smallest_batch=8,
        ),
        MethodFacts(
            "dinov2",
            "vit_b",
            (("global", 1.0), ("local", 1.0)),
            ("global",),
            "arXiv 2304.07193 and its public configuration",
            local_views=8,
            paper="Oquab et al. 2023, arXiv 2304.07193",
            smallest_batch=8,
            families=("vit", "primus"),
            why_families="it masks tokens for the student; use dino or lejepa there.",
        ),
        MethodFacts(
            "mae",
            "vit_b",
            (("global", 0.25),),
            (),
            "arXiv 2111.06377; arXiv 2502.02779; arXiv 2410.23132",
            global_views=1,
            paper="He et al. 2022, arXiv 2111.06377",
            smallest_batch=1,
        ),
        MethodFacts(
            "models_genesis",
            "unet3d",
            (("global", 1.0),),
            (),
            "arXiv 1908.06912 and its public code",
            global_views=1,
            paper="Zhou et al. 2019, arXiv 1908.06912",
            smallest_batch=1,
            predicts_voxels=True,
        ),
        MethodFacts(
            "simmim",
            "vit_b",
            (("global", 1.0),),
            (),
            "arXiv 2111.09886; its published ViT-B configuration",
            global_views=1,
            paper="Xie et al. 2022, arXiv 2111.09886",
            smallest_batch=1,
            families=("vit", "primus"),
            why_families="it replaces tokens by a mask token; choose spark or mae there.",
        ),
        MethodFacts(
            "spark",
            "resenc_l",
            (("global", 1.0),),
            (),
            "arXiv 2301.03580; arXiv 2410.23132",
            global_views=1,
            paper="Tian et al. 2023, arXiv 2301.03580; in 3D Wald et al. 2025, arXiv 2410.23132",
            smallest_batch=1,
            families=("resenc", "unet3d", "segresnet"),
            predicts_voxels=True,
            overhead=1.7,  # measured beside mae on resenc_s: norms in float32, re-masking, densifying convolutions
            why_families="only a CNN of convolutions and norms can be made sparse; choose mae or simmim there.",
        ),
        MethodFacts(
            "jepa",
            "vit_b",
            (("global", 0.2),),
            ("global",),
            "arXiv 2511.18640 and its public code; arXiv 2301.08243",
            global_views=1,
            paper="Kondepudi et al. 2025, arXiv 2511.18640",
            smallest_batch=1,
            families=("vit", "primus"),
            why_families="it leaves tokens out of what the student sees; choose lejepa or dino there.",
        ),
        MethodFacts(
            "lejepa",
            "vit_b",
            (("global", 1.0), ("local", 1.0)),
            (),
            "arXiv 2511.08544 and its public example",
            local_views=6,
            paper="Balestriero and LeCun 2025, arXiv 2511.08544",
            smallest_batch=4,
        ),
        MethodFacts(
            "simclr",
            "vit_b",
            (("global", 1.0),),
            (),
            "arXiv 2002.05709; arXiv 2412.17041",
            paper="Chen et al. 2020, arXiv 2002.05709; in 3D Wald et al. 2024, arXiv 2412.17041",
            smallest_batch=8,
        ),
        MethodFacts(
            "voco",
            "vit_b",
            (("base", 1.0), ("local", 1.0)),
            (),
            "arXiv 2410.09890 and its public code",
            global_views=0,
            local_views=2,
            base_grid=3,
            paper="Wu et al. 2024, arXiv 2410.09890",
            smallest_batch=2,
        ),
        MethodFacts(
            "supervised",
            "unet3d",
            (("global", 1.0),),
            (),
            "arXiv 2501.11253",
            global_views=1,
            paper="Li et al. 2024, arXiv 2501.11253",
            smallest_batch=1,
            predicts_voxels=True,
        ),
        MethodFacts(
            "swin_ssl",
            "swin_unetr",
            (("global", 1.0),),
            (),
            "arXiv 2111.14791 and its public code",
            global_views=1,
            paper="Tang et al. 2022, arXiv 2111.14791",
            smallest_batch=4,
            predicts_voxels=True,
            copies=2,
        ),
        MethodFacts(
            "volume_fusion",
            "unet3d",
            (("global", 1.0),),
            (),
            "arXiv 2306.16925 and its public code",
            paper="Wang et al. 2023, arXiv 2306.16925",
            smallest_batch=1,
            predicts_voxels=True,
        ),
    )
}
"""Cost facts of every method by name. Code is in `headctssl.methods`."""


@functools.cache
def encoder_presets() -> Mapping[str, EncoderPreset]:
    """Every preset by name: the table, then those of the encoders that other packages add.

    An encoder that cannot be used, or takes a name that exists, is left out with a warning.
    """
    presets = dict(ENCODER_PRESETS)
    for plugin in find_plugins(ENCODER_GROUP).values():
        with left_out_when_broken(plugin):
            presets.update(_added_presets(plugin, presets))
    return presets


def _added_presets(plugin: Plugin, known: Mapping[str, EncoderPreset]) -> dict[str, EncoderPreset]:
    if plugin.name in FAMILIES:
        raise name_taken(plugin, "a family of headctssl")
    given = getattr(plugin.load(), "presets", None)
    if not (isinstance(given, tuple) and given and all(isinstance(p, EncoderPreset) for p in given)):
        raise plugin.fault(f"presets = {given!r}", "a tuple of EncoderPreset, at least one")
    added: dict[str, EncoderPreset] = {}
    for preset in given:
        if preset.settings.family != plugin.name:
            raise plugin.fault(f"the family '{preset.settings.family}' in {preset.name}", f"'{plugin.name}'")
        if preset.name in known or preset.name in added:
            raise name_taken(plugin, "another preset", preset.name)
        added[preset.name] = preset
    return added


@functools.cache
def all_method_facts() -> Mapping[str, MethodFacts]:
    """The cost facts of every method by name: the table, then the methods that other packages add.

    A method that cannot be used, or takes a name that exists, is left out with a warning.
    """
    table = dict(METHOD_FACTS)
    for plugin in find_plugins(METHOD_GROUP).values():
        with left_out_when_broken(plugin):
            table[plugin.name] = _added_facts(plugin)
    return table


def _added_facts(plugin: Plugin) -> MethodFacts:
    if plugin.name in METHOD_FACTS:
        raise name_taken(plugin, "a method of headctssl")
    facts = getattr(plugin.load(), "facts", None)
    if not isinstance(facts, MethodFacts):
        raise plugin.fault(f"facts = {facts!r}", "a MethodFacts")
    if facts.name != plugin.name:
        raise plugin.fault(f"facts of '{facts.name}'", f"facts of '{plugin.name}'")
    return facts


def encoder_preset(name: str) -> EncoderPreset:
    """The preset of this name.

    Raises:
        UsageError: the name is unknown, and the known ones are listed; or it is that of a package's family that cannot
            be used.
    """
    if name in ENCODER_PRESETS:
        return ENCODER_PRESETS[name]
    if name not in encoder_presets():
        plugin = find_plugins(ENCODER_GROUP).get(name)
        if plugin is not None:
            _added_presets(plugin, ENCODER_PRESETS)  # says what is wrong with the package
        raise unknown_name("encoder", name, encoder_presets())
    return encoder_presets()[name]


def method_facts(name: str) -> MethodFacts:
    """The cost facts of this method.

    Raises:
        UsageError: the name is unknown, and the known ones are listed; or another package gives it and cannot be used.
    """
    if name in METHOD_FACTS:
        return METHOD_FACTS[name]
    plugin = find_plugins(METHOD_GROUP).get(name)
    if plugin is None:
        raise unknown_name("method", name, all_method_facts())
    return _added_facts(plugin)


def pair_refusal(method: str, preset: str) -> str | None:
    """Why a method cannot be trained with an encoder; None when it can.

    Args:
        method: a method by name.
        preset: an encoder preset by name.

    Raises:
        UsageError: a name is unknown.
    """
    facts, family = method_facts(method), encoder_preset(preset).settings.family
    if facts.families is None or family in facts.families:
        return None
    return f"{method} does not work with encoders of the family {family}: {facts.why_families}"
