"""Budget: how long a training step takes and how much memory it needs, before it is run.

The model counts, for one optimiser step, multiplications in matrix products and in convolutions,
bytes moved by elementwise operations, and small operations, and divides each by the throughput
that `planning.machine` measured. Every coefficient below is named and says where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from headctssl.contract import InputSpec
from headctssl.planning.machine import Machine
from headctssl.planning.run_settings import Estimate, TrainingSettings, ViewSettings
from headctssl.presets import METHOD_FACTS, ResEncSettings, ViTSettings
from headctssl.settings import Settings

__all__ = ["Cost", "encoder_cost", "estimate", "method_cost", "number"]

BACKWARD = 2.0
"""Work of the backward pass over that of the forward pass: gradients of inputs and of weights."""

MATMUL_EFFICIENCY = 0.75
"""Share of the measured matrix throughput that a whole transformer reaches; measured on CPU."""

CONV_EFFICIENCY = 0.7
"""Share of the measured convolution throughput that a whole CNN reaches; measured on CPU."""

TRAFFIC = 2.0
"""Bytes moved per byte of stored activation in a forward pass: each is written once and read once."""

VIEW_PASSES = 14
"""Elementwise passes over a view while it is made: three products, three windows, flips, intensity changes."""

OPTIMIZER_BYTES = {"adamw": 44, "sgd": 28}
"""Bytes moved per trainable parameter: gradient norm, clipping and the update, float32."""

EMA_BYTES = 12
"""Bytes moved per teacher parameter: read student, read and write teacher, float32."""

STATE_BYTES = {"adamw": 16, "sgd": 12}
"""Bytes held per trainable parameter: weight, gradient and optimiser state, float32."""

BASE_GB = {"cpu": 0.8, "cuda": 1.2}
"""Memory of Python, torch and its libraries before any model is made; measured."""


@dataclass(frozen=True)
class Cost:
    """What a forward pass takes."""

    matmul: float = 0.0  # operations (2 per multiply-add) in matrix products
    conv: float = 0.0  # operations in convolutions
    stored: float = 0.0  # bytes of activations kept for the backward pass
    ops: float = 0.0  # operations launched
    params: float = 0.0  # parameters involved

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.matmul + other.matmul,
            self.conv + other.conv,
            self.stored + other.stored,
            self.ops + other.ops,
            self.params + other.params,
        )

    def times(self, count: float) -> Cost:
        """The cost of `count` such passes; parameters are shared, operations batched."""
        return Cost(self.matmul * count, self.conv * count, self.stored * count, self.ops, self.params)


def number(settings: Settings, name: str, default: float = 0.0) -> float:
    """A numeric field of a method's settings, or the default where the method has no such field."""
    value = getattr(settings, name, default)
    return float(value) if isinstance(value, int | float) else default


def encoder_cost(settings: ViTSettings | ResEncSettings, shape: tuple[int, int, int], share: float, half: bool) -> Cost:
    """The forward pass of one view.

    Args:
        settings: the encoder.
        shape: voxels (z, y, x) of the view.
        share: share of its tokens that are encoded; a CNN always encodes all.
        half: activations in 2 bytes where autocast allows.
    """
    if isinstance(settings, ViTSettings):
        tokens = prod(s / p for s, p in zip(shape, settings.patch, strict=True)) * share + 1 + settings.registers
        patch = prod(settings.patch) * settings.in_channels
        embed = Cost(
            matmul=2.0 * tokens * patch * settings.width,
            stored=tokens * (patch * (2 if half else 4) + settings.width * 4),
            ops=12,
            params=patch * settings.width,
        )
        return embed + _blocks(tokens, settings.width, settings.depth, settings.mlp_ratio, half)
    return _resenc(settings, shape, half)


