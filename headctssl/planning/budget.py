"""Budget: how long a training step takes and how much memory it needs, before it is run.

The model counts, for one optimiser step, multiplications in matrix products, attention and
convolutions, elementwise work, and operations launched, and divides each by the throughput that
`planning.machine` measured. Every coefficient has a name and says where it comes from; "measured"
is one thread of an AVX512-BF16 CPU with torch 2.14, widths 48-768, 60-500 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod

from headctssl.contract import InputSpec
from headctssl.families import FamilySettings
from headctssl.planning.cost import CUT_TOGETHER, Cost, transformer_blocks
from headctssl.planning.encoder_cost import decoder_cost, encoder_cost
from headctssl.planning.machine import Machine
from headctssl.planning.run_settings import Estimate, TrainingSettings, ViewSettings
from headctssl.presets import MethodFacts, method_facts
from headctssl.settings import Settings

__all__ = ["StepParts", "estimate", "method_cost", "step_parts", "view_groups"]

Shape = tuple[int, int, int]

BACKWARD = {"transformer": 2.2, "cnn": 1.9}
"""Work of the backward pass over that of the forward pass: gradients of inputs and of weights; measured."""

MATMUL_EFFICIENCY = 0.83
"""Share of the measured matrix throughput that linear layers reach; measured."""

ATTENTION_EFFICIENCY = {True: 0.37, False: 1.0}
"""The same for fused attention, in 16 bits and in float32; measured."""

VIEW_ELEMENTS = 8.5
"""Elementwise work per voxel and channel of a view: windows, flips, intensity changes; measured 4 ns."""

CROP_ELEMENTS = 2.0
"""Elementwise work per voxel read and view: the separable products; measured 1 ns."""

VIEW_OPS = 50
"""Operations launched to make one view."""

OPS_FACTOR = 5.0
"""Time of an operation inside a model over that of a bare one: modules, autocast and autograd; measured."""

OPTIMIZER_BYTES = {"adamw": 44, "sgd": 28}
"""Bytes moved per trainable parameter: gradient norm, clipping and the update, float32."""

EMA_BYTES = 12
"""Bytes moved per teacher parameter: read student, read and write teacher, float32."""

STATE_BYTES = {"adamw": 16, "sgd": 12}
"""Bytes held per trainable parameter: weight, gradient and optimiser state, float32."""

BASE_GB = {"cpu": 0.87, "cuda": 1.2}
"""Memory of Python, torch and its libraries before any model is made; measured on CPU."""


@dataclass(frozen=True)
class StepParts:
    """Seconds of one optimiser step, by what they go to."""

    matmul: float
    attention: float
    conv: float
    elements: float
    ops: float
    views: float
    update: float

    @property
    def total(self) -> float:
        """All together."""
        return float(sum(getattr(self, f.name) for f in fields(StepParts)))


def _number(settings: Settings, name: str, default: float = 0.0) -> float:
    """A numeric field of a method's settings, or the default where the method has no such field."""
    value = getattr(settings, name, default)
    return float(value) if isinstance(value, int | float) else default


def _student_share(share: float, method: Settings, encoder: FamilySettings) -> float:
    """Share of a view's used tokens that the student encodes: what the method's facts say, or what it does not mask.

    A method that leaves tokens out (a share below 1) and has a setting ``mask_ratio`` leaves out so many as that says.
    """
    masked = getattr(method, "mask_ratio", None)
    return 1.0 - masked if share < 1.0 and encoder.drops_tokens and isinstance(masked, float) else share


