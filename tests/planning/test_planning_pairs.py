"""Pairs of method and encoder: every one resolves or is refused by name, and the choice of a preset knows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_examples import GPU, LAPTOP, fingerprint

from headctssl.errors import UsageError
from headctssl.methods import METHODS, method_class
from headctssl.planning.planner import make_plans
from headctssl.planning.plans import Plans
from headctssl.planning.resolve import resolve
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import ENCODER_PRESETS, METHOD_FACTS, encoder_preset, pair_refusal


@pytest.fixture(scope="module")
def plans() -> Plans:
    return make_plans(fingerprint(cases=1000, slices=(1.0,)))


def run(plans: Plans, method: str, config: str | None, kind: str = "mae", cases: int = 1000) -> RunSettings:
    found = method_class(method if method in METHODS else kind)
    return resolve(
        (plans,),
        method_name=method,
        method_settings=found.Settings,
        optimizer=found.optimizer_defaults,
        config=config,
        overrides={},
        machine=LAPTOP if config else GPU,
        num_train_cases=cases,
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_resolves_or_is_refused_with_the_reason(method: str, plans: Plans) -> None:
    for preset in ENCODER_PRESETS:
        refusal = pair_refusal(method, preset)
        if refusal is None:
            settings = run(plans, method, preset)
            assert settings.estimate.step_seconds > 0, preset
            assert settings.estimate.memory_gb > 0, preset
            continue
        with pytest.raises(UsageError) as caught:
            run(plans, method, preset)
        told = str(caught.value)
        assert f"-m {method} -c {preset}" in told
        assert METHOD_FACTS[method].why_families in told
        assert "--list" in told


@pytest.mark.parametrize("method", METHODS)
def test_the_facts_of_a_method_fit_each_other(method: str) -> None:
    facts = METHOD_FACTS[method]
    assert facts.paper, "the paper that the objective comes from"
    assert facts.smallest_batch >= 1
    assert pair_refusal(method, facts.default_preset) is None
    assert bool(facts.why_families) == (facts.families is not None), "a refusal needs its reason"
    assert {group for group, _ in facts.student_views} <= {"global", "local", "base"}
    families = {preset.settings.family for preset in ENCODER_PRESETS.values()}
    assert set(facts.families or ()) <= families


@pytest.mark.parametrize("method", METHODS)
def test_without_c_the_chosen_encoder_is_never_one_that_is_refused(method: str, plans: Plans) -> None:
    for cases in (10, 2_000, 300_000):
        assert pair_refusal(method, run(plans, method, None, cases=cases).config) is None


def test_a_method_that_works_with_no_rung_of_the_ladder_gets_its_published_encoder(
    plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = next(p.name for p in ENCODER_PRESETS.values() if p.settings.family == "unet3d")
    facts = replace(METHOD_FACTS["mae"], name="only", default_preset=published, families=("unet3d",))
    monkeypatch.setitem(METHOD_FACTS, "only", replace(facts, why_families="it needs a plain U-Net."))
    assert run(plans, "only", None).config == published
    with pytest.raises(UsageError, match="it needs a plain U-Net"):
        run(plans, "only", "vit_s")


def test_plans_made_before_an_encoder_was_there_say_how_to_plan_for_it(plans: Plans) -> None:
    name = plans.configurations[-1].preset
    older = plans.model_copy(update={"configurations": plans.configurations[:-1]})
    assert encoder_preset(name)
    with pytest.raises(UsageError, match=rf"(?s)no configuration for '{name}'.*--replan"):
        run(older, "mae", name)
    with pytest.raises(UsageError, match="Unknown configuration 'vit_huge'"):
        run(older, "mae", "vit_huge")
