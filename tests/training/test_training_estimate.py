"""Estimate: measured here, modelled for a GPU that is not here, and changes that do make a run fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dying_measure
import pytest
import torch
from training_helpers import TINY

from headctssl.errors import UsageError
from headctssl.planning.gpu_model import modelled_gpu
from headctssl.planning.plans import Plans
from headctssl.planning.relative_cost import REFERENCE
from headctssl.settings import parse_overrides, read_json, write_json
from headctssl.training import estimate as estimating
from headctssl.training import measure as measuring
from headctssl.training.estimate import estimate, plan_run
from headctssl.training.estimate_report import EstimateReport
from headctssl.training.estimate_target import choose_target
from headctssl.training.measure import Measured, measure, steps_to_measure
from headctssl.training.pretrain_call import Request, open_request, resolve_request
from headctssl.training.pretrain_data import PretrainData

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def large(dataset: Path) -> Path:
    """Dataset 1 as if it had been planned for large encoders of 96 x 96 x 96 voxels."""
    plans = read_json(dataset / "plans.json", Plans)
    shape = plans.configurations[0].input.model_copy(update={"shape": (96, 96, 96), "spacing_mm": (2.0, 2.0, 2.0)})
    tokens = {"vit_tiny": 12, "vit_s": 12, "vit_b": 12, "vit_l": 12, "resenc_s": 8, "resenc_l": 32}
    configurations = tuple(
        plans.configurations[0].model_copy(update={"preset": name, "input": shape, "token_size": (side,) * 3})
        for name, side in tokens.items()
    )
    write_json(dataset / "plans.json", plans.model_copy(update={"configurations": configurations, "profile": "real"}))
    return dataset


def test_a_few_steps_are_measured_and_nothing_is_left(
    dataset: Path, roots: Path, tmp_path: Path, command: Command
) -> None:
    sets = [word for text in TINY for word in ("--set", text)]
    small = ["--set", "method.decoder_width=48", "--set", "method.decoder_heads=3"]
    code, out, err = command(
        "estimate", "-d", 1, "-m", "mae", "-c", "vit_test", "--device", "cpu", *sets, *small, "-o", tmp_path / "e.json"
    )
    assert code == 0, err
    report = read_json(tmp_path / "e.json", EstimateReport)
    assert report.measured_steps >= 3
    assert 0.1 < report.memory_gb < 4  # of the measuring process, whatever this one holds
    assert report.step_seconds > 0
    assert report.scans_per_second == pytest.approx(report.batch_size / report.step_seconds)
    assert report.hours == pytest.approx(report.step_seconds * 6 / 3600)
    assert report.gpu_hours is None
    assert report.fits
    assert "measured over" in out
    assert not any((roots / "results").iterdir())
    text = (tmp_path / "e.json").read_text()
    assert "SECRET" not in text
    assert str(roots) not in text


def test_a_gpu_that_is_not_here_is_modelled_and_said_to_be(large: Path, command: Command, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, out, err = command(
        "estimate", "-d", 1, "-m", "mae", "-c", "vit_b", "--gpu_memory", 24, "--gpus", 2, "-o", tmp_path
    )
    assert code == 0, err
    report = read_json(tmp_path / "estimate.json", EstimateReport)
    assert report.measured_steps == 0
    assert "there is no GPU here" in out
    assert "dense bfloat16 peak of 125 TFLOP/s, not measured" in out
    assert report.gpu_hours == pytest.approx(2 * report.hours)
    assert report.batch_size % 2 == 0
    fast = estimate(1, "mae", config="vit_b", gpu_memory=24, gpus=2, gpu_tflops=1000, quiet=True)
    assert fast.modelled.step_seconds < report.modelled.step_seconds
    assert any("1000 TFLOP/s" in text for text in fast.assumptions)


@pytest.mark.parametrize(
    ("method", "config", "memory", "overrides"),
    [
        ("dino", "vit_l", 8.0, ()),  # chosen batch of 1: a smaller encoder or fewer views
        ("simclr", "vit_b", 8.0, ("training.batch_size=64",)),  # coupled: accumulation is refused
        ("dino", "vit_b", 7.0, ("training.batch_size=8", "training.accumulation=1", "training.recompute=false")),
        ("mae", "vit_b", 8.0, ("training.batch_size=64", "training.accumulation=1")),
        ("mae", "vit_l", 24.0, ("training.batch_size=64", "training.accumulation=1", "training.precision=float32")),
        ("mae", "vit_l", 3.0, ("training.precision=float32",)),  # no single change is enough for this encoder
        ("dino", "resenc_l", 6.0, ()),
    ],
)
def test_suggested_changes_make_the_run_fit(
    method: str, config: str, memory: float, overrides: tuple[str, ...], large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "_read_seconds", lambda opened, settings: 0.01)
    options = {"gpu_memory": memory, "gpu_tflops": 125.0, "quiet": True}
    report = estimate(1, method, config=config, overrides=overrides, **options)  # type: ignore[arg-type]
    assert not report.fits
    assert report.why_not
    assert report.suggestions
    for suggestion in report.suggestions:
        changed = estimate(1, method, config=suggestion.config, overrides=suggestion.overrides, **options)  # type: ignore[arg-type]
        assert changed.fits, suggestion.flags
        assert changed.memory_gb == suggestion.memory_gb <= 0.8 * memory
        assert suggestion.flags.startswith(("--set", "-c"))
        asked, changes = parse_overrides(overrides), parse_overrides(suggestion.overrides)
        new = {key for key, value in changes.items() if asked.get(key) != value}
        assert asked.keys() <= changes.keys()
        assert all(f"{key}=" in suggestion.flags for key in new)


def test_a_run_that_does_not_fit_is_estimated_with_the_encoder_it_would_take(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the one that a machine of any memory would take."""
    monkeypatch.setattr(estimating, "_read_seconds", lambda opened, settings: 0.01)
    monkeypatch.setattr(PretrainData, "num_cases", 6000)
    request = Request((1,), "simclr", None, "plans", None, "train", None, ())
    target = choose_target(None, 8.0, 1, 125.0)
    taken = resolve_request(request, open_request(request), target.machine, 1)
    _, settings, why = estimating._planned(replace(request, overrides=("training.batch_size=4096",)), target)
    assert "cannot be accumulated" in why
    assert settings.config == taken.config == "vit_s"
    chosen = [[d for d in one.decisions if d.what == "configuration"] for one in (settings, taken)]
    assert chosen[0] == chosen[1]