def method_cost(
    facts: MethodFacts,
    method: Settings,
    encoder: FamilySettings,
    views: ViewSettings,
    shape: Shape,
    half: bool,
    classes: int = 0,
) -> tuple[Cost, Cost, float]:
    """What a method adds on top of the encoder, for one scan.

    Args:
        facts: of the method.
        method: its settings; read by the names of the fields that it has.
        encoder: the encoder.
        views: how many views there are.
        shape: voxels (z, y, x) of a global view.
        half: activations in 2 bytes where autocast allows.
        classes: that each voxel is told apart into; 0 where the method predicts the input's channels.

    Returns:
        The student's forward cost, the teacher's, and the student's parameters.
    """
    width = encoder.embed_dim
    student, teacher, params = Cost(), Cost(), 0.0
    prototypes = _number(method, "prototypes")
    if prototypes:
        hidden, bottleneck = _number(method, "head_hidden", 2048), _number(method, "head_bottleneck", 256)
        params = width * hidden + hidden * hidden + hidden * bottleneck + bottleneck * prototypes
        rows = views.global_count + views.local_count
        # Every student view is compared with every teacher view over all prototypes, in float32.
        work = Cost(
            2 * params, 0, 0, prototypes * 4 * views.global_count + hidden * 8, 40, hidden * 12 + prototypes * 12
        )
        student, teacher = work.times(rows), work.times(views.global_count)
    decoder, predictor = _number(method, "decoder_width"), _number(method, "predictor_width")
    if (decoder or predictor) and encoder.drops_tokens:
        part = "decoder" if decoder else "predictor"
        tokens = prod(shape) / prod(encoder.token_size) * _number(method, "token_share", 1.0)
        # A decoder gives the voxels of a patch, a predictor a token of the teacher.
        outputs = prod(encoder.token_size) * encoder.in_channels if decoder else width
        blocks, params = transformer_blocks(
            tokens + 1,
            decoder or predictor,
            _number(method, f"{part}_depth", 8),
            _number(method, f"{part}_mlp_ratio", 4.0),
            half,
            heads=_number(method, f"{part}_heads"),
        )
        ends = (decoder or predictor) * (outputs + width)
        student = blocks + Cost(2 * tokens * ends, 0, 0, tokens * outputs * 8, 40, tokens * outputs * 16)
        student, params = student.times(views.global_count), params + ends
    elif decoder or facts.predicts_voxels:
        one, params = decoder_cost(encoder, shape, classes or encoder.in_channels, half)
        student = one.times(views.global_count * facts.copies)
    return student, teacher, params


def view_groups(views: ViewSettings, shape: Shape) -> dict[str, tuple[int, Shape]]:
    """Name of a group of views -> how many views it has per scan, and of how many voxels (z, y, x).

    Args:
        views: the settings of the run.
        shape: voxels (z, y, x) of a global view.
    """
    return {
        "global": (views.global_count, shape),
        "local": (views.local_count, views.local_shape),
        "base": (views.base_grid**2, views.local_shape),
    }


def step_parts(
    *,
    encoder: FamilySettings,
    input_spec: InputSpec,
    views: ViewSettings,
    training: TrainingSettings,
    method_name: str,
    method: Settings,
    read_shape: Shape,
    machine: Machine,
    world_size: int = 1,
    classes: int = 0,
) -> tuple[StepParts, float]:
    """Seconds of a step by part, and bytes held; arguments as in `estimate`."""
    facts = method_facts(method_name)
    half = training.precision != "float32"
    scans = training.batch_size / world_size  # per step and process
    passes = training.accumulation
    student, teacher, encoder_params = Cost(), Cost(), 0.0
    groups = view_groups(views, input_spec.shape)
    for group, share in facts.student_views:
        count, shape = groups[group]
        if count:
            used = _number(method, "token_share", 1.0)  # of a view's tokens, where a method leaves some out
            one, encoder_params = encoder_cost(encoder, shape, _student_share(share, method, encoder) * used, half)
            student += one.times(count * facts.copies)
            if group in facts.teacher_views:
                teacher += encoder_cost(encoder, shape, used, half)[0].times(count)
    extra, extra_teacher, extra_params = method_cost(facts, method, encoder, views, input_spec.shape, half, classes)
    student = (student + extra).times(facts.overhead, ops=facts.overhead)
    teacher, params = teacher + extra_teacher, encoder_params + extra_params
    trained = 1 + BACKWARD[encoder.kind] + (1 if training.recompute else 0)
    work = student.times(trained, ops=trained) + teacher
    view_voxels = sum(count * prod(shape) for count, shape in groups.values())
    view_values = view_voxels * len(input_spec.windows)
    view_count = sum(count for count, _ in groups.values())
    view_elements = VIEW_ELEMENTS * view_values + CROP_ELEMENTS * prod(read_shape) * view_count
    teacher_params = params if facts.teacher_views else 0.0
    update = params * OPTIMIZER_BYTES[training.optimizer] + teacher_params * EMA_BYTES
    matmul = (machine.matmul_gflops_bf16 if half else machine.matmul_gflops_float32) * 1e9
    conv = (machine.conv_gflops_bf16 if half else machine.conv_gflops_float32) * 1e9
    elementwise, launch = machine.elementwise_per_ns * 1e9, machine.launch_us * 1e-6 * OPS_FACTOR
    parts = StepParts(
        matmul=scans * work.matmul / (matmul * MATMUL_EFFICIENCY),
        attention=scans * work.attention / (matmul * ATTENTION_EFFICIENCY[half]),
        conv=scans * work.conv / conv,
        elements=scans * work.elements / elementwise,
        ops=passes * work.ops * launch,
        views=scans * (view_elements / elementwise + view_count * VIEW_OPS * launch),
        update=update / (machine.bandwidth_gb_s * 1e9),
    )
    copies = params * STATE_BYTES[training.optimizer] + teacher_params * 4
    at_once = max(1.0, scans / passes)
    memory = _memory_on_cpu if machine.is_cpu else _memory_on_gpu
    return parts, memory(student, training, copies, params, at_once, prod(read_shape), view_values)


