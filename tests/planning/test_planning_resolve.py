"""Tests of resolve: batch, prototypes, rates and length for invented plans and machines."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import numpy as np
import pytest
from planning_examples import GPU, LAPTOP, fingerprint

from headctssl.errors import UsageError
from headctssl.loading.draws import frame_of
from headctssl.loading.sampler import steps_per_epoch
from headctssl.methods import METHODS, method_class
from headctssl.planning.machine import Machine
from headctssl.planning.planner import make_plans
from headctssl.planning.plans import Plans
from headctssl.planning.resolve import print_decisions, resolve
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import pair_refusal


def plans(profile: Literal["real", "clinical", "laptop"] = "real", cases: int = 1000, slices: float = 1.0) -> Plans:
    return make_plans(fingerprint(profile=profile, cases=cases, slices=(slices,)))


def run(
    method: str = "dino",
    *,
    plan: Plans | None = None,
    machine: Machine = LAPTOP,
    config: str | None = None,
    cases: int = 1000,
    overrides: dict[str, Any] | None = None,
    **more: Any,
) -> RunSettings:
    kind = method_class(method)
    return resolve(
        (plan or plans(cases=cases),),
        method_name=method,
        method_settings=kind.Settings,
        optimizer=kind.optimizer_defaults,
        config=config,
        overrides=overrides or {},
        machine=machine,
        num_train_cases=cases,
        **more,
    )


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (method, config)
        for method in sorted(METHODS)
        for config in ("vit_test", "resenc_test", "headct_foundation", "resenc_l")
        if pair_refusal(method, config) is None
    ],
)
def test_every_method_resolves_on_every_kind(method: str, config: str) -> None:
    settings = run(method, config=config)
    assert settings.config == config
    assert settings.estimate.step_seconds > 0
    for local, full, token in zip(
        settings.views.local_shape, settings.input.shape, settings_token(settings), strict=True
    ):
        assert local <= full
        assert local % token == 0
    assert all(d.because and d.rule and d.source for d in settings.decisions)


def settings_token(settings: RunSettings) -> tuple[int, int, int]:
    from headctssl.networks import build_from_settings

    if settings.config == "headct_foundation":
        return (12, 12, 12)
    if settings.config == "resenc_l":
        return (32, 32, 32)
    return build_from_settings(settings.encoder).token_size


def test_resolve_is_pure_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(), run()
    assert first == second
    print_decisions(first)
    out = capsys.readouterr().out
    assert "prototypes K" in out
    assert "estimate:" in out


def test_the_laptop_gets_the_smallest_encoder_and_a_batch_of_eight() -> None:
    settings = run("mae")
    assert settings.config == "vit_tiny"
    assert settings.training.batch_size == 8
    assert settings.training.precision == "bf16"
    assert settings.training.num_workers == 1


def test_the_preset_grows_with_the_scans_on_a_gpu() -> None:
    chosen = [run(machine=GPU, cases=n).config for n in (100, 1_000, 20_000, 300_000)]
    assert chosen == ["vit_tiny", "vit_s", "vit_b", "vit_l"]


def test_few_scans_give_a_small_batch() -> None:
    assert run(cases=2).training.batch_size == 2
    assert run(cases=1).training.batch_size == 1


def test_prototypes_follow_the_batch() -> None:
    at = {b: run(machine=GPU, cases=50_000, overrides={"training.batch_size": b}) for b in (8, 64, 256, 1024)}
    counts = [getattr(s.method, "prototypes", None) for s in at.values()]
    assert counts == [512, 4096, 16_384, 65_536]
    assert getattr(run(cases=20).method, "prototypes", None) == 512


def test_small_batches_get_a_queue_and_more_weight_on_the_gaussian_term() -> None:
    def of(method: str, batch: int, **overrides: Any) -> Any:
        return run(method, machine=GPU, overrides={"training.batch_size": batch, **overrides}).method

    assert of("dinov2", 8).prototypes == 512
    assert of("dinov2", 8).queue == 512 - 16
    assert of("dinov2", 256).queue == 2048 - 512, "never more rows than were trained with"
    assert of("dinov2", 8, **{"method.targets": "centring"}).queue == 0
    assert of("dino", 8).queue == 0, "centring needs none"
    assert of("dino", 8, **{"method.targets": "sinkhorn"}).queue == 512 - 16
    assert [of("dino", batch).koleo_weight for batch in (2, 8, 32, 64)] == [0.0, 0.1, 0.1, 0.0]
    assert of("dino", 8, **{"method.koleo_weight": 0.0}).koleo_weight == 0.0, "as asked"
    assert of("dino", 32, **{"training.accumulation": 2}).koleo_weight == 0.0, "it would forbid accumulation"
    assert of("dinov2", 8, **{"method.queue": 64}).queue == 64
    assert [of("dinov2", batch).koleo_weight for batch in (2, 4, 64)] == [0.0, 0.1, 0.1]
    assert of("dinov2", 8, **{"method.koleo_weight": 0}).koleo_weight == 0.0
    assert [of("lejepa", batch).sigreg_weight for batch in (8, 64, 256, 1024)] == [0.5, 0.174, 0.05, 0.05]
    assert of("lejepa", 8, **{"method.sigreg_weight": 0.0}).sigreg_weight == 0.0
    assert [of("voco", batch).inter_weight for batch in (1, 2, 64)] == [0.0, 1.0, 1.0]
    assert of("voco", 8, **{"method.inter_weight": 0.5}).inter_weight == 0.5


def test_too_many_prototypes_are_refused_with_the_alternative() -> None:
    with pytest.raises(UsageError) as error:
        run(overrides={"training.batch_size": 16, "method.prototypes": 65_536})
    assert "method.prototypes=1024" in error.value.message
    assert "training.batch_size=128" in error.value.message
    allowed = run(machine=GPU, overrides={"training.batch_size": 256, "method.prototypes": 65_536})
    assert getattr(allowed.method, "prototypes", None) == 65_536


def test_accumulation_where_the_memory_asks_for_it_and_refused_when_coupled() -> None:
    small = GPU.model_copy(update={"memory_gb": 8.0})
    settings = run("mae", machine=small, config="vit_b", overrides={"training.batch_size": 64})
    assert settings.training.accumulation > 1
    assert 64 % settings.training.accumulation == 0
    with pytest.raises(UsageError, match="cannot be accumulated"):
        run("mae", machine=small, config="vit_b", overrides={"training.batch_size": 64}, batch_coupled=True)
    with pytest.raises(UsageError, match="divided into so many passes"):
        run("mae", overrides={"training.batch_size": 8, "training.accumulation": 3})


def test_the_batch_must_be_shared_evenly() -> None:
    with pytest.raises(UsageError, match="shared evenly"):
        run(overrides={"training.batch_size": 9}, world_size=2)
    assert run(world_size=2).training.batch_size % 2 == 0


@pytest.mark.parametrize("machine", [GPU, LAPTOP], ids=["gpu", "cpu"])
@pytest.mark.parametrize("cases", [3, 60, 1000, 50_000])
def test_more_processes_share_a_batch_and_do_not_multiply_it(machine: Machine, cases: int) -> None:
    alone = run("mae", machine=machine, cases=cases).training.batch_size
    most = 8 if machine.is_cpu else max(8, min(256, cases // 4))
    for processes in (1, 2, 3, 8, 16):
        size = run("mae", machine=machine, cases=cases, world_size=processes).training.batch_size
        assert size <= max(most, processes)
        assert size >= min(alone, most // 2, cases - cases % processes)


def test_the_rate_is_scaled_and_said() -> None:
    settings = run(overrides={"training.batch_size": 64}, machine=GPU)
    assert settings.training.lr == pytest.approx(5e-4 * (64 / 256) ** 0.5, rel=1e-2)
    assert run("mae", config="resenc_test").training.lr == pytest.approx(1e-2)
    mine = run(overrides={"training.lr": 0.123})
    assert mine.training.lr == 0.123
    assert next(d for d in mine.decisions if d.what == "learning rate").source == "set by the user"


def test_both_lengths_are_an_error_and_epochs_become_steps() -> None:
    with pytest.raises(UsageError, match="given twice"):
        run(overrides={"training.num_steps": 5, "training.num_epochs": 1})
    settings = run(overrides={"training.num_epochs": 2, "training.batch_size": 8})
    assert settings.training.num_steps == 500
    assert settings.training.samples_per_epoch == 2000
    few = {"training.samples_per_epoch": 20, "training.batch_size": 8}
    uneven = run(overrides={"training.num_epochs": 10, **few})
    assert uneven.training.num_steps == 10 * steps_per_epoch(20, 8) == 30
    assert run(overrides={"training.num_epochs": 0.5, **few}).training.num_steps == 2


@pytest.mark.parametrize("profile", ["clinical", "laptop"])
def test_phantoms_take_ten_minutes_at_most_by_the_estimate(profile: Literal["clinical", "laptop"]) -> None:
    assert run(plan=plans(profile)).estimate.hours <= 10 / 60 + 1e-9


def test_real_data_take_a_day_at_most_and_the_sample_budget() -> None:
    assert run(cases=50_000).estimate.hours <= 24
    quick = run("mae", machine=GPU, cases=1_000)
    assert quick.training.num_steps * quick.training.batch_size <= 1_000_000


def test_teacher_momentum_follows_batch_and_length() -> None:
    long = run(machine=GPU, cases=20_000, overrides={"training.num_steps": 100_000, "training.batch_size": 64})
    assert getattr(long.method, "teacher_momentum", None) == pytest.approx(0.994**0.25, abs=1e-4)
    short = run(overrides={"training.num_steps": 300})
    assert getattr(short.method, "teacher_momentum", None) == pytest.approx(1 - 20 / 300, abs=1e-4)
    predicted = run("jepa", overrides={"training.num_steps": 300, "training.batch_size": 8}).method
    assert getattr(predicted, "teacher_momentum", None) == pytest.approx(1 - 1 / 300, abs=1e-5), "tokens need rest"


def test_the_centre_moves_faster_than_the_teacher() -> None:
    for steps in (60, 300, 2_000, 100_000):
        method = run(overrides={"training.num_steps": steps}).method
        teacher, center = getattr(method, "teacher_momentum", 0.0), getattr(method, "center_momentum", 1.0)
        assert 0 <= center <= 0.9
        assert center == 0 or 1 - center >= (0.1 / 0.006) * (1 - teacher) - 1e-3
    given = run(overrides={"method.center_momentum": 0.5})
    assert getattr(given.method, "center_momentum", None) == 0.5


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"training.batchsize": 8}, "batch_size"),
        ({"trainng.batch_size": 8}, "training"),
        ({"batch_size": 8}, "setting"),
        ({"training.batch_size": "many"}, "whole number|integer"),
        ({"training.batch_size": 0}, "whole number|greater"),
        ({"views.local_countt": 1}, "local_count"),
        ({"method.prototype": 5}, "prototypes"),
        ({"encoder.patch": [8, 8, 8]}, "decided by the plans"),
        ({"encoder.in_channels": 1}, "decided by the plans"),
        ({"monitor.evry": 1}, "every"),
        ({"training.lr": -1}, "greater than 0|above 0"),
        ({"training.clip_norm": 0}, "clip_norm(.|\n)*greater than 0"),
        ({"training.clip_norm": -1.0}, "clip_norm(.|\n)*greater than 0"),
        ({"training.betas": [1.5, 0.9]}, "betas(.|\n)*below 1"),
        ({"training.betas": [0.9, 1.0]}, "betas(.|\n)*below 1"),
        ({"training.num_steps": 20, "training.warmup_steps": 21}, "longer than the run"),
        ({"training.lr": 1e-3, "training.min_lr": 1e-2}, "above the peak"),
    ],
)
def test_wrong_settings_are_errors_that_name_them(overrides: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        run(overrides=overrides)


@pytest.mark.parametrize(
    ("method", "field", "uses"),
    [
        ("mae", "local_count", "views.global_count$"),
        ("simclr", "local_count", "views.global_count$"),
        ("dino", "base_grid", "views.global_count, views.local_count$"),
        ("voco", "global_count", "views.local_count, views.base_grid$"),
    ],
)
def test_views_that_a_method_does_not_have_are_refused(method: str, field: str, uses: str) -> None:
    with pytest.raises(UsageError, match=rf"views\.{field}' has no effect with {method}") as caught:
        run(method, overrides={f"views.{field}": 3})
    assert re.search(uses, caught.value.expected or "")
    assert getattr(run(method, overrides={f"views.{field}": 0}).views, field) == 0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_views_of_every_method_can_be_set(method: str) -> None:
    own = run(method).views
    counts = {f"views.{name}": getattr(own, name) for name in ("global_count", "local_count", "base_grid")}
    assert run(method, overrides={name: count for name, count in counts.items() if count}).views == own


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="vit_tiny"):
        run(config="vit_huge")
    with pytest.raises(UsageError, match="no case to train on"):
        run(cases=0, plan=plans())


def test_user_settings_reach_every_section() -> None:
    settings = run(
        "mae",
        config="vit_test",
        overrides={
            "views.flip_lr": True,
            "encoder.registers": 4,
            "method.mask_ratio": 0.5,
            "monitor.every": 7,
            "training.seed": 0,
            "training.clip_norm": None,
            "training.warmup_steps": 0,
        },
    )
    assert settings.views.flip_lr
    assert getattr(settings.encoder, "registers", None) == 4
    assert getattr(settings.method, "mask_ratio", None) == 0.5
    assert settings.monitor.every == 7
    assert settings.training.clip_norm is None
    assert settings.training.warmup_steps == 0
    edge = run(
        overrides={"training.num_steps": 9, "training.warmup_steps": 9, "training.lr": 1.0, "training.min_lr": 1}
    )
    assert (edge.training.warmup_steps, edge.training.min_lr) == (9, 1)


def test_read_shape_is_the_field_of_view_but_no_more_than_the_cases() -> None:
    free = run(config="vit_b", machine=GPU)
    field = [round(n * s) for n, s in zip(free.input.shape, free.input.spacing_mm, strict=True)]
    assert all(abs(a - b) <= 1 for a, b in zip(free.read_shape, field, strict=True))
    case, small = (100, 400, 90), (80, 90, 70)
    assert run(config="vit_b", max_case_shape=case, max_head_shape=small).read_shape == (100, free.read_shape[1], 90)
    assert run(config="headct_foundation", max_case_shape=(300, 310, 90)).read_shape == (300, 310, 90)


@pytest.mark.parametrize("head_mm", [(150.0, 170.0, 130.0), (260.0, 200.0, 150.0), (190.0, 290.0, 200.0)])
def test_the_read_shape_covers_what_the_largest_head_shows(head_mm: tuple[float, float, float]) -> None:
    first = run(config="vit_b")
    spacing = first.storage.spacing_mm
    head = tuple(round(mm / s) for mm, s in zip(head_mm, spacing, strict=True))
    settings = run(config="vit_b", max_case_shape=(400, 400, 400), max_head_shape=head)
    frame = frame_of(np.array([(20, 20 + n) for n in head]), np.array(spacing), settings.input)
    assert settings.read_shape == tuple(math.ceil(side - 1e-6) for side in frame[:, 1] - frame[:, 0])
    case = tuple(n + 4 for n in head)
    bounded = run(config="vit_b", max_case_shape=case, max_head_shape=head).read_shape
    assert bounded == tuple(min(a, b) for a, b in zip(case, settings.read_shape, strict=True))
    because = next(d for d in settings.decisions if d.what == "read shape").because
    assert ("for the largest head" in because) == (settings.read_shape != first.read_shape)
    # Without the sizes of the heads, those of the cases stand for them.
    alone = run(config="vit_b", max_case_shape=case).read_shape
    assert all(bound <= side <= most for bound, side, most in zip(bounded, alone, case, strict=True))


def test_the_first_storage_rule_holds_for_several_datasets() -> None:
    kind = method_class("mae")
    settings = resolve(
        (plans(), plans(slices=5.0)),
        method_name="mae",
        method_settings=kind.Settings,
        optimizer=kind.optimizer_defaults("transformer"),
        config=None,
        overrides={},
        machine=LAPTOP,
        num_train_cases=10,
    )
    assert settings.storage == plans().storage
    assert any(d.what == "storage" for d in settings.decisions)
