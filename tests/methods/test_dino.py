"""Dino: the loss against loops, teacher, centre, schedules, frozen prototypes, two processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from headctssl.errors import UsageError
from headctssl.methods.dino.dino import Dino
from headctssl.methods.dino.dino_loss import cross_view_loss, entropy, teacher_probabilities
from headctssl.methods.dino.schedules import frozen_steps, teacher_momentum, teacher_temperature
from headctssl.methods.dino.settings import DinoSettings
from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.methods.method import Method
from headctssl.methods.ramps import cosine_ramp, linear_ramp
from headctssl.networks.heads import DinoHead, LinearHead
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]


def slow_loss(teacher: list[Tensor], student: list[Tensor], center: Tensor, t_t: float, t_s: float) -> float:
    """Equation 3 and algorithm 1 of arXiv 2104.14294, one number at a time."""
    terms = []
    for t, g in enumerate(teacher):
        for s, z in enumerate(student):
            if t == s:
                continue
            for sample in range(len(g)):
                raised = [math.exp((float(a) - float(c)) / t_t) for a, c in zip(g[sample], center, strict=True)]
                p_t = [a / sum(raised) for a in raised]
                raised = [math.exp(float(a) / t_s) for a in z[sample]]
                p_s = [a / sum(raised) for a in raised]
                terms.append(-sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("n_global", "n_all"), [(2, 2), (2, 5), (1, 3), (3, 3)])
def test_loss_against_loops(n_global: int, n_all: int) -> None:
    torch.manual_seed(0)
    teacher = [torch.rand(3, 6, dtype=torch.float64) * 2 - 1 for _ in range(n_global)]
    student = [torch.rand(3, 6, dtype=torch.float64) * 2 - 1 for _ in range(n_all)]
    center = torch.rand(6, dtype=torch.float64)
    targets = [teacher_probabilities(g, center, 0.2) for g in teacher]
    loss = cross_view_loss(targets, student, 0.3)
    assert loss.item() == pytest.approx(slow_loss(teacher, student, center, 0.2, 0.3), rel=1e-5)


def test_loss_needs_two_views_and_entropy_is_in_nats() -> None:
    with pytest.raises(ValueError, match="no pair"):
        cross_view_loss([torch.ones(1, 2)], [torch.ones(1, 2)], 0.1)
    assert entropy(torch.full((3, 8), 1 / 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.eye(4)).item() == 0


def test_head_has_unit_prototypes_and_the_published_size() -> None:
    with torch.device("meta"):
        big = DinoHead(768)
    assert round(sum(p.numel() for p in big.parameters()) / 1e6, 1) == 23.1
    torch.manual_seed(0)
    head = DinoHead(8, prototypes=5, hidden=16, bottleneck=4)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5, bias=False), dim=0)
    with torch.no_grad():
        reference.parametrizations.weight.original0.fill_(1.0)
        reference.parametrizations.weight.original1.copy_(head.prototypes)
    x = torch.randn(3, 8)
    expected = reference(nn.functional.normalize(head.mlp(x), dim=-1))
    torch.testing.assert_close(head(x), expected)
    assert head(100 * x).abs().max() <= 1 + 1e-6


def test_linear_head_in_eval_mode_ignores_batch_mates() -> None:
    torch.manual_seed(0)
    head = LinearHead(8, 3)
    assert isinstance(head.norm, nn.BatchNorm1d)
    assert head.norm.eps == 1e-6
    assert not head.norm.affine
    x = torch.randn(6, 8)
    head.train()(x)
    head.eval()
    torch.testing.assert_close(head(x[:1]), head(x)[:1])


def test_ema_against_loops_and_copies_buffers() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = make_teacher(student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p += torch.randn_like(p)
    student.train()(torch.randn(5, 3))
    update_teacher(teacher, student, 0.75)
    for old, new, leader in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * leader)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    assert teacher[1].num_batches_tracked.item() == 1
    frozen = [p.clone() for p in teacher.parameters()]
    update_teacher(teacher, student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(frozen, teacher.parameters(), strict=True))


def test_schedules_follow_the_global_step() -> None:
    s = DinoSettings(teacher_temperature=0.07, teacher_temperature_start=0.04)
    clocks = {step: Clock(step, 1001, step // 10, 10) for step in (0, 75, 150, 500, 1000)}
    assert teacher_momentum(s, clocks[0]) == 0.994
    assert teacher_momentum(s, clocks[500]) == pytest.approx(0.997)
    assert teacher_momentum(s, clocks[1000]) == 1.0
    assert teacher_temperature(s, clocks[0]) == 0.04
    assert teacher_temperature(s, clocks[75]) == pytest.approx(0.055)
    assert teacher_temperature(s, clocks[150]) == pytest.approx(0.07)
    assert teacher_temperature(s, clocks[1000]) == pytest.approx(0.07)
    assert frozen_steps(s, clocks[0]) == 10
    assert frozen_steps(s, Clock(0, 200, 0, 250)) == 20, "never more than a tenth of the run"
    assert cosine_ramp(1.0, 3.0, 0, 1) == 1.0
    assert linear_ramp(1.0, 3.0, 0, 0) == 3.0


def test_teacher_starts_as_the_student_and_gets_no_gradient(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("dino", "vit_test", encoder={"drop_path": 0.3}))
    assert isinstance(method, Dino)
    for teacher, student in ((method.teacher_encoder, method.encoder), (method.teacher_head, method.head)):
        states = teacher.state_dict(), student.state_dict()
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[1])
    method.train()
    assert method.encoder.training
    assert not any(m.training for part in (method.teacher_encoder, method.teacher_head) for m in part.modules())
    method.training_step(make_views(), Clock(0, 10, 0, 5)).loss.backward()
    assert all(p.grad is None for p in method.teacher_encoder.parameters())
    assert all(p.grad is None for p in method.teacher_head.parameters())
    assert method.encoder_to_export() is method.teacher_encoder


def test_step_against_a_slow_reference_with_local_views(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("dino", "vit_test", views={"local_count": 2, "local_shape": [12, 12, 12]}))
    assert isinstance(method, Dino)
    views = make_views(batch=3, local_shapes=((12, 12, 12), (12, 12, 12)))
    clock = Clock(0, 10, 0, 5)
    with torch.no_grad():
        teacher = [method.teacher_head(method.teacher_encoder(v).features) for v in views.groups["global"]]
        student = [method.head(method.encoder(v).features) for k in ("global", "local") for v in views.groups[k]]
        expected = slow_loss(teacher, student, torch.zeros(64), 0.04, 0.1)
        assert method.training_step(views, clock).loss.item() == pytest.approx(expected, rel=1e-4)
        assert not method.targets.center.any(), "the centre of a step is that of the steps before"
        method.after_step(clock)
        first = torch.cat(teacher).mean(0)
        torch.testing.assert_close(method.targets.center, first, msg="the first centre is the first batch's")
        method.training_step(views, Clock(50, 100, 0, 5))
        method.after_step(Clock(50, 100, 0, 5))
        now = torch.cat([method.teacher_head(method.teacher_encoder(v).features) for v in views.groups["global"]])
        torch.testing.assert_close(method.targets.center, 0.9 * first + 0.1 * now.mean(0), atol=2e-3, rtol=0)


def test_center_over_accumulated_passes_is_that_of_the_whole_batch(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    clock = Clock(0, 10, 0, 5)
    passes = [make_views(batch=2, seed=s) for s in (1, 2)]
    centers = []
    for split in (True, False):
        method = make_method(run_settings("dino", "vit_test"))
        assert isinstance(method, Dino)
        method.training_step(make_views(seed=9), Clock(7, 10, 1, 5))  # a step that was skipped leaves nothing behind
        if split:
            for views in passes:
                method.training_step(views, clock)
        else:
            both = [torch.cat(pair) for pair in zip(*(v.groups["global"] for v in passes), strict=True)]
            whole = Views({"global": tuple(both)}, {}, torch.arange(4), seed=0, epoch=0)
            method.training_step(whole, clock)
        method.after_step(clock)
        centers.append(method.targets.center)
    torch.testing.assert_close(*centers)


def test_prototypes_stand_still_at_the_start(toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("dino", "vit_test"))
    assert isinstance(method, Dino)
    optimizer = torch.optim.AdamW(method.param_groups()[0].parameters, lr=1e-2, weight_decay=0.1)
    moved = []
    for step in range(4):
        clock = Clock(step, 100, 0, 2)
        before = method.head.prototypes.detach().clone()
        optimizer.zero_grad()
        method.training_step(make_views(), clock).loss.backward()
        method.before_optimizer_step(clock)
        optimizer.step()
        moved.append(not torch.equal(before, method.head.prototypes))
    assert moved == [False, False, True, True]


def test_one_view_is_refused(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    with pytest.raises(UsageError, match="nothing to compare"):
        make_method(run_settings("dino", "vit_test", views={"global_count": 1, "local_count": 0}))


def _half(rank: int, folder: str, method: Dino, views: list[Views]) -> None:
    torch.set_num_threads(1)
    method = copy.deepcopy(method)  # the parameters came in shared memory
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    clock = Clock(0, 10, 0, 5)
    loss = method.training_step(views[rank], clock).loss
    loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    for gradient in gradients.values():  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    method.after_step(clock)
    found = {"loss": loss.detach(), "gradients": gradients, **dict(method.targets.named_buffers())}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("targets", ["centring", "sinkhorn"])
def test_two_processes_have_the_loss_gradients_and_targets_of_one(
    targets: str, toolbox: Toolbox, tmp_path: Path
) -> None:
    run_settings, make_method, make_views = toolbox
    # Small batches get KoLeo and, with Sinkhorn-Knopp, a queue; both are taken over the global batch.
    settings = {"targets": targets, "koleo_weight": 0.1, "queue": 16 if targets == "sinkhorn" else 0}
    method = make_method(run_settings("dino", "vit_test", settings=settings))
    assert isinstance(method, Dino)
    parts = [make_views(batch=2, seed=s) for s in (1, 2)]
    torch.multiprocessing.spawn(_half, (str(tmp_path), method, parts), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    both = [torch.cat(pair) for pair in zip(*(v.groups["global"] for v in parts), strict=True)]
    whole = Views({"global": tuple(both)}, {}, torch.arange(4), seed=0, epoch=0)
    clock = Clock(0, 10, 0, 5)
    loss = method.training_step(whole, clock).loss
    loss.backward()
    method.after_step(clock)
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss.detach())
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            for part in found:
                torch.testing.assert_close(part["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6)
    # Rows stand in the queue in the order of the processes, so as sets they are the same.
    for part in found:
        for name, values in method.targets.named_buffers():
            torch.testing.assert_close(part[name].sort(dim=0).values, values.sort(dim=0).values)
