"""Voco: labels from geometry, losses against loops, what a step does, one and two processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.methods.method import Method
from headctssl.methods.voco.voco import Voco
from headctssl.methods.voco.voco_loss import assign, overlap_loss, overlap_shares, separation_loss
from headctssl.planning.run_settings import RunSettings
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def slow_overlap_loss(shares: Tensor, predicted: Tensor) -> float:
    """Equation 3 of arXiv 2410.09890, pair by pair."""
    scans = []
    for y_scan, p_scan in zip(shares.double().tolist(), predicted.double().tolist(), strict=True):
        pairs = [pair for y, p in zip(y_scan, p_scan, strict=True) for pair in zip(y, p, strict=True)]
        near = sum(-y * math.log(1 - abs(y - p) + 1e-6) for y, p in pairs) / (sum(y for y, _ in pairs) + 1e-6)
        apart = [p for y, p in pairs if y == 0]
        far = sum(-math.log(1 - p + 1e-6) for p in apart) / (len(apart) + 1e-6)
        scans.append(near + far)
    return sum(scans) / len(scans)


@given(seed=st.integers(0, 9999), batch=st.integers(1, 3), crops=st.integers(1, 3), cells=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_losses_against_loops(seed: int, batch: int, crops: int, cells: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, bases = torch.randn(batch, crops, 5, generator=generator), torch.randn(batch, cells, 5, generator=generator)
    predicted = assign(z, bases)
    for b in range(batch):
        for r in range(crops):
            for n in range(cells):
                assert predicted[b, r, n].item() == pytest.approx(max(0.0, cosine(z[b, r], bases[b, n])), abs=1e-5)
    shares = torch.rand(batch, crops, cells, generator=generator)
    shares = torch.where(shares < 0.5, 0.0, shares)
    assert overlap_loss(shares, predicted).item() == pytest.approx(
        slow_overlap_loss(shares, predicted), rel=1e-3, abs=1e-4
    )
    pairs = [(i, j) for i in range(cells) for j in range(i + 1, cells)]
    squares = [max(0.0, cosine(bases[b, i], bases[b, j])) ** 2 for b in range(batch) for i, j in pairs]
    assert separation_loss(bases).item() == pytest.approx(sum(squares) / len(squares), abs=1e-5)


@given(
    side=st.floats(1.0, 50.0),
    corner=st.tuples(st.floats(-20.0, 20.0), st.floats(-20.0, 20.0)),
    place=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    grid=st.integers(2, 4),
)
@settings(max_examples=200, deadline=None)
def test_shares_are_what_geometry_says(
    side: float, corner: tuple[float, float], place: tuple[float, float], grid: int
) -> None:
    def box(y: float, x: float) -> list[list[float]]:
        return [[3.0, 3.0 + side], [y, y + side], [x, x + side]]

    cells = torch.tensor([[box(corner[0] + r * side, corner[1] + c * side)] for r in range(grid) for c in range(grid)])
    y, x = (corner[axis] + place[axis] * (grid - 1) * side for axis in (0, 1))
    shares = overlap_shares(torch.tensor([[box(y, x)]]), cells)[0, 0]
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-3), "a crop within the grid is all in its cells"
    assert ((shares >= 0) & (shares <= 1)).all()
    assert 1 <= int((shares > 0).sum()) <= 4
    row, column = (place[axis] * (grid - 1) for axis in (0, 1))
    for number, share in enumerate(shares.tolist()):
        r, c = divmod(number, grid)
        assert share == pytest.approx(max(0, 1 - abs(row - r)) * max(0, 1 - abs(column - c)), abs=1e-3)


def test_a_crop_on_a_cell_is_that_cell_and_outside_the_grid_is_none() -> None:
    cells = torch.tensor(
        [[[[0.0, 8.0], [8.0 * r, 8.0 * r + 8], [8.0 * c, 8.0 * c + 8]]] for r in (0, 1) for c in (0, 1)]
    )
    assert torch.equal(overlap_shares(cells[2:3], cells)[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert overlap_shares(cells[:1] + 100, cells).sum() == 0
    below = cells[:1].clone()
    below[..., 0, :] += 4  # crops and cells are compared in the plane
    assert overlap_shares(below, cells)[0, 0, 0] == 1


@given(st.booleans(), st.booleans())
@settings(max_examples=4, deadline=None)
def test_losses_are_finite_with_duplicates_and_zeros(zeros: bool, nothing: bool) -> None:
    z = (torch.zeros if zeros else torch.ones)(2, 3, 4).requires_grad_()
    shares = torch.zeros(2, 3, 3) if nothing else torch.full((2, 3, 3), 1 / 3)
    loss = overlap_loss(shares, assign(z, z)) + separation_loss(z)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def small(toolbox: Toolbox, encoder: str = "vit_test", **kind: Any) -> Voco:
    run_settings, make_method, _ = toolbox
    method = make_method(run_settings("voco", encoder, **kind))
    assert isinstance(method, Voco)
    return method


def test_step_is_the_sum_of_its_terms(toolbox: Toolbox) -> None:
    method = small(toolbox, settings={"feature_dropout": 0.0, "inter_weight": 0.7, "separation_weight": 0.3})
    views = toolbox[2](batch=3)
    with torch.no_grad():  # a teacher that says something else
        for parameter in method.teacher_projector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    logs = (result := method.training_step(views, Clock(0, 10, 0, 5))).logs
    expected = logs["intra"] + 0.7 * logs["inter"] + 0.3 * logs["separation"]
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        features = [method.encoder(v).features for v in (*views.groups["base"], *views.groups["crop"])]
        rows = torch.stack(features, 1)
        own = method.projector(rows.flatten(0, 1)).view(3, 6, -1)
        theirs = method.teacher_projector(rows.flatten(0, 1)).view(3, 6, -1)
    intra, inter = [], []
    shares = overlap_shares(views.boxes["crop"], views.boxes["base"])
    for scan in range(3):
        following = (scan + 1) % 3
        told = [[max(0.0, cosine(own[scan, 4 + r], theirs[scan, n])) for n in range(4)] for r in range(2)]
        intra.append(slow_overlap_loss(shares[scan : scan + 1], torch.tensor([told])))
        target = [[max(0.0, cosine(theirs[scan, 4 + r], theirs[following, n])) for n in range(4)] for r in range(2)]
        told = [[max(0.0, cosine(own[scan, 4 + r], own[following, n])) for n in range(4)] for r in range(2)]
        inter.append(slow_overlap_loss(torch.tensor([target]), torch.tensor([told])))
    assert logs["intra"].item() == pytest.approx(sum(intra) / 3, rel=1e-2)
    assert logs["inter"].item() == pytest.approx(sum(inter) / 3, rel=1e-2)


def test_dropout_follows_seed_and_step_not_the_generator(toolbox: Toolbox) -> None:
    method, views, found = small(toolbox), toolbox[2](batch=3), []
    for step in (0, 0, 1):
        torch.manual_seed(len(found))
        found.append(method.training_step(views, Clock(step, 10, 0, 5)).loss.item())
    assert found[0] == found[1] != found[2]


def test_the_teacher_begins_as_the_student_and_follows_it(toolbox: Toolbox) -> None:
    method = small(toolbox)
    pairs = list(zip(method.teacher_projector.parameters(), method.projector.parameters(), strict=True))
    assert all(torch.equal(t, s) and not t.requires_grad for t, s in pairs)
    with torch.no_grad():
        for _, student in pairs:
            student.add_(1.0)
    before = [t.clone() for t, _ in pairs]
    method.after_step(Clock(0, 10, 0, 5))
    for old, (teacher, _) in zip(before, pairs, strict=True):
        torch.testing.assert_close(teacher, old + 0.1)


def learn(method: Voco, views: Views, steps: int) -> dict[str, float]:
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    logs: dict[str, float] = {}
    for step in range(steps):
        clock = Clock(step, steps, 0, steps)
        result = method.training_step(views, clock)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        method.after_step(clock)
        logs = {k: float(v) for k, v in result.logs.items()}
    return logs


def of_one_scan(toolbox: Toolbox, batch: int = 3) -> Views:
    """Cells of random content, and crops that show of each cell as much as they share with it."""
    views = toolbox[2](batch=batch)
    shares = overlap_shares(views.boxes["crop"], views.boxes["base"])
    cells = torch.stack(views.groups["base"], 1)
    mixed = torch.einsum("brn,bncdhw->rbcdhw", shares, cells)
    views.groups["crop"] = tuple(mixed)
    return views


@pytest.mark.parametrize("encoder", ["vit_test", "resenc_test"])
def test_places_of_crops_are_learned(encoder: str, toolbox: Toolbox) -> None:
    method = small(toolbox, encoder, settings={"feature_dropout": 0.0})
    views = of_one_scan(toolbox)
    before = float(method.training_step(views, Clock(0, 10, 0, 5)).logs["share_error"])
    logs = learn(method, views, 40)
    assert logs["share_error"] < 0.5 * before
    assert logs["separation"] < 0.1


def test_agreement_with_the_next_scan_alone_teaches_no_places(toolbox: Toolbox) -> None:
    """Failing on purpose: teacher and student agree on anything, and cells come no further apart."""
    method = small(
        toolbox, "resenc_test", settings={"feature_dropout": 0.0, "inter_weight": 1000.0, "separation_weight": 0.0}
    )
    views = of_one_scan(toolbox)
    before = {k: float(v) for k, v in method.training_step(views, Clock(0, 10, 0, 5)).logs.items()}
    logs = learn(method, views, 40)
    assert logs["share_error"] > before["share_error"]
    assert logs["separation"] > before["separation"]


def test_the_plan_has_a_jittered_grid_and_crops_within(toolbox: Toolbox) -> None:
    base, crop = small(toolbox, views={"base_grid": 3, "local_count": 4}).views().groups
    assert (base.name, base.count, base.grid, base.scale, base.within) == ("base", 9, 3, (0.6, 1.0), "")
    assert (crop.name, crop.count, crop.grid, crop.within) == ("crop", 4, 3, "base")
    assert base.flip_probability == (0, 0, 0)
    assert base.shift_probability == 0
    assert crop.shift_probability > 0


@pytest.mark.parametrize(
    ("views", "kind", "batch"),
    [
        ({"base_grid": 1}, {}, 4),
        ({"local_count": 0}, {}, 4),
        ({}, {}, 1),
        ({}, {"grid_scale": [0.9, 0.5]}, 4),
    ],
)
def test_what_cannot_be_compared_is_refused(
    toolbox: Toolbox, views: dict[str, int], kind: dict[str, Any], batch: int
) -> None:
    run_settings, make_method, _ = toolbox
    run = run_settings("voco", "vit_test", views=views, settings=kind)
    run = run.model_copy(update={"training": run.training.model_copy(update={"batch_size": batch})})
    with pytest.raises(UsageError, match=r"nothing to compare|does not lie in the field of view"):
        make_method(run)


def test_a_single_scan_is_enough_without_the_next_one(toolbox: Toolbox) -> None:
    method = small(toolbox, settings={"inter_weight": 0.0})
    result = method.training_step(toolbox[2](batch=1), Clock(0, 10, 0, 5))
    assert result.loss.isfinite()
    assert "inter" not in result.logs


def _half(rank: int, folder: str, method: Voco, views: list[Views]) -> None:
    torch.set_num_threads(1)
    method = copy.deepcopy(method)  # the parameters came in shared memory
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss = method.training_step(views[rank], Clock(0, 10, 0, 5)).loss
    loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    for gradient in gradients.values():  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    buffers = dict(method.named_buffers())
    torch.save({"loss": loss.detach(), "gradients": gradients, "buffers": buffers}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_gradients_and_statistics_of_one(toolbox: Toolbox, tmp_path: Path) -> None:
    method = small(toolbox)
    parts = [toolbox[2](batch=2, seed=s) for s in (1, 2)]
    for part in parts:
        part.seed = 0  # the run's seed, the same on every process
    torch.multiprocessing.spawn(_half, (str(tmp_path), method, parts), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    groups = {
        name: tuple(torch.cat(pair) for pair in zip(*(v.groups[name] for v in parts), strict=True))
        for name in ("base", "crop")
    }
    boxes = {name: torch.cat([v.boxes[name] for v in parts], dim=1) for name in ("base", "crop")}
    whole = Views(groups, {}, torch.arange(4), seed=0, epoch=0, boxes=boxes)
    loss = method.training_step(whole, Clock(0, 10, 0, 5)).loss
    loss.backward()
    trained = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    size = math.sqrt(sum(float(g.norm()) ** 2 for g in trained.values()))
    for part in found:
        torch.testing.assert_close(part["loss"], loss.detach())
        assert part["gradients"].keys() == trained.keys()
        for name, gradient in part["gradients"].items():
            assert (gradient - trained[name]).norm() < 1e-5 * size, name
        for name, buffer in method.named_buffers():
            torch.testing.assert_close(part["buffers"][name], buffer)
