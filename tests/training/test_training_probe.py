"""Probes: their cases are never test cases, they leave the run as it is, and a continued run probes the same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from together import together
from training_helpers import TINY, make_labels, make_stored_dataset

from headctssl.errors import StoppedError
from headctssl.training.checkpoint import load_encoder
from headctssl.training.estimate import plan_run
from headctssl.training.pretrain import pretrain
from headctssl.training.pretrain_data import open_pretrain_data
from headctssl.training.probe_cases import Labelled, choose_probe_cases
from headctssl.training.trainer import Trainer

PROBES = ("monitor.every=2", "monitor.probe_cases=16", "monitor.probe_every=3")
NONE = ("monitor.every=1000", "monitor.probe_cases=0")
Lines = Callable[[Path], list[dict[str, float]]]


@pytest.fixture
def labelled(roots: Path) -> Path:
    """Twenty cases of ten subjects, four cases held out, with a label; returns the roots."""
    make_stored_dataset(roots / "preprocessed", num_cases=20, test=(16, 17, 18, 19))
    make_labels(roots / "raw", num_cases=20)
    return roots


def train(
    method: str = "dino", config: str = "vit_test", *sets: str, tag: str | None = None, resume: bool = False
) -> Path:
    small = ("method.head_hidden=32",)
    return pretrain(
        1, method, config=config, device="cpu", tag=tag, resume=resume, quiet=True, overrides=(*TINY, *small, *sets)
    )


def content(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Lines without what the clock says."""
    timed = {"seconds", "scans_per_second", "data_wait", "monitor_seconds"}
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def test_probes_are_before_the_first_step_between_and_after_the_last(labelled: Path, lines_of: Lines) -> None:
    folder = train("dino", "vit_test", *PROBES, "monitor.layer_gradients=true", "monitor.views=2")
    lines = lines_of(folder)
    probed = {line["step"]: line for line in lines if "probe_linear_auroc" in line}
    assert list(probed) == [0, 3, 6]
    assert lines[0]["loss"] is None
    assert lines[0]["lr"] == lines[1]["lr"]
    for name in ("knn", "linear", "attentive"):
        for line in probed.values():
            low, value, high = (line.get(f"probe_{name}_auroc{end}", 0.5) for end in ("_low", "", "_high"))
            assert 0 <= low <= high <= 1
            assert 0 <= value <= 1
    assert {"probe_rank_me", "probe_linear_auroc.large", "monitor_seconds"} <= probed[0].keys()
    looked = [line["step"] for line in lines if "monitor_rank_me" in line]
    assert looked == [2, 3, 4, 6]
    last = lines[-1]
    assert {"monitor_teacher_gap", "monitor_directions", "monitor_lidar", "monitor_alignment"} <= last.keys()
    layers = {name: value for name, value in last.items() if name.startswith("gradient_norm.")}
    assert {"gradient_norm.encoder.blocks.0", "gradient_norm.head.mlp.0"} <= layers.keys()
    assert np.sqrt(sum(v**2 for v in layers.values())) == pytest.approx(last["gradient_norm"], rel=1e-4)
    text = (folder / "train.log").read_text()
    assert "are scored on 8 others, of other subjects, none of the test set; labels large" in text
    best = load_encoder(folder / "encoder_probe_best.safetensors")
    assert best.contract is not None
    assert best.contract.method == "dino"


