"""Tests of step 15: how often a run is looked at, and by how many cases, stays within its share of the time."""

from __future__ import annotations

import pytest
from planning_examples import GPU, LAPTOP, fingerprint

from headctssl.methods import method_class
from headctssl.planning.machine import Machine
from headctssl.planning.planner import make_plans
from headctssl.planning.resolve import resolve
from headctssl.planning.resolve_monitor import MOST_CASES, PROBE_SHARE
from headctssl.planning.run_settings import RunSettings


def run(
    method: str = "dino", machine: Machine = LAPTOP, labelled: int = 500, steps: int = 5000, **overrides: object
) -> RunSettings:
    kind = method_class(method)
    given = {name.replace("_", ".", 1): value for name, value in overrides.items()}
    return resolve(
        (make_plans(fingerprint(cases=1000, slices=(1.0,))),),
        method_name=method,
        method_settings=kind.Settings,
        optimizer=kind.optimizer_defaults,
        config="vit_tiny",
        overrides={"training.num_steps": steps, **given},  # type: ignore[dict-item]  # values of settings
        machine=machine,
        num_train_cases=1000,
        num_labelled=labelled,
        why_unlabelled="" if labelled else "Set 1 has no binary labels",
    )


def because(settings: RunSettings, what: str) -> str:
    return next(d.because for d in settings.decisions if d.what == what)


@pytest.mark.parametrize("machine", [LAPTOP, GPU], ids=["laptop", "gpu"])
@pytest.mark.parametrize("method", ["dino", "mae"])
@pytest.mark.parametrize("steps", [20, 200, 2000, 20_000, 200_000])
def test_probes_take_no_more_than_their_share(machine: Machine, method: str, steps: int) -> None:
    settings = run(method, machine, steps=steps)
    monitor = settings.monitor
    assert monitor.every <= steps
    if not monitor.probe_cases:
        assert "is too little for 3" in because(settings, "probe cases")
        return
    each = float(because(settings, "steps between probes").removeprefix("a probe takes about ").removesuffix(" s"))
    probes = 1 + -(-steps // monitor.probe_every)
    assert probes >= 3
    assert probes * each <= PROBE_SHARE * settings.estimate.step_seconds * steps * 1.1  # `each` is rounded
    assert monitor.probe_every % monitor.every == 0 or monitor.probe_every == steps


def test_a_longer_run_gets_more_cases_and_more_probes() -> None:
    runs = [run(steps=steps).monitor for steps in (20, 400, 2000, 200_000)]
    assert [m.probe_cases for m in runs] == sorted(m.probe_cases for m in runs)
    assert runs[0].probe_cases == 0
    assert runs[-1].probe_cases == MOST_CASES
    assert 200_000 / runs[-1].probe_every == pytest.approx(39, abs=1.1)


def test_the_user_decides() -> None:
    settings = run(steps=20, monitor_probe_cases=64, monitor_probe_every=5, monitor_every=3)
    assert (settings.monitor.probe_cases, settings.monitor.probe_every, settings.monitor.every) == (64, 5, 3)
    assert "you set it" in because(settings, "probe cases")
    assert run(steps=200_000, monitor_probe_cases=0).monitor.probe_cases == 0


def test_without_labels_there_are_none_and_why_is_said() -> None:
    settings = run(labelled=0, steps=200_000)
    assert settings.monitor.probe_cases == 0
    assert because(settings, "probe cases") == "Set 1 has no binary labels"
    assert run(labelled=20, steps=200_000).monitor.probe_cases == 0, "too few to say anything"
