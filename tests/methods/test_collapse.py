"""Tests of collapse: for each family a run that fails on purpose, and the default at 8 scans, which does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import headctssl
from headctssl.methods.simclr.simclr_loss import nt_xent
from headctssl.methods.spread import directions_used, unit_spread
from headctssl.paths import ROOT_KINDS
from headctssl.types import Clock, Views

Toolbox = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Views]]

STEPS, LAST = 200, 40
SIGNS = ("feature_std", "embedding_std", "embedding_rank", "target_std", "monitor_rank_me")


@dataclass(frozen=True)
class Family:
    """How a family is made to collapse, and by which signs that is told."""

    failing: tuple[str, ...]
    signs: tuple[str, ...]
    cause: str  # what the guard names
    without_negatives: str = ""  # what `_attraction` stands in for in the failing run

    def how(self) -> str:
        """The failing run, for the table."""
        return " ".join((*self.failing, *(("attraction alone",) if self.without_negatives else ())))


HOT = ("method.teacher_temperature=0.5", "method.teacher_temperature_start=0.5", "method.koleo_weight=0")
FAMILIES = {
    "dino": Family(HOT, ("feature_std", "monitor_rank_me"), "method.teacher_temperature=0.5"),
    "dinov2": Family(
        (*HOT, "method.targets=centring"), ("feature_std", "monitor_rank_me"), "method.teacher_temperature=0.5"
    ),
    "simclr": Family(("training.lr=0.03",), ("embedding_std", "embedding_rank"), "training.lr=0.03 is"),
    "voco": Family(
        ("method.inter_weight=1000", "method.separation_weight=0"), ("embedding_rank",), "method.separation_weight=0"
    ),
    "swin_ssl": Family(
        ("method.head_norm=false",),
        ("embedding_std", "embedding_rank"),
        "method.head_norm=false",
        without_negatives="headctssl.methods.swin_ssl.swin_ssl.nt_xent",
    ),
    "lejepa": Family(("method.sigreg_weight=0",), ("embedding_std", "embedding_rank"), "method.sigreg_weight=0"),
    "jepa": Family(
        ("method.teacher_momentum=0", "method.teacher_momentum_end=0", "training.lr=1e-3"),
        ("feature_std", "target_std"),
        "method.teacher_momentum=0",
    ),
}
SCANS_ALONE = {
    "mae": "vit_test",
    "models_genesis": "resenc_test",
    "simmim": "vit_test",
    "spark": "resenc_test",
    "volume_fusion": "resenc_test",
}
"""Methods that compare no scans, and an encoder each."""


def test_signs_of_collapse_know_one_point_one_line_and_a_sphere() -> None:
    torch.manual_seed(0)
    point, sphere = torch.ones(32, 16), torch.randn(4096, 16)
    line = torch.randn(32, 1) * torch.ones(1, 16)
    assert [float(measure(point)) for measure in (unit_spread, directions_used)] == pytest.approx([0, 1], abs=1e-5)
    assert float(directions_used(line)) == pytest.approx(1, abs=1e-5)
    assert float(unit_spread(line)) == pytest.approx(1, abs=0.1), "a line has two ends: spread alone does not tell"
    assert [float(measure(sphere)) for measure in (unit_spread, directions_used)] == pytest.approx([1, 16], rel=0.02)
    flat = sphere[:64] * (torch.arange(16) < 4)
    assert float(directions_used(flat)) == pytest.approx(4, rel=0.1)
    assert float(directions_used(sphere[:8])) == pytest.approx(float(directions_used(7 * sphere[:8]))), "length is none"


@pytest.mark.parametrize(("weight", "collapses"), [(0.0, True), (0.5, False)])
def test_without_its_gaussian_term_lejepa_collapses(weight: float, collapses: bool, toolbox: Toolbox) -> None:
    run_settings, make_method, make_views = toolbox
    settings = {"sigreg_weight": weight, "head_hidden": 64, "head_outputs": 16, "directions": 64}
    method = make_method(run_settings("lejepa", "vit_test", settings=settings))
    optimizer = torch.optim.AdamW(method.parameters(), 1e-3)
    for step in range(40):
        views = make_views(batch=8, seed=step % 4)
        result = method.training_step(views, Clock(step, 40, 0, 40))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    found = float(result.logs["embedding_rank"])
    assert found < 1.5 if collapses else found > 3, found


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sixty synthetic heads, planned and preprocessed."""
    folder = tmp_path_factory.mktemp("collapse")
    patch = pytest.MonkeyPatch()
    for kind in ROOT_KINDS:
        (folder / kind).mkdir()
        patch.setenv(f"headctssl_{kind}", str(folder / kind))
    headctssl.make_phantom(1, n=60, seed=5, profile="laptop", quiet=True)
    headctssl.plan_and_preprocess([1], quiet=True)
    yield
    patch.undo()


@pytest.mark.evidence
@pytest.mark.parametrize("method", sorted(FAMILIES))
def test_the_default_at_eight_scans_does_not_collapse_and_what_should_does(
    phantom: None, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[method]
    default, silent = _signs(method, ())
    assert silent == "", "the guard is silent on the default"
    if family.without_negatives:
        monkeypatch.setattr(family.without_negatives, _attraction)
    failing, told = _signs(method, family.failing)
    print(f"{method:9s} {told}")
    assert family.cause in told, "the guard names the cause"
    for name in SIGNS:
        if name in default:
            (first, last), (_, bad) = default[name], failing[name]
            print(f"{method:9s} {name:16s} default {first:.3g} -> {last:.3g}   {family.how()} -> {bad:.3g}")
    for name in family.signs:
        (first, last), (_, bad) = default[name], failing[name]
        # A rank of 1 is that of one point.
        floor = 1.0 if "rank" in name else 0.0
        assert bad - floor < (last - floor) / 2, f"{name}: {bad} beside {last} of the default"
        assert last - floor > (first - floor) / 2, f"{name} of the default fell from {first} to {last}"


@pytest.mark.evidence
@pytest.mark.parametrize("method", sorted(SCANS_ALONE))
def test_the_guard_is_silent_on_methods_that_compare_no_scans(phantom: None, method: str) -> None:
    assert _signs(method, (), SCANS_ALONE[method])[1] == ""


def _attraction(embeddings_VBD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent without its negatives: views of a scan are drawn together, and nothing drives scans apart."""
    first, second = functional.normalize(embeddings_VBD.float(), dim=-1)
    return -(first * second).sum(-1).mean() / temperature, nt_xent(embeddings_VBD, temperature)[1]


def _signs(
    method: str, failing: tuple[str, ...], config: str = "vit_test"
) -> tuple[dict[str, tuple[float, float]], str]:
    """Every sign of a run that it logs, mean of the first and of the last steps, and what the guard said."""
    run: Path = headctssl.pretrain(
        1,
        method,
        config=config,
        tag="failing" if failing else "default",
        num_workers=0,
        quiet=True,
        overrides=[f"training.num_steps={STEPS}", "training.batch_size=8", "monitor.every=20", *failing],
    )
    said = [text for text in (run / "train.log").read_text().splitlines() if "collapse: " in text]
    assert len(said) <= 1, "it is told once"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {
        name: (
            mean([line[name] for line in lines if name in line and line["step"] <= LAST]),
            mean([line[name] for line in lines if name in line and line["step"] > STEPS - LAST]),
        )
        for name in SIGNS
        if name in lines[-1]
    }
    return found, "".join(said)
