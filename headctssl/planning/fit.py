"""Fit: the input of every encoder preset, chosen so that the heads of the dataset fit into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, log2, prod

from headctssl.contract import InputSpec, StorageRule, Window
from headctssl.planning.budget import estimate
from headctssl.planning.machine import Machine
from headctssl.planning.plans import ConfigurationPlan, fitted_encoder
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.presets import EncoderPreset
from headctssl.settings import Settings
from headctssl.types import Triple

__all__ = ["Fitted", "fit_preset"]

Shape = tuple[int, int, int]

PHANTOM_VOXELS = 48**3
"""Voxel budget of phantoms and templates: an eighth of the reference, so that runs take minutes on a laptop."""

PHANTOM_TOKENS = 6**3
"""Token budget of transformers for phantoms and templates."""

_STEP_MM = 0.05
_THICK_RATIO = 2.0  # z spacing over in-plane spacing from which tokens are made thinner along z


@dataclass(frozen=True)
class Fitted:
    """A configuration and what the search for it found."""

    plan: ConfigurationPlan
    because: str


@dataclass(frozen=True)
class _Budget:
    voxels: int
    tokens: int | None  # transformers only
    token: int  # side of an isotropic token in voxels


def fit_preset(
    preset: EncoderPreset,
    *,
    extent_mm: Triple,
    storage: StorageRule,
    windows: tuple[Window, ...],
    small: bool,
    gpu_memory_gb: float | None,
) -> Fitted:
    """Fit one preset to the data.

    Rule: the finest in-plane spacing, in steps of 0.05 mm and not finer than storage, at which the
    head of the 95th percentile fits into no more voxels (transformers: and tokens) than the preset
    was published with; sides are whole tokens. z has the same spacing, or that of storage where it
    is coarser; from twice the in-plane spacing on, tokens are thinner along z, so that they stay
    about cubic in mm, where the family can have such tokens. Source: the fixed-patch-budget idea of
    nnU-Net (arXiv 1904.08128).
    Assumption: compute follows voxels and tokens, so a budget in both keeps the preset's cost.

    Args:
        preset: the preset.
        extent_mm: 95th percentile of the head (z, y, x) in mm.
        storage: the storage rule; its spacing bounds the input's.
        windows: one per input channel.
        small: use the budget of phantoms and templates.
        gpu_memory_gb: memory that a step of two scans must fit, or None for no limit.
    """
    if preset.input_rule == "stretch_to_shape":
        shape = preset.settings.input_shape
        nominal = tuple(round(e / n, 2) for e, n in zip(extent_mm, shape, strict=True))
        spec = InputSpec(
            rule="stretch_to_shape", shape=shape, spacing_mm=(nominal[0], nominal[1], nominal[2]), windows=windows
        )
        plan = ConfigurationPlan(preset=preset.name, input=spec, token_size=preset.token_size)
        return Fitted(plan, "the head box is stretched to the published shape; the spacing is only nominal")
    budget = _budget(preset, small)
    fitted = _search(preset, budget, extent_mm, storage, windows)
    limit = ""
    if gpu_memory_gb is not None:
        while _memory_gb(fitted) > gpu_memory_gb and budget.voxels > 2 * _least_voxels(preset, budget):
            tokens = None if budget.tokens is None else floor(budget.tokens * 0.8)
            budget = _Budget(floor(budget.voxels * 0.8), tokens, budget.token)
            fitted = _search(preset, budget, extent_mm, storage, windows)
            limit = f", reduced for {gpu_memory_gb:g} GB"
    voxels = prod(fitted.input.shape)
    grid = [n // t for n, t in zip(fitted.input.shape, fitted.token_size, strict=True)]
    because = (
        f"head {_text(tuple(round(e) for e in extent_mm))} mm; {voxels:,} of {budget.voxels:,} voxels{limit}, "
        f"{_text(tuple(grid))} tokens of {_text(fitted.token_size)} voxels"
    )
    return Fitted(fitted, because)


def _budget(preset: EncoderPreset, small: bool) -> _Budget:
    shape, token = preset.settings.input_shape, preset.token_size[2]
    plain = preset.settings.drops_tokens
    tokens = prod(shape) // prod(preset.token_size) if plain else None
    # Encoders with stages need two places per axis in the last one: its norm has no spread over a single one.
    least = 0 if plain else (2 * token) ** 3
    voxels = max(least, prod(shape))
    if not small or voxels <= PHANTOM_VOXELS:
        return _Budget(voxels, tokens, token)
    if tokens is not None:
        token = min(token, round((PHANTOM_VOXELS / PHANTOM_TOKENS) ** (1 / 3)))
        return _Budget(PHANTOM_VOXELS, min(tokens, PHANTOM_TOKENS), token)
    return _Budget(min(voxels, max(PHANTOM_VOXELS, least)), None, token)


def _least_voxels(preset: EncoderPreset, budget: _Budget) -> int:
    return int((2 * budget.token) ** 3)


def _search(
    preset: EncoderPreset, budget: _Budget, extent_mm: Triple, storage: StorageRule, windows: tuple[Window, ...]
) -> ConfigurationPlan:
    thin = _thin_token(preset)
    count = 0
    while True:
        in_plane = max(storage.spacing_mm[1], storage.spacing_mm[2]) + count * _STEP_MM
        spacing = (round(max(storage.spacing_mm[0], in_plane), 2), round(in_plane, 2), round(in_plane, 2))
        token = (thin(budget.token, spacing[0] / spacing[1]), budget.token, budget.token)
        sides = [
            max(1 if preset.settings.drops_tokens else 2, ceil(e / s / t - 1e-9)) * t
            for e, s, t in zip(extent_mm, spacing, token, strict=True)
        ]
        shape = (sides[0], sides[1], sides[2])
        tokens = prod(shape) // prod(token)
        if prod(shape) <= budget.voxels and (budget.tokens is None or tokens <= budget.tokens):
            spec = InputSpec(rule="fixed_spacing", shape=shape, spacing_mm=spacing, windows=windows)
            return ConfigurationPlan(preset=preset.name, input=spec, token_size=token)
        count += 1


def _thin_token(preset: EncoderPreset) -> Callable[[int, float], int]:
    """Side of a token along z for a token side in plane and the ratio of z to in-plane spacing."""
    if not preset.settings.thin_tokens:
        return lambda side, _: side
    if preset.settings.drops_tokens:
        return lambda side, ratio: side if ratio < _THICK_RATIO else max(2, round(side / ratio))
    # Every stage of a CNN that does not halve z halves the ratio of the spacings.
    return lambda side, ratio: side if ratio < _THICK_RATIO else max(1, side // 2 ** floor(log2(ratio) + 1e-9))


class _NoMethod(Settings):
    """A stand-in for the settings of a method: two global views, a teacher, no head."""


def _memory_gb(plan: ConfigurationPlan) -> float:
    """Memory of a step of two scans with two global views and a teacher, in bfloat16."""
    training = TrainingSettings(num_steps=1, samples_per_epoch=2, batch_size=2, lr=1e-4, precision="bf16")
    machine = Machine(
        device="cuda",
        memory_gb=1.0,
        cores=1,
        bf16=True,
        matmul_gflops_float32=1.0,
        matmul_gflops_bf16=1.0,
        conv_gflops_float32=1.0,
        conv_gflops_bf16=1.0,
        elementwise_per_ns=1.0,
        bandwidth_gb_s=1.0,
        launch_us=1.0,
    )
    return estimate(
        encoder=fitted_encoder(plan),
        input_spec=plan.input,
        views=ViewSettings(),
        training=training,
        method_name="dino",
        method=_NoMethod(),
        read_shape=plan.input.shape,
        machine=machine,
    ).memory_gb


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in values)