def _blocks(tokens: float, width: float, depth: float, mlp_ratio: float, half: bool) -> Cost:
    """Pre-norm transformer blocks: q, k, v, attention, projection, two-layer MLP."""
    size = 2 if half else 4
    linear = width * width * (4 + 2 * mlp_ratio)
    # Kept for backward: two norms (input float32, output), q k v, attention output, two MLP activations.
    kept = width * (2 * (4 + size) + 5 * size + 2 * mlp_ratio * size + 8)
    return Cost(
        matmul=depth * (2 * tokens * linear + 4 * tokens * tokens * width),
        stored=depth * tokens * kept,
        ops=depth * 24,
        params=depth * linear,
    )


def _resenc(settings: ResEncSettings, shape: tuple[int, int, int], half: bool) -> Cost:
    """Residual stages: two convolutions per block, norms and activations between them."""
    size = 2 if half else 4
    voxels = float(prod(shape))
    conv = params = stored = ops = 0.0
    kernel = prod(settings.kernels[0])
    channels = settings.features[0]
    conv += 2 * kernel * settings.in_channels * channels * voxels
    params += kernel * settings.in_channels * channels
    stored += voxels * channels * 3 * size
    stages = zip(settings.features, settings.blocks, settings.strides, settings.kernels, strict=True)
    for features, blocks, stride, kernel_shape in stages:
        voxels /= prod(stride)
        kernel = prod(kernel_shape)
        for _ in range(blocks):
            weights = kernel * (channels * features + features * features)
            weights += channels * features if channels != features else 0
            conv += 2 * weights * voxels
            params += weights
            # Per convolution: its output and the norm's; per block: the sum and the activation.
            stored += voxels * features * 6 * size
            ops += 12
            channels = features
    return Cost(conv=conv, stored=stored, ops=ops, params=params)


def method_cost(
    name: str, method: Settings, encoder: ViTSettings | ResEncSettings, views: ViewSettings, shape: tuple[int, int, int]
) -> tuple[Cost, float]:
    """What the method adds on top of the encoder, for one scan.

    Args:
        name: the method.
        method: its settings; read by field name where a method has the field.
        encoder: the encoder.
        views: how many views there are.
        shape: voxels (z, y, x) of a global view.

    Returns:
        The student's forward cost and the teacher's forward operations.
    """
    facts = METHOD_FACTS[name]
    width = encoder.width if isinstance(encoder, ViTSettings) else encoder.features[-1]
    student, teacher = Cost(), 0.0
    prototypes = number(method, "prototypes")
    if prototypes:
        hidden, bottleneck = number(method, "head_hidden", 2048), number(method, "head_bottleneck", 256)
        weights = width * hidden + hidden * hidden + hidden * bottleneck + bottleneck * prototypes
        rows = views.global_count + views.local_count
        # The loss compares every student view with every teacher view over all prototypes, in float32.
        student = Cost(2 * weights * rows, 0, rows * (hidden * 12 + prototypes * 12), 40, weights)
        teacher = 2 * weights * views.global_count if facts.teacher_views else 0.0
    decoder = number(method, "decoder_width")
    if decoder and isinstance(encoder, ViTSettings):
        tokens = prod(s / p for s, p in zip(shape, encoder.patch, strict=True))
        patch = prod(encoder.patch) * encoder.in_channels
        ratio = number(method, "decoder_mlp_ratio", 4.0)
        student += _blocks(tokens, decoder, number(method, "decoder_depth", 8), ratio, True)
        student += Cost(2 * tokens * decoder * (patch + width), 0, tokens * patch * 16, 20, decoder * (patch + width))
    elif decoder:
        # A CNN decodes with a mirror of its own stages, one convolution per stage.
        mirror = encoder_cost(encoder, shape, 1.0, True)
        student += Cost(0, mirror.conv * 0.5, mirror.stored * 0.5, mirror.ops * 0.5, mirror.params * 0.2)
    return student, teacher