def _memory_on_cpu(
    student: Cost, training: TrainingSettings, state: float, params: float, scans: float, read: float, values: float
) -> float:
    """Bytes of weights, optimiser, batch and activations; measured within 10 % on transformers.

    Args:
        student: its forward pass on one scan.
        training: whether blocks are computed again.
        state: bytes held per run: weights, gradients, optimiser, teacher.
        params: trained.
        scans: per pass.
        read: voxels per scan.
        values: of its views.
    """
    # A scan is held as int16 and a boolean, twice because the next batch is read meanwhile, and once as float32.
    held = read * (2 * 3.0 + 4.0) + values * 4.0 * 2
    return state + scans * (held + student.stored + _within(student, training, student.on_cpu))


def _memory_on_gpu(
    student: Cost, training: TrainingSettings, state: float, params: float, scans: float, read: float, values: float
) -> float:
    """Bytes that torch allocates on a GPU at the highest of three moments; arguments as `_memory_on_cpu`.

    Unlike a CPU it holds a scan as int16 alone, since the next batch waits in the host's memory, and each view once;
    attention is fused. Gradients are not there yet when the forward pass ends, where activations are most; autocast
    holds a copy of the weights in 16 bits there. Counted by analysis, and compared with two measurements of ViT-B/12
    in bfloat16 at 32 scans (an H100): mae 6.2 GB for 5.8 allocated, dino 15.9 for 14.7. CNNs were not measured.
    """
    gradients = params * 4.0
    weights = 0.0 if training.precision == "float32" else params * 2.0
    views = scans * values * 4.0
    passed = weights + views + scans * (student.stored + _within(student, training, 0.0))
    cutting = views + min(scans, CUT_TOGETHER) * read * 8.0  # float32 before and after `fill` is taken off
    return state - gradients + scans * read * 2.0 + max(passed, cutting, gradients)


def _within(student: Cost, training: TrainingSettings, more: float) -> float:
    """Bytes that blocks keep for the backward pass of one scan."""
    return student.once if training.recompute else student.within + more


def estimate(
    *,
    encoder: FamilySettings,
    input_spec: InputSpec,
    views: ViewSettings,
    training: TrainingSettings,
    method_name: str,
    method: Settings,
    read_shape: Shape,
    machine: Machine,
    world_size: int = 1,
    classes: int = 0,
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
        classes: that the method learns to segment; 0 for a method without.
    """
    parts, memory = step_parts(
        encoder=encoder,
        input_spec=input_spec,
        views=views,
        training=training,
        method_name=method_name,
        method=method,
        read_shape=read_shape,
        machine=machine,
        world_size=world_size,
        classes=classes,
    )
    seconds = parts.total
    base = BASE_GB["cpu" if machine.is_cpu else "cuda"]
    return Estimate(
        step_seconds=seconds,
        scans_per_second=training.batch_size / seconds,
        memory_gb=round(base + memory / 1e9, 2),
        hours=seconds * training.num_steps / 3600,
    )
