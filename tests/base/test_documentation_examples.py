"""Documentation examples: the how-to pages show the example package as it is, and its classes work."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from headctssl import methods, plugins, presets
from headctssl.contract import InputSpec, StorageRule, Window
from headctssl.methods import method_class
from headctssl.networks import build_encoder
from headctssl.planning.budget import estimate
from headctssl.planning.relative_cost import REFERENCE
from headctssl.planning.run_settings import Estimate, RunSettings, TrainingSettings, ViewSettings
from headctssl.presets import encoder_preset, pair_refusal
from headctssl.types import Clock, Views

DOCUMENTATION = Path(__file__).parents[2] / "documentation"
EXAMPLE = DOCUMENTATION / "examples" / "headctssl-example"
PAGES = [DOCUMENTATION / "how-to" / name for name in ("add-a-method.md", "add-an-encoder.md")]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package as if it were installed; `make evidence` installs it."""
    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]

    def found(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in groups[group].items()]

    caches = (plugins.find_plugins, presets.encoder_presets, presets.all_method_facts, methods._methods)
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setattr(plugins, "entry_points", found)
    for cached in caches:
        cached.cache_clear()  # type: ignore[attr-defined]  # functools.cache
    yield
    for cached in caches:
        cached.cache_clear()  # type: ignore[attr-defined]  # functools.cache
    for name in [name for name in sys.modules if name.startswith("headctssl_example")]:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_show_the_files_of_the_example(page: Path) -> None:
    shown = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert shown
    for name, text in shown:
        assert text == (EXAMPLE / name).read_text(encoding="utf-8"), f"{page.name} shows another {name}"


def test_the_method_is_forty_lines() -> None:
    lines = (EXAMPLE / "headctssl_example" / "denoise.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def run_of(preset: str) -> RunSettings:
    shape = (16, 24, 16)
    return RunSettings(
        dataset_ids=(1,),
        method_name="denoise",
        config=preset,
        storage=StorageRule(),
        input=InputSpec(
            rule="fixed_spacing", shape=shape, spacing_mm=(1, 1, 1), windows=(Window(level=40, width=80),) * 3
        ),
        encoder=encoder_preset(preset).settings,
        read_shape=shape,
        training=TrainingSettings(num_steps=10, samples_per_epoch=10, batch_size=2, lr=1e-3),
        views=ViewSettings(global_count=1),
        method=method_class("denoise").Settings(),
        estimate=Estimate(step_seconds=0, scans_per_second=0, memory_gb=0, hours=0),
        decisions=(),
    )


@pytest.mark.parametrize("preset", ["strided_s", "resenc_test", "vit_test"])
def test_the_method_learns_and_repeats_itself(preset: str, example: None) -> None:
    assert pair_refusal("denoise", preset) is None
    run = run_of(preset)
    if preset == "vit_test":  # its patch of 6 does not divide the shape
        run = run.model_copy(update={"input": run.input.model_copy(update={"shape": (24, 24, 24)})})
    torch.manual_seed(0)
    method = method_class("denoise")(run.method)
    method.build(build_encoder(preset), run)
    volume = torch.rand(2, 3, *run.input.shape)
    inside = torch.ones_like(volume[:, :1])
    inside[:, :, :4] = 0
    views = Views({"global": (volume,)}, {"global": (inside,)}, torch.arange(2), seed=0, epoch=0)
    first = method.training_step(views, Clock(0, 10, 0, 5)).loss
    assert torch.equal(first, method.training_step(views, Clock(0, 10, 0, 5)).loss)
    first.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        loss = method.training_step(views, Clock(0, 10, 0, 5)).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * first


def test_the_encoder_takes_masks_and_is_estimated(example: None) -> None:
    encoder = build_encoder("strided_s", width=16).eval()
    volume = torch.rand(1, 3, 16, 24, 32)
    mask = torch.zeros(1, 2, 3, 4, dtype=torch.bool)
    mask[0, 1, 2, 3] = True
    blank = volume.clone()
    blank[:, :, 8:, 16:, 24:] = 0
    assert torch.equal(encoder(volume, mask).tokens, encoder(blank).tokens)
    assert encoder(volume).grid == (2, 3, 4)
    run = run_of("strided_s")
    cost = estimate(
        encoder=run.encoder,
        input_spec=run.input,
        views=run.views,
        training=run.training,
        method_name="denoise",
        method=run.method,
        read_shape=run.read_shape,
        machine=REFERENCE,
    )
    assert 0 < cost.step_seconds < 1
