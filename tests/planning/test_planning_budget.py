"""Tests of the budget: parameters, orders of magnitude, and the estimate against measured steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from planning_examples import GPU, LAPTOP, fingerprint

from headctssl.loading.views import make_views
from headctssl.methods import method_class
from headctssl.networks import build_encoder, build_from_settings
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.transformer import Block
from headctssl.planning import machine as machine_module
from headctssl.planning.budget import _student_share, method_cost, step_parts
from headctssl.planning.cost import transformer_blocks
from headctssl.planning.encoder_cost import decoder_cost, encoder_cost
from headctssl.planning.machine import Machine, detect_machine
from headctssl.planning.planner import make_plans
from headctssl.planning.resolve import resolve
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import ENCODER_PRESETS, METHOD_FACTS
from headctssl.settings import JsonValue
from headctssl.training.optimizer import build_optimizer, set_rates
from headctssl.types import Clock, PretrainBatch


@pytest.mark.parametrize("name", [name for name in ENCODER_PRESETS if not name.endswith(("_l", "_m"))])
def test_parameters_are_those_of_the_encoder_and_its_decoder(name: str) -> None:
    settings = ENCODER_PRESETS[name].settings
    with torch.device("meta"):
        encoder = build_encoder(name)
        decoder = voxel_decoder(encoder, 3)
    for module, cost in ((encoder, encoder_cost), (decoder, decoder_cost)):
        _, counted = cost(settings, settings.input_shape, 3 if module is decoder else 1.0, True)
        real = sum(p.numel() for p in module.parameters())
        assert counted == pytest.approx(real, rel=0.05)


def settle(
    machine: Machine,
    method: str,
    config: str,
    batch: int,
    overrides: Mapping[str, JsonValue] | None = None,
    classes: int = 0,
) -> RunSettings:
    kind = method_class(method)
    plans = make_plans(fingerprint(profile="laptop", slices=(3.0,), pixels=(3.0,)))
    return resolve(
        (plans,),
        method_name=method,
        method_settings=kind.Settings,
        optimizer=kind.optimizer_defaults,
        config=config,
        overrides={"training.batch_size": batch, "training.num_steps": 100, **(overrides or {})},
        machine=machine,
        num_train_cases=60,
        segmentation_classes=tuple(f"class {number}" for number in range(classes)),
    )


def test_masking_more_costs_less_where_masked_tokens_are_left_out() -> None:
    """A quarter of the tokens is what mae's facts say, and its published setting; 90 % masked takes less."""

    def seconds(method: str, config: str, ratio: float | None) -> float:
        changed: dict[str, JsonValue] = {} if ratio is None else {"method.mask_ratio": ratio}
        return settle(LAPTOP, method, config, 4, changed).estimate.step_seconds

    published, more, less = (seconds("mae", "vit_b", ratio) for ratio in (None, 0.9, 0.5))
    assert seconds("mae", "vit_b", 0.75) == published
    assert more < 0.75 * published
    assert less > 1.3 * published
    # A CNN encodes what is masked, and SimMIM's student sees a mask token in its place.
    assert seconds("mae", "resenc_s", 0.9) == seconds("mae", "resenc_s", None)
    assert seconds("simmim", "vit_b", 0.9) == seconds("simmim", "vit_b", None)


def test_the_share_of_tokens_a_student_encodes_is_the_methods_own() -> None:
    encoder = ENCODER_PRESETS["vit_b"].settings
    for name, share in (("mae", 0.4), ("simmim", 1.0), ("jepa", 0.2), ("dinov2", 1.0)):
        (_, stated), *_ = METHOD_FACTS[name].student_views
        settings = method_class(name).Settings
        method = settings(mask_ratio=0.6) if name in ("mae", "simmim") else settings()
        assert _student_share(stated, method, encoder) == share


def test_more_classes_to_segment_take_longer_and_more_memory() -> None:
    windows, few, many = (settle(LAPTOP, "supervised", "unet3d", 2, classes=count) for count in (0, 3, 60))
    assert few.estimate == windows.estimate  # as many as there are windows, which is what was counted
    assert many.estimate.step_seconds > few.estimate.step_seconds
    assert many.segmentation_classes[-1] == "class 59"
    with torch.device("meta"):
        encoder = build_from_settings(many.encoder)
        real = sum(p.numel() for p in voxel_decoder(encoder, 60).parameters())
    shape = many.input.shape
    facts = METHOD_FACTS["supervised"]
    _, _, counted = method_cost(facts, many.method, many.encoder, many.views, shape, half=True, classes=60)
    assert counted == pytest.approx(real, rel=0.05)


def test_more_work_takes_longer_and_more_memory() -> None:
    small, large = settle(LAPTOP, "dino", "vit_tiny", 4).estimate, settle(LAPTOP, "dino", "vit_b", 4).estimate
    double = settle(LAPTOP, "dino", "vit_tiny", 8).estimate
    assert large.step_seconds > 5 * small.step_seconds
    assert large.memory_gb > small.memory_gb
    assert 1.8 < double.step_seconds / small.step_seconds < 2.05
    assert settle(GPU, "dino", "vit_tiny", 8).estimate.step_seconds < double.step_seconds / 10


def test_detect_machine_measures_this_one() -> None:
    found = detect_machine("cpu")
    assert found.is_cpu
    assert found.cores >= 1
    assert 0.5 < found.matmul_gflops_float32 < 1e5
    assert detect_machine("cpu") is found


