"""Dinov2: the step against a slow reference, what is masked, queue and targets, one and two processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.methods.dino.dino_loss import cross_view_loss, koleo, sinkhorn
from headctssl.methods.dino.schedules import teacher_temperature
from headctssl.methods.dinov2.dinov2 import Dinov2
from headctssl.methods.method import Method
from headctssl.methods.teacher_targets import TeacherTargets
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]
CLOCK = Clock(0, 10, 0, 5)


def slow_patch_loss(method: Dinov2, views: Views) -> float:
    """Equation 2 of arXiv 2111.07832 view by view, with Sinkhorn-Knopp over all masked tokens."""
    s, temperature = method.settings, teacher_temperature(method.settings, CLOCK)
    globals_, batch = views.groups["global"], views.batch_size
    grid = tuple(n // t for n, t in zip(globals_[0].shape[2:], method.encoder.token_size, strict=True))
    mask = method._draw(views, grid, None).mask.view(len(globals_), batch, -1)
    teacher, student, owner = [], [], []
    for v, view in enumerate(globals_):
        hidden = method.teacher_patch_head(method.teacher_encoder(view).tokens)
        seen = method.patch_head(method.encoder(view, mask=mask[v].view(batch, *grid)).tokens)
        for b in range(batch):
            for n in torch.nonzero(mask[v, b])[:, 0].tolist():
                teacher.append(hidden[b, n])
                student.append(seen[b, n])
                owner.append((v, b))
    targets = sinkhorn(torch.stack(teacher), temperature)
    per_view: dict[tuple[int, int], list[Tensor]] = {}
    for target, logits, key in zip(targets, student, owner, strict=True):
        entropy = -(target * functional.log_softmax(logits / s.student_temperature, dim=-1)).sum()
        per_view.setdefault(key, []).append(entropy)
    return float(torch.stack([torch.stack(v).mean() for v in per_view.values()]).mean())


def built(toolbox: Toolbox, **settings: object) -> tuple[Dinov2, Views]:
    run_settings, make_method, make_views = toolbox
    views = {"local_count": 2, "local_shape": [12, 12, 12]}
    method = make_method(run_settings("dinov2", "vit_test", shape=(24, 12, 18), views=views, settings=settings))
    assert isinstance(method, Dinov2)
    torch.nn.init.normal_(method.encoder.mask_token)  # type: ignore[arg-type]  # a transformer's
    return method, make_views(
        batch=3, global_shapes=((24, 12, 18), (24, 12, 18)), local_shapes=((12, 12, 12), (12, 12, 12))
    )


def test_step_against_a_slow_reference(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    with torch.no_grad():
        result = method.training_step(views, CLOCK)
        globals_ = views.groups["global"]
        temperature = teacher_temperature(method.settings, CLOCK)
        logits = torch.cat([method.teacher_head(method.teacher_encoder(v).features) for v in globals_])
        targets = sinkhorn(logits, temperature).split(3)
        mask = method._draw(views, (4, 2, 3), None).mask.view(2, 3, 4, 2, 3)
        features = [method.encoder(v, mask=mask[i]).features for i, v in enumerate(globals_)]
        features += [method.encoder(v).features for v in views.groups["local"]]
        scans = cross_view_loss(targets, [method.head(f) for f in features], 0.1)
        spread = koleo(features[0]) + koleo(features[1])
        assert float(result.logs["scan_loss"]) == pytest.approx(float(scans), rel=1e-4)
        assert float(result.logs["patch_loss"]) == pytest.approx(slow_patch_loss(method, views), rel=1e-4)
        assert float(result.logs["koleo"]) == pytest.approx(float(spread), rel=1e-3)
        total = scans + slow_patch_loss(method, views) + 0.1 * spread
        assert float(result.loss) == pytest.approx(float(total), rel=1e-4)


def test_half_of_the_views_are_masked_and_every_scan_once(toolbox: Toolbox) -> None:
    method, views = built(toolbox)
    drawn = method._draw(views, (4, 2, 3), None)
    counts = drawn.mask.flatten(1).sum(1).view(2, 3)
    assert ((counts > 0).sum(0) == 1).all()
    assert counts.max() <= round(0.5 * 24)
    assert float(drawn.weights.sum()) == pytest.approx(1.0)
    assert drawn.places.numel() == int(counts.sum())


def test_student_learns_teacher_follows_without_gradient(toolbox: Toolbox) -> None:
    method, views = built(toolbox, freeze_last_layer_epochs=0.0)
    method.training_step(views, CLOCK).loss.backward()
    missing = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert method.encoder.mask_token is not None
    assert method.encoder.mask_token.grad.abs().sum() > 0  # type: ignore[union-attr]  # checked above
    before = [p.clone() for p in method.teacher_patch_head.parameters()]
    with torch.no_grad():
        for p in method.patch_head.parameters():
            p += 1.0
    method.after_step(CLOCK)
    moved = [not torch.equal(a, b) for a, b in zip(before, method.teacher_patch_head.parameters(), strict=True)]
    assert all(moved)


def test_queue_keeps_the_newest_rows_and_takes_part(toolbox: Toolbox) -> None:
    torch.manual_seed(0)
    targets = TeacherTargets("sinkhorn", 6, 4, queue=5)
    prototypes = functional.normalize(torch.randn(6, 4), dim=-1)
    batches = [functional.normalize(torch.randn(3, 4), dim=-1) for _ in range(3)]
    for index, rows in enumerate(batches):
        earlier = torch.cat([*reversed(batches[:index]), torch.zeros(0, 4)])[:5]
        expected = sinkhorn(torch.cat([rows, earlier]) @ prototypes.T, 0.1)[:3]
        torch.testing.assert_close(targets(rows, prototypes, 0.1, CLOCK), expected)
        targets.after_step(CLOCK)
    assert int(targets.queued) == 5
    torch.testing.assert_close(targets.queue, torch.cat([batches[2], batches[1]])[:5])


def test_centring_is_offered_too(toolbox: Toolbox) -> None:
    method, views = built(toolbox, targets="centring")
    assert method.training_step(views, CLOCK).loss.isfinite()
    method.after_step(CLOCK)
    assert method.targets.center.any()
    assert method.patch_targets.center.any()


def test_one_view_is_refused(toolbox: Toolbox) -> None:
    run_settings, make_method, _ = toolbox
    with pytest.raises(UsageError, match="nothing to compare"):
        make_method(run_settings("dinov2", "vit_test", views={"global_count": 1, "local_count": 0}))


def _part(rank: int, folder: str, method: Dinov2, views: list[Views]) -> None:
    torch.set_num_threads(1)
    method = copy.deepcopy(method)  # the parameters came in shared memory
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss = method.training_step(views[rank], CLOCK).loss
    loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    for gradient in gradients.values():  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    method.after_step(CLOCK)
    torch.save({"loss": loss.detach(), "gradients": gradients, "queue": method.targets.queue}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(toolbox: Toolbox, tmp_path: Path) -> None:
    run_settings, make_method, make_views = toolbox
    method = make_method(run_settings("dinov2", "vit_test", settings={"queue": 12}))
    assert isinstance(method, Dinov2)
    parts = [make_views(batch=2, seed=s) for s in (1, 2)]
    for rank, part in enumerate(parts):
        part.seed, part.sample_index = 0, torch.arange(2) + 2 * rank
    torch.multiprocessing.spawn(_part, (str(tmp_path), method, parts), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    both = [torch.cat(pair) for pair in zip(*(v.groups["global"] for v in parts), strict=True)]
    whole = Views({"global": tuple(both)}, {}, torch.arange(4), seed=0, epoch=0)
    loss = method.training_step(whole, CLOCK).loss
    loss.backward()
    method.after_step(CLOCK)
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss.detach())
    mine = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    for part in found:
        assert part["gradients"].keys() == mine.keys()
        for name, gradient in mine.items():
            torch.testing.assert_close(part["gradients"][name], gradient, atol=2e-5, rtol=2e-3)
        assert sorted(map(tuple, part["queue"].tolist()))[0] == pytest.approx(
            sorted(map(tuple, method.targets.queue.tolist()))[0], abs=1e-5
        ), "the rows of both processes, in another order"