@pytest.mark.parametrize(("method", "config"), [("dino", "vit_test"), ("lejepa", "resenc_test")])
def test_monitors_change_neither_weights_nor_losses(labelled: Path, lines_of: Lines, method: str, config: str) -> None:
    """Also where BatchNorm keeps statistics, in the projector of lejepa."""
    watched, alone = train(method, config, *PROBES, tag="watched"), train(method, config, *NONE, tag="alone")
    assert (watched / "encoder.safetensors").read_bytes() == (alone / "encoder.safetensors").read_bytes()
    states = [torch.load(run / "checkpoint_latest.pt", weights_only=True)["learner"] for run in (watched, alone)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    losses = [[(line["step"], line["loss"]) for line in lines_of(run) if line["step"]] for run in (watched, alone)]
    assert losses[0] == losses[1]


def test_a_stopped_run_goes_on_to_the_same_lines_and_the_same_best_encoder(
    labelled: Path, lines_of: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("dino", "vit_test", *PROBES, tag="whole")
    real = Trainer._clip

    def clip(self: Trainer) -> torch.Tensor:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_clip", clip)
        with pytest.raises(StoppedError):
            train("dino", "vit_test", *PROBES, tag="parted")
    parted = train("dino", "vit_test", *PROBES, tag="parted", resume=True)
    assert content(lines_of(whole)) == content(lines_of(parted))
    for name in ("encoder.safetensors", "encoder_probe_best.safetensors"):
        assert (whole / name).read_bytes() == (parted / name).read_bytes()


def two_processes(*sets: str, tag: str) -> list[dict[str, float]]:
    folder = train("dino", "vit_test", *sets, tag=tag)
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_share_the_cases_and_keep_their_losses(labelled: Path) -> None:
    watched = together(_in_two, ("watched", *PROBES))[0]
    alone = together(_in_two, ("alone", *NONE))[0]
    losses = [[(line["step"], line["loss"]) for line in lines if line["step"]] for lines in (watched, alone)]
    assert losses[0] == losses[1]
    one = two_processes(*PROBES, tag="one")
    for name in ("probe_linear_auroc", "probe_knn_auroc", "probe_attentive_auroc"):
        assert watched[0][name] == pytest.approx(one[0][name], abs=1e-6), "the same encoder, the same cases"


def _in_two(arguments: tuple[str, ...]) -> list[dict[str, float]]:
    tag, *sets = arguments
    return two_processes(*sets, tag=tag)


def test_without_labels_there_are_none_and_why_is_said_once(roots: Path, lines_of: Lines) -> None:
    make_stored_dataset(roots / "preprocessed")
    folder = train("dino", "vit_test")
    text = (folder / "train.log").read_text()
    assert text.count("no probes: the labels of Dataset001_Tiny cannot be read") == 1
    assert not any(name.startswith("probe_") for line in lines_of(folder) for name in line)


def test_test_cases_are_left_out_also_when_all_cases_train(labelled: Path) -> None:
    data = open_pretrain_data((1,), "plans", "all")
    assert data.num_cases == 20
    assert len(data.labelled) == 16
    assert {case for _, case in data.labelled.places}.isdisjoint({f"SECRET{i:03d}" for i in range(16, 20)})


class _Index:
    """As much of an index as the draw asks for."""

    def __init__(self, case_ids: list[str]) -> None:
        self.case_ids = case_ids

    def subset(self, case_ids: set[str]) -> _Index:
        return _Index([case_id for case_id in self.case_ids if case_id in case_ids])


@settings(max_examples=60, deadline=None)
@given(
    subjects=st.lists(st.integers(1, 3), min_size=4, max_size=60),
    rates=st.lists(st.floats(0.02, 0.5), min_size=1, max_size=4),
    count=st.integers(1, 80),
    seed=st.integers(0, 1000),
)
def test_parts_share_no_subject_and_rare_labels_are_found(
    subjects: list[int], rates: list[float], count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    owners = [f"1\x1fP{s}" for s, scans in enumerate(subjects) for _ in range(scans)]
    labels = (rng.random((len(owners), len(rates))) < rates).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    ids = [f"C{i:03d}" for i in range(len(owners))]
    names = tuple(f"L{i}" for i in range(len(rates)))
    found = Labelled(names, tuple((0, case) for case in ids), labels, tuple(owners))
    chosen = choose_probe_cases(found, [_Index(ids)], count)  # type: ignore[list-item]  # as much as it asks for
    again = choose_probe_cases(found, [_Index(ids)], count)  # type: ignore[list-item]  # the same
    kept = chosen.indexes[0].case_ids
    assert kept == again.indexes[0].case_ids
    assert min(count, len(owners)) <= len(kept) <= min(len(owners), count + 2), "whole subjects"
    learning = {owners[ids.index(case)] for case, learns in zip(kept, chosen.learns, strict=True) if learns}
    scored = {owners[ids.index(case)] for case, learns in zip(kept, chosen.learns, strict=True) if not learns}
    assert not learning & scored
    assert set(chosen.names) | set(chosen.left_out) == set(names)
    rows = [ids.index(case) for case in kept]
    assert np.array_equal(chosen.labels, labels[rows][:, [names.index(n) for n in chosen.names]], equal_nan=True)
    for column in range(len(chosen.names)):
        for side in (chosen.learns, ~chosen.learns):
            values = chosen.labels[side, column]
            assert (values > 0.5).sum() >= 2
            assert (values <= 0.5).sum() >= 2


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    ids = [f"C{i:03d}" for i in range(60)]
    labels = (np.random.default_rng(0).random((60, 3)) < 0.2).astype(np.float32)
    found = Labelled(("a", "b", "c"), tuple((0, case) for case in ids), labels, tuple(f"1\x1f{case}" for case in ids))
    small, large = (choose_probe_cases(found, [_Index(ids)], n).indexes[0].case_ids for n in (20, 40))  # type: ignore[list-item]  # as much as it asks for
    assert set(small) < set(large)


def test_a_short_run_has_no_time_for_probes_unless_they_are_asked_for(labelled: Path) -> None:
    settings = plan_run(1, "dino", config="vit_test", device="cpu", overrides=TINY)
    assert settings.monitor.probe_cases == 0
    because = next(d.because for d in settings.decisions if d.what == "probe cases")
    assert "16 labelled cases, but 1.5%" in because
