"""Relative cost: what a training step of each method takes beside one of mae, from the budget's formulas."""

from __future__ import annotations

from headctssl.contract import InputSpec, Window
from headctssl.planning.budget import estimate
from headctssl.planning.decisions import Asked
from headctssl.planning.machine import Machine
from headctssl.planning.resolve_method import sizes
from headctssl.planning.run_settings import TrainingSettings, ViewSettings
from headctssl.presets import encoder_preset, method_facts, pair_refusal
from headctssl.settings import Settings

__all__ = ["BATCH", "REFERENCE", "YARDSTICKS", "relative_cost", "yardstick"]

REFERENCE = Machine(
    device="cuda",
    memory_gb=80,
    cores=16,
    bf16=True,
    matmul_gflops_float32=20_000,
    matmul_gflops_bf16=200_000,
    conv_gflops_float32=10_000,
    conv_gflops_bf16=50_000,
    elementwise_per_ns=400,
    bandwidth_gb_s=1_500,
    launch_us=5,
)
"""A data-centre GPU in round numbers, not a measured one: the work of two methods is compared, so that its speed
cancels and only the ratio of matrix products to the rest matters."""

BATCH = 32
"""Scans per step that are compared."""

YARDSTICKS = ("vit_b", "resenc_m")
"""Encoders that methods are compared on, the first that the method works with; both at 96 x 96 x 96 voxels."""


def yardstick(method_name: str) -> str:
    """The encoder on which a method is compared with mae: one of `YARDSTICKS`, else its published one."""
    published = method_facts(method_name).default_preset
    return next((name for name in YARDSTICKS if pair_refusal(method_name, name) is None), published)


def relative_cost(method_name: str, method: type[Settings], mae: type[Settings]) -> float:
    """Seconds of a step of a method over those of mae: same encoder, batch, input and machine, published settings.

    Args:
        method_name: the method.
        method: its settings class.
        mae: the settings class of mae.
    """
    preset = yardstick(method_name)
    return _seconds(method_name, method, preset) / _seconds("mae", mae, preset)


def _seconds(method_name: str, method: type[Settings], preset: str) -> float:
    encoder = encoder_preset(preset).settings
    facts = method_facts(method_name)
    z, y, x = encoder.input_shape
    spec = InputSpec(
        rule="fixed_spacing",
        shape=encoder.input_shape,
        spacing_mm=(2.0, 2.0, 2.0),
        windows=(Window(level=40, width=80),) * encoder.in_channels,
    )
    views = ViewSettings(
        global_count=facts.global_views,
        local_count=facts.local_views,
        local_shape=(z // 2, y // 2, x // 2),
        base_grid=facts.base_grid,
    )
    return estimate(
        encoder=encoder,
        input_spec=spec,
        views=views,
        training=TrainingSettings(num_steps=1, samples_per_epoch=BATCH, batch_size=BATCH, lr=1e-4, precision="bf16"),
        method_name=method_name,
        method=sizes(Asked({}), method, encoder, "real"),
        read_shape=(2 * z, 2 * y, 2 * x),
        machine=REFERENCE,
    ).step_seconds
