"""Nonfinite: what a run does after steps that were not finite, the same after a cut; steps replayed; full disks."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training_trainer import Toy, make_trainer, same, weights
from training_helpers import TINY

from headctssl.errors import DataError, StoppedError, TrainingError, UsageError
from headctssl.loading.sampler import epoch_order
from headctssl.methods.dino.dino import Dino
from headctssl.training.deterministic import deterministic_mode
from headctssl.training.pretrain import pretrain
from headctssl.training.replay import replay
from headctssl.training.run_log import RunLog
from headctssl.training.run_state import CHECKPOINT_FILE, REWIND_FILE, load_checkpoint, save_checkpoint
from headctssl.types import Clock, StepResult, Views

PAGE = Path(__file__).parents[2] / "documentation" / "pretraining.md"
REWIND: dict[str, object] = {
    "num_steps": 16,
    "on_nonfinite": "rewind",
    "nonfinite_limit": 3,
    "rewind_every": 4,
    "checkpoint_every": 100,
}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)


def test_a_rewind_takes_back_the_weights_and_never_the_step(tmp_path: Path) -> None:
    learner = Toy(bad_steps=(6, 7, 8))
    trainer = make_trainer(tmp_path, learner, **REWIND)
    seen: dict[int, dict[str, torch.Tensor]] = {}
    learner.on_step = lambda clock: seen.update({clock.step: weights(trainer)})
    trainer.run()
    assert same(seen[9], seen[4])  # the checkpoint of step 4 was the last good one
    assert not same(seen[6], seen[4])
    assert [c for c in learner.calls if c.startswith("forward")] == [f"forward {step}" for step in range(16)]
    text = (tmp_path / "train.log").read_text()
    assert "rewind 1 of 3: the run goes on at step 9 with the weights of step 4" in text
    assert all(bool(torch.isfinite(t).all()) for t in weights(trainer).values())


def test_a_run_that_rewinds_ends_in_the_same_bits_wherever_it_is_cut(tmp_path: Path) -> None:
    bad = (6, 7, 8, 11, 12, 13)
    whole = make_trainer(tmp_path / "whole", Toy(bad_steps=bad), **REWIND)
    whole.run()
    assert whole.skips.rewinds == 2
    # Before, in and after each row of skipped steps, with the latest checkpoint near and far.
    for cut, checkpoint_every in ((2, 3), (5, 1), (7, 3), (8, 1), (10, 1), (13, 3), (14, 1)):
        folder = tmp_path / f"cut{cut}"
        changed = {**REWIND, "checkpoint_every": checkpoint_every}  # may change, so no rewind may depend on it
        learner = Toy(bad_steps=bad)
        learner.on_step = _at(cut, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError):
            make_trainer(folder, learner, **changed).run()
        again = make_trainer(folder, Toy(bad_steps=bad), **REWIND)
        assert again.resume() == (folder / CHECKPOINT_FILE).exists()
        again.run()
        assert same(weights(whole), weights(again)), cut
        assert again.skips.rewinds == 2


def _at(step: int, act: Callable[[], None]) -> Callable[[Clock], None]:
    return lambda clock: act() if clock.step == step else None


def test_a_kill_between_the_checkpoint_and_its_second_name_is_made_good(tmp_path: Path) -> None:
    learner = Toy()
    learner.on_step = _at(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        make_trainer(tmp_path, learner, **{**REWIND, "rewind_every": 6}).run()
    assert load_checkpoint(tmp_path / REWIND_FILE)["step"] == 6
    (tmp_path / REWIND_FILE).unlink()
    assert make_trainer(tmp_path, Toy(), **{**REWIND, "rewind_every": 6}).resume()
    assert load_checkpoint(tmp_path / REWIND_FILE)["step"] == 6


def test_rewinds_have_an_end(tmp_path: Path) -> None:
    learner = Toy(bad_steps=tuple(range(5, 1000)))
    trainer = make_trainer(tmp_path, learner, **{**REWIND, "num_steps": 1000, "most_rewinds": 2})
    with pytest.raises(TrainingError, match="3 steps in a row") as caught:
        trainer.run()
    assert "2 rewinds before" in str(caught.value)
    assert trainer.step == 5 + 3 * 3


def test_without_a_checkpoint_to_go_back_to_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint to go back to"):
        make_trainer(tmp_path, Toy(bad_steps=(0, 1, 2)), **REWIND).run()


def test_no_checkpoint_is_written_among_skipped_steps(tmp_path: Path) -> None:
    """So the one before repeats them all, and is what a run that was stopped among them goes on from."""
    learner = Toy(bad_steps=(3, 4, 5))
    learner.on_step = _at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        make_trainer(tmp_path / "a", learner, num_steps=9, checkpoint_every=1).run()
    assert load_checkpoint(tmp_path / "a" / CHECKPOINT_FILE)["step"] == 3
    assert "checkpoint of step 3" in (tmp_path / "a" / "train.log").read_text()
    whole, again = (make_trainer(tmp_path / name, Toy(bad_steps=(3, 4, 5)), num_steps=9) for name in "ba")
    assert again.resume()
    whole.run()
    again.run()
    assert same(weights(whole), weights(again))


def test_lines_of_a_run_that_was_cut_between_two_are_those_of_one_that_was_not(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", Toy(), num_steps=12, log_every=5).run()
    learner = Toy()
    learner.on_step = _at(7, _power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(tmp_path / "cut", learner, num_steps=12, log_every=5, checkpoint_every=3).run()
    again = make_trainer(tmp_path / "other", Toy(), num_steps=12, log_every=5)
    (tmp_path / "cut" / CHECKPOINT_FILE).rename(tmp_path / "other" / CHECKPOINT_FILE)
    assert again.resume()
    again.run()
    whole, cut = (
        {line["step"]: {k: line[k] for k in ("loss", "out", "gradient_norm", "lr", "epoch")} for line in lines}
        for lines in map(_lines, (tmp_path / "whole", tmp_path / "other"))
    )
    assert list(cut) == [10, 12]
    assert cut == {step: whole[step] for step in (10, 12)}


def _power_cut() -> None:
    raise RuntimeError("power cut")


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_full_disk_leaves_the_checkpoint_before_usable(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", Toy())
    whole.run()
    folder, before = tmp_path / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    learner = Toy()
    # From the fifth step on no file may grow beyond 4 kB; a checkpoint has 20.
    learner.on_step = _at(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])))
    try:
        with pytest.raises(TrainingError, match="cannot be written") as caught:
            make_trainer(folder, learner, checkpoint_every=2).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "still there and can be used" in str(caught.value)
    assert "--continue" in str(caught.value.do)
    assert sorted(p.name for p in folder.iterdir()) == [CHECKPOINT_FILE, "metrics.jsonl", "tensorboard"]
    again = make_trainer(folder, Toy())
    assert again.resume()
    assert again.step == 4
    again.run()
    assert same(weights(whole), weights(again))


def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """Which torch.load does not: it never compares the checksums that it writes."""
    path = tmp_path / CHECKPOINT_FILE
    save_checkpoint(path, {"a": torch.zeros(10_000)})
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(content)
    assert float(torch.load(path, weights_only=True)["a"].abs().sum()) > 0
    with pytest.raises(DataError, match="checksum"):
        load_checkpoint(path)


def spoil(monkeypatch: pytest.MonkeyPatch, bad_step: int) -> None:
    """Let DINO's loss be NaN in one step."""
    real = Dino.training_step

    def step(self: Dino, views: Views, clock: Clock) -> StepResult:
        result = real(self, views, clock)
        return StepResult(result.loss * float("nan"), result.logs) if clock.step == bad_step else result

    monkeypatch.setattr(Dino, "training_step", step)