def test_what_nothing_can_help_is_said(large: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_read_seconds", lambda opened, settings: 0.01)
    code, out, _ = command("estimate", "-d", 1, "-m", "mae", "-c", "vit_b", "--gpu_memory", 1, "--gpu_tflops", 100)
    assert code == 0
    assert "it takes a larger device" in out


def test_slow_reading_makes_the_run_wait(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_read_seconds", lambda opened, settings: 5.0)
    report = estimate(1, "mae", config="vit_b", gpu_memory=24, gpu_tflops=125, quiet=True)
    per_step = report.batch_size * 5.0 / report.num_workers
    assert report.step_seconds == pytest.approx(per_step)
    assert report.data_wait == pytest.approx(1 - report.modelled.step_seconds / per_step)


def test_a_wrong_call_is_an_error_and_no_estimate(dataset: Path) -> None:
    with pytest.raises(UsageError, match="Unknown method"):
        estimate(1, "meta", quiet=True)
    with pytest.raises(UsageError, match="described for a run on another device"):
        estimate(1, "mae", device="cpu", gpus=2, quiet=True)
    with pytest.raises(UsageError, match="--gpu_memory does not fit"):
        estimate(1, "mae", gpu_memory=-1.0, quiet=True)
    with pytest.raises(UsageError, match=r"training\.nonsense"):
        estimate(1, "mae", config="vit_test", gpu_memory=24, overrides=["training.nonsense=1"], quiet=True)


def test_a_measuring_process_that_is_killed_is_reported(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_run", dying_measure.be_killed)
    settings = plan_run(1, "mae", config="vit_test", device="cpu", overrides=TINY)
    request = Request((1,), "mae", "vit_test", "plans", None, "train", None, TINY)
    found = measure(request, settings, torch.device("cpu"), 3)
    assert found == Measured(out_of_memory=True, failure="the measuring process ended with code -9")
    monkeypatch.setattr(estimating, "measure", lambda *_: found)
    report = estimate(1, "mae", config="vit_test", device="cpu", overrides=TINY, quiet=True)
    assert not report.fits
    assert "memory ran out while measuring" in report.why_not


def test_how_many_steps_are_measured() -> None:
    assert steps_to_measure(0.001) == 12
    assert steps_to_measure(4.0) == 5
    assert steps_to_measure(20.0) == 3
    assert steps_to_measure(100.0) == 0


def test_the_modelled_gpu_is_the_reference_in_proportion() -> None:
    same, _ = modelled_gpu(REFERENCE.memory_gb, 312.0)
    assert same.model_copy(update={"cores": REFERENCE.cores}) == REFERENCE
    half, said = modelled_gpu(24.0, 156.0)
    assert half.matmul_gflops_bf16 == REFERENCE.matmul_gflops_bf16 / 2
    assert half.launch_us == REFERENCE.launch_us
    assert "not measured" in said[0]
