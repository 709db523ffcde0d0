"""Run log: lines, the progress line, the picture; folders of runs and their environment."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from training_helpers import TINY

from headctssl.errors import DataError, TrainingError, UsageError
from headctssl.training.distributed import Process
from headctssl.training.environment import describe_environment
from headctssl.training.meter import Meter
from headctssl.training.progress_picture import draw_progress
from headctssl.training.run_folder import first_difference, open_run_folder, require_same_settings
from headctssl.training.run_lines import read_lines, read_metrics
from headctssl.training.run_log import RunLog, progress_text
from headctssl.types import StepResult, Views

Command = Callable[..., tuple[int, str, str]]
LINE = {
    "step": 3,
    "epoch": 0,
    "loss": 1.23456,
    "lr": 0.1,
    "scans_per_second": 12.345,
    "data_wait": 0.0151,
    "seconds": 2,
}


def test_progress_line_says_loss_speed_wait_and_time_left() -> None:
    text = progress_text(LINE, 10, 3725.4)
    assert text == "step 3/10  epoch 0  loss 1.2346  12.35 scans/s  data wait 1.5 %  left 1:02:05"
    assert "loss skipped" in progress_text({**LINE, "loss": None}, 10, 1)


def test_terminal_gets_one_line_that_is_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    log = RunLog(tmp_path)
    log.open(0)
    for step in (1, 2, 3):
        log.printed_at = float("-inf")
        log.metrics({**LINE, "step": step}, 10)
    log.say("stopped")
    log.close()
    out = capsys.readouterr().out
    assert out.count("\r") == 3
    assert out.count("\n") == 2  # the end of the progress line, and the message
    assert out.endswith("\nstopped\n")


def test_elsewhere_lines_come_at_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    log.open(0)
    for step in range(1, 11):
        log.metrics({**LINE, "step": step}, 10)
    log.close()
    out = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in out] == ["1/10", "10/10"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 10


def test_reopening_drops_later_lines_and_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, quiet=True)
    log.open(0)
    for step in range(1, 6):
        log.metrics({**LINE, "step": step, "loss": float("nan")}, 10)
    log.close()
    again = RunLog(tmp_path, quiet=True)
    again.open(3)
    again.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2, 3]
    assert json.loads(text.splitlines()[0])["loss"] is None


def test_a_line_that_is_cut_short_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1, "loss": null}\n{"step": 2')
    assert read_metrics(path) == [{"step": 1, "loss": None}]
    assert read_lines(path).cut_short
    for damaged in ('{"step": ', "7"):
        path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
        with pytest.raises(DataError, match=r"Line 2 of .*metrics\.jsonl is damaged") as caught:
            read_metrics(path)
        assert (caught.value.got, caught.value.expected) == (damaged, "one JSON object")
        assert "Remove the line" in str(caught.value.do)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "train.log", "progress.png", "tensorboard", "tensorboard at the end"]
)
def test_a_full_disk_is_told_with_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FULL

    log = RunLog(tmp_path, quiet=True)
    log.open(0)
    assert log.events is not None
    if name in ("metrics.jsonl", "train.log"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to("/dev/full")
    monkeypatch.setattr("headctssl.training.run_log.draw_progress", fail)
    monkeypatch.setattr(log.events, "close" if "end" in name else "add_scalar", fail)
    work = {
        "metrics.jsonl": lambda: log.metrics(LINE, 10),
        "train.log": lambda: log.say("hello"),
        "progress.png": lambda: log.picture(final=True),
        "tensorboard": lambda: log.metrics(LINE, 10),
        "tensorboard at the end": log.close,
    }
    with pytest.raises(TrainingError, match=f"{name.partition(' ')[0]} of the run .* cannot be written") as caught:
        work[name]()
    assert "No space left on device" in str(caught.value.got)
    assert "MB free" in str(caught.value.got)
    assert "Free some space. Start the same command again with --continue" in str(caught.value.do)
    log.close()


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device")])
def test_an_encoder_that_cannot_be_written_is_told_with_what_to_do(
    error: Exception, dataset: Path, roots: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("headctssl.training.pretrain_watch.save_encoder", fail)
    sets = (word for text in TINY for word in ("--set", text))
    code, _, err = command("pretrain", "-d", 1, "-m", "dino", "-c", "vit_test", "--device", "cpu", "--quiet", *sets)
    assert code == 2
    assert "encoder.safetensors cannot be written" in err
    assert "Free some space." in err


def test_only_the_main_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, enabled=False)
    log.open(0)
    log.say("hello")
    log.metrics(LINE, 10)
    log.picture(final=True)
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_picture_is_drawn_from_lines_with_gaps(tmp_path: Path) -> None:
    draw_progress([], tmp_path / "progress.png")
    assert not (tmp_path / "progress.png").exists()
    lines = [{**LINE, "step": 1, "loss": None}, {**LINE, "step": 2, "val_auroc": 0.5}]
    draw_progress(lines, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes()[:4] == b"\x89PNG"


def test_meter_means_over_passes_and_steps() -> None:
    meter = Meter(Process(), batch_size=4)
    meter.before = 10.0
    views = Views({}, {}, torch.arange(2), 0, 0, foreground={"global": torch.tensor([[0.2, 0.4]])})
    for step_losses in ([1.0, 3.0], [5.0, 7.0]):
        for loss in step_losses:
            meter.add(StepResult(torch.tensor(loss), {"a": loss, "b": torch.tensor(2.0)}), views)
        assert meter.last_losses().tolist() == step_losses
        meter.keep_step(torch.tensor(0.5))
    meter.add(StepResult(torch.tensor(float("nan"))), views)
    meter.drop_step()
    line = meter.line(7, 1, 0.01)
    assert line["loss"] == 4.0
    assert line["a"] == 4.0
    assert line["foreground_global"] == pytest.approx(0.3)
    assert (line["step"], line["epoch"], line["lr"], line["gradient_norm"]) == (7, 1, 0.01, 0.5)
    assert 0 <= (line["data_wait"] or 0) <= 1
    assert (line["seconds"] or 0) >= 10.0
    assert meter.line(8, 1, 0.01)["loss"] is None


def test_run_folder_is_kept_refused_or_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not open_run_folder(folder, resume=False, overwrite=False)
    (folder / "config.json").touch()
    with pytest.raises(UsageError, match="exists already"):
        open_run_folder(folder, resume=False, overwrite=False)
    (folder / "metrics.jsonl").touch()
    (folder / "slurm_job.txt").touch()
    (folder / "tensorboard").mkdir()
    assert not open_run_folder(folder, resume=True, overwrite=False)  # no checkpoint: fresh, under the same settings
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "slurm_job.txt"]
    (folder / "checkpoint_latest.pt").touch()
    (folder / ".checkpoint_latest.pt.123.tmp").touch()  # of a process that was killed
    assert open_run_folder(folder, resume=True, overwrite=False)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_latest.pt", "config.json", "slurm_job.txt"]
    assert not open_run_folder(folder, resume=False, overwrite=True)
    assert list(folder.iterdir()) == []


def test_first_difference_names_the_field() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert first_difference(one, json.loads(json.dumps(one))) is None
    assert first_difference(one, {"a": 1, "b": {"c": [1, 3], "d": None}}) == ("b.c", [1, 2], [1, 3])
    with pytest.raises(UsageError, match=r"'b\.d' differs"):
        require_same_settings(Path("run"), one, {"a": 2, "b": {"c": [1, 2], "d": 0}}, free=["a"])


def test_environment_names_versions_and_hardware() -> None:
    found = describe_environment(torch.device("cpu"))
    assert dict(found.packages)["torch"] == torch.__version__.partition("+")[0]
    assert found.cores >= 1
    assert found.device == "cpu"