def test_a_step_is_replayed_from_the_run_folder(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, bad_step=4)
    folder = pretrain(1, "dino", config="vit_test", device="cpu", quiet=True, overrides=TINY)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    log = (folder / "train.log").read_text()
    assert "step 4: loss or gradient is not finite, step skipped (seed 0, epoch 0, samples 8 to 9)" in log
    found = replay(folder, 4, device="cpu")
    assert not found.finite
    assert found.losses[0] != found.losses[0]
    cases = sorted(f"SECRET{i:03d}" for i in range(5))
    samples = epoch_order(5, 10, seed=0, epoch=0)[8:10]
    assert found.case_ids == tuple(cases[i] for i in samples)
    assert [batch.volume.shape[0] for batch in found.batches] == [2]
    good = replay(folder, 3, device="cpu")
    assert good.finite
    (line,) = [line for line in _lines(folder) if line["step"] == 4]
    assert (good.losses[0], good.gradient_norm) == (line["loss"], line["gradient_norm"])
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match="no such step"):
        replay(folder, 6)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    exec(snippet.replace('"RUN", 1234', f'r"{folder}", 4'), {})
    assert f"{found.case_ids} (nan,)" in capsys.readouterr().out
    with pytest.raises(DataError, match="not the folder of a pretraining run"):
        replay(dataset, 1)


def test_deterministic_mode_gives_the_same_bits_on_a_cpu_and_is_left_again(dataset: Path) -> None:
    def go(tag: str, deterministic: bool) -> dict[str, torch.Tensor]:
        given = ("training.num_steps", "training.deterministic")
        sets = [text for text in TINY if not text.startswith(given)]
        sets += ["training.num_steps=2", f"training.deterministic={json.dumps(deterministic)}"]
        return load_file(
            pretrain(1, "dino", config="resenc_test", device="cpu", quiet=True, tag=tag, overrides=sets)
            / "encoder.safetensors"
        )

    off, on = go("off", False), go("on", True)
    assert all(torch.equal(off[name], on[name]) for name in off)
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_mode(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    with pytest.raises(TrainingError, match="no deterministic form"), deterministic_mode(True):
        raise RuntimeError("grid_sampler_3d_backward_cuda does not have a deterministic implementation")
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), deterministic_mode(True):
        raise RuntimeError("something else")