def estimate(
    *,
    encoder: ViTSettings | ResEncSettings,
    input_spec: InputSpec,
    views: ViewSettings,
    training: TrainingSettings,
    method_name: str,
    method: Settings,
    read_shape: tuple[int, int, int],
    machine: Machine,
    world_size: int = 1,
) -> Estimate:
    """Seconds and memory of a run.

    Args:
        encoder: dimensions of the encoder.
        input_spec: shape and windows of a global view.
        views: numbers and shapes of views.
        training: batch, accumulation, steps, precision, optimiser.
        method_name: the method, for its cost facts.
        method: the method's settings.
        read_shape: voxels (z, y, x) read per scan.
        machine: measured throughput.
        world_size: processes that share the batch.
    """
    facts = METHOD_FACTS[method_name]
    half = training.precision != "float32"
    scans = training.batch_size / world_size  # per step and process
    at_once = max(1.0, scans / training.accumulation)
    student, teacher_ops, state = Cost(), Cost(), 0.0
    for group, share in facts.student_views:
        count, shape = _group(group, views, input_spec)
        if count:
            one = encoder_cost(encoder, shape, share, half)
            student = student + Cost(one.matmul * count, one.conv * count, one.stored * count, one.ops * count)
            state = max(state, one.params)
            if group in facts.teacher_views:
                teacher_ops = teacher_ops + Cost(one.matmul * count, one.conv * count, one.stored * count, one.ops)
    extra, teacher_head = method_cost(method_name, method, encoder, views, input_spec.shape)
    student = student + Cost(extra.matmul, extra.conv, extra.stored, extra.ops)
    params = state + extra.params
    teacher_params = params if facts.teacher_views else 0.0
    matmul = student.matmul * (1 + BACKWARD) + teacher_ops.matmul + teacher_head
    conv = student.conv * (1 + BACKWARD) + teacher_ops.conv
    view_bytes = _view_bytes(views, input_spec, read_shape)
    moved = TRAFFIC * (student.stored * (1 + BACKWARD) + teacher_ops.stored) + view_bytes
    ops = (student.ops * (1 + BACKWARD) + teacher_ops.ops) * training.accumulation
    update = params * OPTIMIZER_BYTES[training.optimizer] + teacher_params * EMA_BYTES
    fast_matmul = machine.matmul_gflops_bf16 if half else machine.matmul_gflops_float32
    fast_conv = machine.conv_gflops_bf16 if half else machine.conv_gflops_float32
    seconds = scans * (
        matmul / (fast_matmul * 1e9 * MATMUL_EFFICIENCY)
        + conv / (fast_conv * 1e9 * CONV_EFFICIENCY)
        + moved / (machine.bandwidth_gb_s * 1e9)
    )
    seconds += update / (machine.bandwidth_gb_s * 1e9) + ops * machine.launch_us * 1e-6
    memory = params * STATE_BYTES[training.optimizer] + teacher_params * 4
    memory += at_once * (student.stored + _held_bytes(views, input_spec, read_shape))
    base = BASE_GB["cpu" if machine.is_cpu else "cuda"]
    return Estimate(
        step_seconds=seconds,
        scans_per_second=training.batch_size / seconds,
        memory_gb=round(base + memory / 1e9, 2),
        hours=seconds * training.num_steps / 3600,
    )


def _group(name: str, views: ViewSettings, input_spec: InputSpec) -> tuple[int, tuple[int, int, int]]:
    if name == "local":
        return views.local_count, views.local_shape
    return views.global_count, input_spec.shape


def _view_voxels(views: ViewSettings, input_spec: InputSpec) -> float:
    return views.global_count * prod(input_spec.shape) + views.local_count * prod(views.local_shape)


def _view_bytes(views: ViewSettings, input_spec: InputSpec, read_shape: tuple[int, int, int]) -> float:
    """Bytes moved to make the views of one scan: the crop once per view, then passes over each view."""
    channels = len(input_spec.windows)
    crop = prod(read_shape) * (2.0 + 4.0) * (views.global_count + views.local_count)
    return crop + _view_voxels(views, input_spec) * channels * 4.0 * VIEW_PASSES


def _held_bytes(views: ViewSettings, input_spec: InputSpec, read_shape: tuple[int, int, int]) -> float:
    """Bytes of one scan and its views held while it is trained on: int16 and bool twice (one batch ahead)."""
    return prod(read_shape) * (2 * 3.0 + 4.0) + _view_voxels(views, input_spec) * len(input_spec.windows) * 4.0 * 2
