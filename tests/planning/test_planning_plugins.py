"""Tests of planning beside other packages' encoders: one that cannot be used stops no plan."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

import pytest
from planning_examples import fingerprint

from headctssl import plugins, presets
from headctssl.families import FamilySettings, ForwardCost
from headctssl.planning.planner import make_plans
from headctssl.presets import ENCODER_PRESETS, EncoderPreset


class BlockSettings(FamilySettings):
    """A family of another package."""

    kind: ClassVar[Literal["transformer", "cnn"]] = "cnn"
    thin_tokens: ClassVar[bool] = False
    family: Literal["block", "torn"] = "block"

    @property
    def token_size(self) -> tuple[int, int, int]:
        return (4, 4, 4)

    @property
    def embed_dim(self) -> int:
        return 8

    def forward_cost(self, shape: tuple[int, int, int]) -> ForwardCost:
        if self.family == "torn":
            raise RuntimeError("no cost today")
        return ForwardCost(1.0, 1.0, 1.0, 1.0)


class Block:
    """An encoder that works."""

    Settings = BlockSettings
    presets = (EncoderPreset("block_s", BlockSettings(), "fixed_spacing", "x"),)


class Torn:
    """An encoder whose cost cannot be asked for."""

    Settings = BlockSettings
    presets = (EncoderPreset("torn_s", BlockSettings(family="torn"), "fixed_spacing", "x"),)


def test_a_broken_package_does_not_stop_planning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = {"lost": "nowhere.at.all:Lost", "torn": f"{__name__}:Torn", "block": f"{__name__}:Block"}
    points = [EntryPoint(name, target, plugins.ENCODER_GROUP) for name, target in targets.items()]
    caches = (plugins.find_plugins, plugins._say_left_out, presets.encoder_presets)
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == plugins.ENCODER_GROUP else [])
    for cached in caches:
        cached.cache_clear()
    try:
        plans = make_plans(fingerprint(), gpu_memory=8.0)
    finally:
        for cached in caches:
            cached.cache_clear()
    assert [plan.preset for plan in plans.configurations] == [*ENCODER_PRESETS, "block_s"]
    lost, torn = capsys.readouterr().err.splitlines()
    assert lost.startswith("warning: 'lost' of the package")
    assert "ModuleNotFoundError" in lost
    assert torn.startswith("warning: 'torn' of the package")
    assert torn.endswith("RuntimeError: no cost today")
