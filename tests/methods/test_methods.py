"""Methods: every objective on every kind of encoder, parameter groups, tables, what runs share."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import headctssl.methods as methods
from headctssl.errors import UsageError
from headctssl.methods import METHODS, list_methods, method_class
from headctssl.methods.method import Method
from headctssl.methods.optimizers import OPENMIND_CNN, OPENMIND_TRANSFORMER
from headctssl.networks.batch_norm import running_statistics
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import METHOD_FACTS, pair_refusal
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]

ENCODERS = ("vit_test", "resenc_test")
PAIRS = [(m, e) for m in METHODS for e in ENCODERS if pair_refusal(m, e) is None]


def coupled(name: str) -> bool:
    """Whether the loss couples samples; with centring dino's does only through what earlier steps left."""
    return method_class(name).batch_coupled


LOCAL = {"local_count": 2, "local_shape": [12, 12, 12]}


def train(method: Method, views: Views, steps: int, lr: float, total: int | None = None) -> list[dict[str, float]]:
    """Plain steps on the same views; loss and logs per step."""
    groups = [{"params": list(g.parameters), "weight_decay": 0.0} for g in method.param_groups()]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    lines = []
    for step in range(steps):
        clock = Clock(step, total or steps, 0, steps)
        torch.manual_seed(step)
        result = method.training_step(views, clock)
        optimizer.zero_grad()
        result.loss.backward()
        method.before_optimizer_step(clock)
        optimizer.step()
        method.after_step(clock)
        lines.append({"loss": float(result.loss.detach()), **{k: float(v) for k, v in result.logs.items()}})
    return lines


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_three_steps_are_finite_and_reach_every_encoder_parameter(name: str, encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    extra = {"registers": 2, "position": "trainable"} if encoder == "vit_test" else {}
    method = make_method(run_settings(name, encoder, views=LOCAL, encoder=extra))
    views = make_views(local_shapes=((12, 12, 12), (12, 12, 12)))
    before = copy.deepcopy(method.encoder.state_dict())
    result = method.training_step(views, Clock(0, 10, 0, 5))
    assert result.loss.ndim == 0
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    for parameter_name, parameter in method.encoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    trainable = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trainable), "every trainable parameter gets a gradient (DDP needs it)"
    method.zero_grad()
    lines = train(method, views, 3, 1e-3)
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in lines)
    after = method.encoder.state_dict()
    assert all(not torch.equal(after[k], before[k]) for k in before if after[k].is_floating_point())


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_bf16_step_keeps_the_loss_in_float32(name: str, encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    losses = []
    for half in (False, True):
        method = make_method(run_settings(name, encoder))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            # Norms over the rows of two scans would make much of the last bits.
            result = method.training_step(make_views(batch=4 if coupled(name) else 2), Clock(0, 10, 0, 5))
        result.loss.backward()
        assert result.loss.dtype == torch.float32
        losses.append(result.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1 if coupled(name) else 0.05)


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_views_of_another_grid_than_the_input(name: str, encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    shape = (12, 24, 36)
    method = make_method(
        run_settings(name, encoder, shape=shape, views={"local_count": 1, "local_shape": [12, 12, 24]})
    )
    views = make_views(global_shapes=(shape, shape), local_shapes=((12, 12, 24),))
    assert torch.isfinite(method.training_step(views, Clock(0, 10, 0, 5)).loss)


@pytest.mark.parametrize(("name", "encoder"), [p for p in PAIRS if p[0] == "dino" or not coupled(p[0])])
def test_loss_is_a_mean_over_samples(name: str, encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings(name, encoder))
    whole = make_views(batch=4)
    clock = Clock(0, 10, 0, 5)

    def part(rows: slice) -> Views:
        def of(groups: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, tuple[torch.Tensor, ...]]:
            return {name: tuple(view[rows] for view in views) for name, views in groups.items()}

        known = whole.known_classes[rows]
        return replace(
            whole,
            groups=of(whole.groups),
            inside=of(whole.inside),
            tissue=of(whole.tissue),
            segmentation=of(whole.segmentation),
            known_classes=known,
            sample_index=whole.sample_index[rows],
        )

    with torch.no_grad():
        halves = [method.training_step(part(rows), clock).loss for rows in (slice(0, 2), slice(2, 4))]
        torch.testing.assert_close(torch.stack(halves).mean(), method.training_step(whole, clock).loss)


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_param_groups_by_name(name: str, encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    extra = {"registers": 2, "position": "trainable"} if encoder == "vit_test" else {}
    method = make_method(run_settings(name, encoder, encoder=extra))
    names = {id(p): n for n, p in method.named_parameters()}
    groups = {g.weight_decay: [names[id(p)] for p in g.parameters] for g in method.param_groups()}
    listed = groups[True] + groups[False]
    assert sorted(listed) == sorted(n for n, p in method.named_parameters() if p.requires_grad)
    assert not any(n.startswith("teacher") for n in listed)
    for n in groups[True]:
        assert n.endswith("weight") or n.split(".")[-1] == "prototypes"
        assert "norm" not in n
        assert method.get_parameter(n).ndim > 1
    if encoder == "vit_test":
        tokens = {"encoder.cls_token", "encoder.registers", "encoder.pos_embed"}
        if name == "mae":
            tokens |= {"decoder.mask_token", "decoder.pos_embed"}
        assert tokens <= set(groups[False])


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_a_step_that_is_skipped_leaves_no_trace(name: str, encoder: str, toolbox: Toolbox) -> None:
    """The loop does not end a step whose loss is not finite, and puts the running statistics of norms back."""
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings(name, encoder))
    train(method, make_views(), 2, 1e-3)
    twin = copy.deepcopy(method)
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    statistics = [(values, values.clone()) for values in running_statistics(method)]
    broken = replace(make_views(seed=9), groups={k: tuple(v * float("nan") for v in vs)
                                                 for k, vs in make_views(seed=9).groups.items()})  # fmt: skip
    with contextlib.suppress(ValueError, RuntimeError):  # some losses refuse such views before they are computed
        method.training_step(broken, Clock(2, 10, 0, 5))
    for values, old in statistics:
        values.copy_(old)
    after = method.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for one in (method, twin):  # nor in what is kept beside the state, such as sums for the centre
        torch.manual_seed(3)
        one.training_step(make_views(seed=5), Clock(3, 10, 0, 5)).loss.backward()
        one.after_step(Clock(3, 10, 0, 5))
    one, other = method.state_dict(), twin.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_state_survives_a_strict_round_trip(name: str, encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    run = run_settings(name, encoder)
    one, two = make_method(run, seed=0), make_method(run, seed=1)
    train(one, make_views(), 2, 1e-3)
    two.load_state_dict(one.state_dict(), strict=True)
    clock = Clock(2, 10, 0, 5)
    results = [m.training_step(make_views(seed=5), clock).loss for m in (one, two)]
    assert torch.equal(*results)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_mae_fits_four_samples(encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    steps, rate, share = (150, 3e-3, 0.5) if encoder == "vit_test" else (40, 1e-2, 0.5)
    shape = (24, 24, 24) if encoder == "vit_test" else (12, 12, 12)
    method = make_method(run_settings("mae", encoder, shape=shape, views={"global_count": 1}))
    lines = train(method, make_views(batch=4, global_shapes=(shape,), detail=2), steps, rate)
    assert lines[-1]["relative_error"] < share, "better than the mean of what is to be predicted"
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_dino_student_learns_what_a_resting_teacher_says(encoder: str, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    resting = {"teacher_momentum": 1.0, "center_momentum": 0.0}
    cold = {"teacher_temperature": 0.02, "teacher_temperature_start": 0.02}
    shape = (24, 24, 24) if encoder == "vit_test" else (12, 12, 12)
    method = make_method(run_settings("dino", encoder, shape=shape, settings=resting | cold))
    lines = train(method, make_views(batch=4, global_shapes=(shape, shape)), 60, 3e-3)
    settled = max(line["kl"] for line in lines[1:5])
    assert lines[-1]["kl"] < 0.3 * settled


@pytest.mark.parametrize("name", [m for m, e in PAIRS if e == "resenc_test"])
def test_views_that_do_not_fit_are_refused(name: str, toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    for shape in ((24, 24, 26), (4, 4, 4)):
        run = run_settings(name, "resenc_test", shape=shape)
        with pytest.raises(UsageError, match="global views do not fit"):
            make_method(run)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_optimizer_defaults_have_a_source(name: str, kind: str) -> None:
    defaults = method_class(name).optimizer_defaults(kind)
    assert "arXiv" in defaults.source
    assert defaults.peak_lr(defaults.lr_reference_batch) == defaults.lr


def test_published_optimizers() -> None:
    dino = method_class("dino").optimizer_defaults("transformer")
    assert (dino.lr, dino.lr_reference_batch, dino.weight_decay, dino.weight_decay_end) == (5e-4, 256, 0.04, 0.4)
    assert (dino.betas, dino.clip_norm, dino.warmup_share, dino.min_lr_share) == ((0.9, 0.999), 3.0, 0.1, 1e-3)
    assert dino.peak_lr(64) == pytest.approx(1.25e-4)
    mae = method_class("mae").optimizer_defaults("transformer")
    assert (mae.lr, mae.betas, mae.weight_decay, mae.warmup_share) == (1.5e-4, (0.9, 0.95), 0.05, 0.05)
    cnn = method_class("mae").optimizer_defaults("cnn")
    assert (cnn.optimizer, cnn.peak_lr(2), cnn.momentum, cnn.weight_decay) == ("sgd", 1e-2, 0.99, 3e-5)
    assert (cnn.schedule, cnn.clip_norm) == ("poly", 12.0)


def test_openmind_settings_are_written_once() -> None:
    for name in ("mae", "spark", "swin_ssl"):
        assert method_class(name).optimizer_defaults("cnn") is OPENMIND_CNN
    for name in ("models_genesis", "volume_fusion"):
        assert method_class(name).optimizer_defaults("transformer") is OPENMIND_TRANSFORMER
    simclr = method_class("simclr").optimizer_defaults("cnn")
    assert (simclr.lr_reference_batch, simclr.lr_rule, simclr.clip_norm) == (32, "sqrt", 0.1)
    assert (simclr.lr, simclr.weight_decay, simclr.schedule) == (1e-2, 3e-5, "poly")


def test_every_folder_is_in_the_table_and_the_facts() -> None:
    folder = Path(methods.__file__).parent
    folders = {p.name for p in folder.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders == set(METHODS)
    assert set(METHOD_FACTS) == set(METHODS)
    assert all(facts.paper and bool(facts.families) == bool(facts.why_families) for facts in METHOD_FACTS.values())
    for name, entry in METHODS.items():
        found = method_class(name)
        assert issubclass(found, Method)
        assert entry.target == f"headctssl.methods.{name}.{name}:{found.__name__}"
        found.Settings()
    assert [name for name, _ in list_methods()] == list(METHODS)
    with pytest.raises(UsageError, match="dino"):
        method_class("dinno")
