"""Tests of what resolve decides for objectives that compare scans: every decision with its reason, at any batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_examples import GPU, fingerprint

from headctssl.methods import method_class
from headctssl.planning.planner import make_plans
from headctssl.planning.resolve import resolve
from headctssl.planning.resolve_batch import MOST_PROTOTYPES_PER_SCAN
from headctssl.planning.run_settings import RunSettings

SHARED = {"views per scan", "batch size", "learning rate"}
DISTILLED = {
    "prototypes K",
    "targets",
    "queue of outputs",
    "weight of KoLeo",
    "student temperature",
    "teacher temperature",
    "teacher momentum",
    "centre momentum",
}
DECIDED = {
    "dino": DISTILLED,
    "dinov2": DISTILLED,
    "simclr": {"contrastive temperature"},
    "swin_ssl": {"contrastive temperature"},
    "voco": {"weight of the next scan", "projector's teacher momentum"},
    "lejepa": {"weight of the Gaussian term"},
    "jepa": {"teacher momentum"},
}
EXAMPLE = make_plans(fingerprint())
ROOM = GPU.model_copy(update={"memory_gb": 1e6})  # for 4,096 scans in one pass


def run(method: str, batch: int, cases: int = 1000, steps: int = 1000, **overrides: Any) -> RunSettings:
    kind = method_class(method)
    return resolve(
        (EXAMPLE,),
        method_name=method,
        method_settings=kind.Settings,
        optimizer=kind.optimizer_defaults,
        config="vit_test",
        overrides={"training.batch_size": batch, "training.num_steps": steps, **overrides},
        machine=ROOM,
        num_train_cases=cases,
        batch_coupled=kind.batch_coupled,
    )


@pytest.mark.parametrize("method", sorted(DECIDED))
def test_everything_that_a_batch_may_change_is_decided_with_its_reason(method: str) -> None:
    decisions = {d.what: d for d in run(method, 8).decisions}
    wanted = SHARED | DECIDED[method]
    assert wanted <= set(decisions)
    for what in wanted:
        assert decisions[what].rule
        assert decisions[what].source
        assert decisions[what].because, what


@given(
    method=st.sampled_from(sorted(DECIDED)),
    batch=st.integers(2, 4096),
    cases=st.integers(1, 400_000),
    steps=st.integers(20, 500_000),
)
@settings(max_examples=150, deadline=None)
def test_any_batch_and_any_data_give_a_plan_that_agrees_with_itself(
    method: str, batch: int, cases: int, steps: int
) -> None:
    settled = run(method, batch, cases, steps)
    chosen: Any = settled.method
    assert settled.training.batch_size == batch
    assert settled.training.accumulation == 1
    assert 0 < settled.training.lr < 1
    if "prototypes" in type(chosen).model_fields:
        rows = batch * settled.views.global_count
        assert chosen.prototypes & (chosen.prototypes - 1) == 0, "a power of two"
        assert 256 <= chosen.prototypes <= 65_536
        assert chosen.prototypes <= MOST_PROTOTYPES_PER_SCAN * batch
        if chosen.targets == "sinkhorn":
            oldest = rows * round(1 / (1 - chosen.teacher_momentum))
            assert chosen.queue == min(max(0, min(chosen.prototypes, 2048) - rows), oldest), "a row per prototype"
        else:
            assert chosen.queue == 0
        assert (chosen.koleo_weight > 0) <= (batch >= 4)
        assert batch not in range(4, 64) or chosen.koleo_weight > 0, "nothing else tells few scans apart"
        assert 0 <= chosen.center_momentum <= 0.9
    if "teacher_momentum" in type(chosen).model_fields:
        assert 0.9 <= chosen.teacher_momentum <= 0.9999 <= chosen.teacher_momentum_end
    if method == "lejepa":
        assert 0.05 <= chosen.sigreg_weight <= 0.5
    # Decisions say what the run does, and the plan of a plan is itself.
    told = {d.what: d.value for d in settled.decisions}
    for what, field in (
        ("prototypes K", "prototypes"),
        ("queue of outputs", "queue"),
        ("targets", "targets"),
        ("weight of KoLeo", "koleo_weight"),
        ("teacher momentum", "teacher_momentum"),
        ("weight of the Gaussian term", "sigreg_weight"),
        ("weight of the next scan", "inter_weight"),
        ("contrastive temperature", "temperature"),
    ):
        assert (what in told) == (field in type(chosen).model_fields)
        assert what not in told or told[what] == str(getattr(chosen, field))


def test_what_the_user_set_is_said_to_be_the_users() -> None:
    asked: dict[str, Any] = {
        "method.teacher_temperature": 0.07,
        "method.teacher_momentum": 0.0,
        "method.targets": "sinkhorn",
    }
    settled = run("dino", 8, **asked)
    decisions = {d.what: d for d in settled.decisions}
    assert decisions["teacher temperature"].value == "0.07"
    assert decisions["teacher momentum"].value == "0.0", "the smallest that its settings accept"
    assert decisions["targets"].value == "sinkhorn"
    for what in ("teacher temperature", "teacher momentum", "targets"):
        assert decisions[what].source == "set by the user"
    assert decisions["queue of outputs"].value == "16", "of a teacher that is the student, the step before"


def test_queue_holds_no_rows_of_a_teacher_that_is_gone() -> None:
    def queue(steps: int, **overrides: Any) -> Any:
        chosen: Any = run("dinov2", 8, steps=steps, **overrides).method
        return chosen.queue

    # 16 rows per step, 512 prototypes; the teacher renews itself 20 times within a short run.
    assert [queue(steps) for steps in (200, 400, 10_000)] == [16 * 10, 16 * 20, 512 - 16]
    assert queue(200, **{"method.teacher_momentum": 0.95}) == 16 * 20
    assert queue(200, **{"method.teacher_momentum": 1.0}) == 512 - 16, "a teacher that stands still"
    assert queue(200, **{"method.queue": 300}) == 300, "as asked"
    told = {d.what: d for d in run("dinov2", 8, steps=200).decisions}["queue of outputs"]
    assert "teacher momentum 0.9" in told.because
    assert "1 / (1 - teacher momentum)" in told.rule
    assert "measured" in told.source


def test_centre_follows_the_teacher_that_the_user_asked_for() -> None:
    def centre(teacher: float) -> Any:
        asked: dict[str, Any] = {"method.teacher_momentum": teacher}
        chosen: Any = run("dino", 8, **asked).method
        return chosen.center_momentum

    # A centre at .9 beside a teacher at .9 lets all outputs fall on one prototype; a teacher at 1 stands still.
    assert [centre(1.0), centre(0.9)] == [0.9, 0.0]