def measure(run: RunSettings, method: str, steps: int = 4) -> float:
    """Processor seconds of one optimiser step, the least of several; the first is thrown away."""
    kind = method_class(method)
    torch.manual_seed(0)
    learner = kind(run.method)
    learner.build(build_from_settings(run.encoder), run)
    learner.train()
    optimizer = build_optimizer(learner.param_groups(), run.training)
    batch, shape = run.training.batch_size, run.read_shape
    scans = PretrainBatch(
        volume=torch.randint(-1000, 1000, (batch, 1, *shape), dtype=torch.int16),
        inside_box=torch.tensor([[(0, n) for n in shape]] * batch),
        head_box=torch.tensor([[[0, n] for n in shape]] * batch, dtype=torch.float32),
        case_index=torch.arange(batch),
        sample_index=torch.arange(batch),
        spacing_mm=torch.tensor([run.storage.spacing_mm] * batch),
        seed=0,
        epoch=0,
    )
    seconds = []
    for step in range(steps):
        begin = time.process_time()
        clock = Clock(step, 100, 0, 100)
        views = make_views(scans, learner.views(), run.input)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.training.precision == "bf16"):
            result = learner.training_step(views, clock)
        torch.autograd.backward(result.loss)
        learner.before_optimizer_step(clock)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        set_rates(optimizer, run.training, step)
        optimizer.step()
        learner.after_step(clock)
        seconds.append(time.process_time() - begin)
    return min(seconds[1:])


@pytest.mark.evidence  # a time: on a machine that is shared it says nothing
@pytest.mark.parametrize(
    ("method", "config", "batch", "tolerance"),
    [
        ("dino", "vit_tiny", 4, 0.3),
        ("mae", "vit_tiny", 8, 0.3),
        ("dino", "resenc_s", 4, 0.3),
        ("mae", "resenc_s", 4, 0.3),
        ("dino", "vit_s", 2, 0.3),
        ("dino", "primus_s", 1, 0.3),
        ("dino", "unet3d", 1, 0.3),
        ("mae", "unet3d", 1, 0.3),
        ("mae", "segresnet", 2, 0.3),
        ("mae", "swin_unetr", 1, 0.3),
    ],
)
def test_the_estimate_is_within_a_third_of_a_measured_step(
    method: str, config: str, batch: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One thread and processor time on both sides, so that other programs on the machine do not count.
    monkeypatch.setattr(machine_module, "time", SimpleNamespace(perf_counter=time.process_time))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    detect_machine.cache_clear()
    try:
        ratios = []
        for _ in range(3):  # a burst of other programs during one of the two measurements is tried again
            run = settle(detect_machine("cpu"), method, config, batch)
            ratios.append(run.estimate.step_seconds / measure(run, method))
            if abs(ratios[-1] - 1) <= tolerance:
                break
            detect_machine.cache_clear()
    finally:
        detect_machine.cache_clear()
        torch.set_num_threads(threads)
    assert min(abs(r - 1) for r in ratios) <= tolerance, f"estimate over measured: {ratios}"


def _gigabytes(machine: Machine, method: str, overrides: Mapping[str, JsonValue] | None = None) -> float:
    """The model's memory of ViT-B/12 at 96^3 with 32 scans in bfloat16, heads read as 221 x 222 x 221 voxels."""
    settings = settle(machine, method, "headct_foundation", 32, {"training.precision": "bf16", **(overrides or {})})
    _, memory = step_parts(
        encoder=settings.encoder,
        input_spec=settings.input,
        views=settings.views,
        training=settings.training,
        method_name=method,
        method=settings.method,
        read_shape=(221, 222, 221),
        machine=machine,
    )
    return memory / 1e9


@pytest.mark.parametrize(("method", "allocated"), [("mae", 5.8), ("dino", 14.7)])
def test_memory_of_a_gpu_is_near_what_torch_allocated_on_an_h100(method: str, allocated: float) -> None:
    # The size of the heads was not written down; 10.8 million voxels follow from what the model said at the time.
    assert _gigabytes(GPU, method) == pytest.approx(allocated, rel=0.1)


@pytest.mark.parametrize("method", ["mae", "dino"])
def test_a_gpu_keeps_less_than_a_cpu(method: str) -> None:
    on_cpu = LAPTOP.model_copy(update={"memory_gb": 80.0})
    assert _gigabytes(GPU, method) < 0.75 * _gigabytes(on_cpu, method)
    assert _gigabytes(GPU, method, {"training.recompute": True}) < _gigabytes(GPU, method)


@pytest.mark.parametrize("tokens", [129, 513])
def test_what_blocks_keep_on_a_gpu_is_what_autograd_saves(tokens: int) -> None:
    width, depth, heads = 96, 3, 4
    blocks = torch.nn.Sequential(*(Block(width, heads) for _ in range(depth)))
    x = torch.randn(2, tokens, width, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in blocks.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = blocks(x)  # float32: fused attention here too
    found = sum(size for place, size in kept.items() if place not in weights)
    assert out.shape == x.shape
    cost, _ = transformer_blocks(tokens, width, depth, 4.0, False, heads=heads)
    assert 2 * (cost.stored + cost.within) == pytest.approx(found, rel=0.05)
