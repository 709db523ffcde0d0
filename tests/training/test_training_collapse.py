"""Collapse: what the guard says of lines made by hand, of two short runs, and what it knows after a run went on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_helpers import TINY, make_stored_dataset

from headctssl.errors import TrainingError
from headctssl.methods import method_class
from headctssl.planning.run_settings import MonitorSettings
from headctssl.training.collapse import LOOKED, CollapseGuard, Finding
from headctssl.training.collapse_causes import likely_causes
from headctssl.training.distributed import Process
from headctssl.training.estimate import plan_run
from headctssl.training.monitor import Monitor
from headctssl.training.pretrain import pretrain
from headctssl.training.run_log import RunLog, read_metrics


def line(step: int, **signs: float) -> dict[str, float | int | None]:
    return {"step": step, "loss": 1.0, "embedding_std": 0.8, **signs}


def looked(step: int, every: int = 5, **signs: float) -> dict[str, float | int | None]:
    """A line of a run whose monitor looks at every fifth step."""
    return line(step, **signs, **({"monitor_seconds": 0.1} if step % every == 0 else {}))


def told(values: list[float], sign: str = "feature_std", every: int = 5) -> list[Finding]:
    guard = CollapseGuard()
    found: list[Finding] = []
    for step, value in enumerate(values, start=1):
        found += guard.add(line(step, **{sign: value}), look=step % every == 0)
    return found


def test_a_sign_that_falls_to_a_third_is_told_once_at_the_second_look() -> None:
    found = told([0.9] * 10 + [0.29] * 40)
    assert found == [Finding("feature_std", 20, pytest.approx(0.9), pytest.approx(0.29))]  # type: ignore[arg-type]
    assert told([0.9] * 10 + [0.31] * 40) == []
    assert told([0.9] * 10 + [0.1] * 5 + [0.9] * 40) == [], "one look is noise"


def test_a_rank_is_measured_from_that_of_a_single_point() -> None:
    assert [f.step for f in told([4.0] * 5 + [1.9] * 40, "embedding_rank")] == [15]
    assert told([4.0] * 5 + [2.1] * 40, "embedding_rank") == []
    assert told([1.1] * 5 + [1.0] * 40, "monitor_rank_me") == [], "heads that look alike from the start"


@pytest.mark.parametrize(("found", "rank", "falls"), [(0.9, 3.5, False), (0.2, 3.5, True), (0.9, 1.7, True)])
def test_fewer_directions_are_no_collapse_while_scans_are_told_apart_in_them(
    found: float, rank: float, falls: bool
) -> None:
    guard = CollapseGuard()
    ranks = [12.0] * 5 + [rank] * 40
    said = [guard.add(line(k, embedding_rank=one, found=found), look=k % 5 == 0) for k, one in enumerate(ranks, 1)]
    assert any(said) == falls
    assert guard.state("embedding_rank") == ("fell" if falls else "held")
    # a spread that falls is told whatever is found: the nearest of almost equal rows can be the right one
    guard = CollapseGuard()
    assert any(guard.add(line(k, feature_std=0.9 if k < 9 else 0.1, found=0.9), look=True) for k in range(1, 40))


def test_methods_that_compare_no_scans_are_not_judged() -> None:
    guard = CollapseGuard()
    lines = [{"step": step, "monitor_rank_me": 5.0 if step < 10 else 1.0} for step in range(60)]
    assert [guard.add(one, look=True) for one in lines] == [()] * 60


@pytest.mark.parametrize("begun", [1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("rank", [True, False], ids=["several scans", "one scan per process"])
def test_what_it_knows_is_a_function_of_the_lines(begun: float, rank: bool, tmp_path: Path) -> None:
    """Also where the monitor has no rank to log, and where a value is not finite."""
    live, log = CollapseGuard(), RunLog(tmp_path, quiet=True)
    told = []
    for step in range(1, 41):
        value = begun if step in (1, 8) else (1.0 if step <= 10 else 0.05)
        one = looked(step, embedding_std=value, found=value, **({"monitor_rank_me": 3.0} if rank else {}))
        log.metrics(one, 100)
        told += live.add(one, look=step % 5 == 0)
    again = CollapseGuard()
    assert list(again.take_up(read_metrics(tmp_path / "metrics.jsonl"))) == told
    assert again == live
    assert [finding.step for finding in told] == [20]


def test_a_look_is_marked_in_its_line_also_where_it_finds_nothing(
    dataset: Path, lines_of: Callable[[Path], list[dict[str, float]]]
) -> None:
    sets = [text for text in TINY if "batch_size" not in text]
    sets += ["training.batch_size=1", "monitor.every=2", "method.decoder_width=48", "method.decoder_heads=3"]
    lines = lines_of(pretrain(1, "mae", config="vit_test", device="cpu", overrides=sets, quiet=True))
    assert [one["step"] for one in lines if LOOKED in one] == [2, 4, 6]
    assert not any("monitor_rank_me" in one for one in lines), "one scan differs from nothing"


def watched(on_collapse: str, said: list[str]) -> Monitor:
    """A monitor that judges lines made by hand."""
    settings = SimpleNamespace(monitor=MonitorSettings(every=5, on_collapse=on_collapse))  # type: ignore[arg-type]  # a plain text in tests
    return Monitor(
        torch.nn.Identity(),  # type: ignore[arg-type]  # nothing is looked at
        settings,  # type: ignore[arg-type]  # all that judging reads
        device=torch.device("cpu"),
        process=Process(),
        probe=None,
        say=said.append,
        causes=list,
        keep_best=lambda: None,
    )


def test_a_run_continued_with_stop_ends_although_the_collapse_was_told_before() -> None:
    lines = [looked(step, embedding_std=1.0 if step <= 10 else 0.05) for step in range(1, 41)]
    said: list[str] = []
    before = watched("warn", said)
    for one in lines[:25]:
        before.judge(one, look="monitor_seconds" in one)
    assert len(said) == 1
    after = watched("stop", said)
    after.take_up(lines[:25])
    for one in lines[25:29]:
        after.judge(one, look=False)
    with pytest.raises(TrainingError, match="step 30: embedding_std fell"):
        after.judge(lines[29], look=True)
    assert len(said) == 1, "told before the run was continued"
    recovered = watched("stop", said)
    recovered.take_up(lines[:25])
    for step in range(26, 41):
        recovered.judge(looked(step, embedding_std=1.0), look=step % 5 == 0)


DINO = ("method.teacher_temperature=0.5", "method.teacher_temperature_start=0.5", "method.koleo_weight=0")


@pytest.mark.parametrize(
    ("method", "sets", "causes"),
    [
        ("dino", DINO, ["teacher_temperature=0.5", "koleo_weight=0"]),
        ("dino", ("training.lr=0.1",), ["training.lr=0.1 is"]),
        ("dino", ("method.center_momentum=0.999", "method.teacher_momentum=0.9"), ["center_momentum=0.999"]),
        ("jepa", ("method.teacher_momentum=0",), ["teacher_momentum=0"]),
        ("lejepa", ("method.sigreg_weight=0",), ["sigreg_weight=0"]),
        ("swin_ssl", ("method.head_norm=false",), ["head_norm=false"]),
        ("simclr", ("method.temperature=90",), ["you set method.temperature"]),
        ("simclr", (), ["no setting stands out"]),
    ],
)
def test_causes_are_named_by_setting(dataset: Path, method: str, sets: tuple[str, ...], causes: list[str]) -> None:
    wanted = ("training.precision=float32", "training.batch_size=8", "views.local_count=0")
    make_stored_dataset(dataset.parent, dataset_id=2, num_cases=12, test=())
    settings = plan_run(2, method, config="vit_test", device="cpu", overrides=(*wanted, *sets))
    planned = plan_run(2, method, config="vit_test", device="cpu", overrides=wanted).training.lr
    found = likely_causes(settings, planned)
    assert all(cause.do for cause in found)
    for part in causes:
        assert any(part in cause.what for cause in found), found
    assert len(found) == len(causes), found
    assert method_class(method).Settings is type(settings.method)


SHORT = (
    *(text for text in TINY if "num_steps" not in text and "batch_size" not in text),
    "training.num_steps=40",
    "training.batch_size=8",
    "training.lr=1e-3",
    "training.checkpoint_every=8",
    "monitor.every=5",
    "method.head_hidden=64",
    "method.head_outputs=16",
)


def train(*sets: str, tag: str, resume: bool = False) -> str:
    run = pretrain(
        1, "lejepa", config="vit_test", device="cpu", tag=tag, resume=resume, overrides=(*SHORT, *sets), quiet=True
    )
    return (run / "train.log").read_text()


def test_the_guard_names_a_collapse_and_is_silent_without_one(roots: Path) -> None:
    make_stored_dataset(roots / "preprocessed", num_cases=24, test=(), profile="laptop")
    assert "collapse: " not in train(tag="healthy")
    with pytest.raises(TrainingError, match="sigreg_weight=0"):
        train("method.sigreg_weight=0", "monitor.on_collapse=stop", tag="stopped")
    text = train("method.sigreg_weight=0", "monitor.on_collapse=warn", tag="stopped", resume=True)
    assert "exported encoder.safetensors" in text
    said = [part for part in text.splitlines() if "collapse: " in part]
    assert len(said) == 2, "once in each session"
    assert "embedding_" in said[0]
    assert "method.sigreg_weight=0: nothing spreads the embeddings (set it to " in said[0]
    assert said[0][20:] == said[1][20:], "the same but for the time"
