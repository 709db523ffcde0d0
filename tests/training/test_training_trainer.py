"""Trainer: order of a step, accumulation, bad steps, signals and resume, on a learner of a few numbers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from headctssl.contract import InputSpec, Window
from headctssl.errors import StoppedError, TrainingError, UsageError
from headctssl.loading.views import ViewGroup, ViewPlan
from headctssl.methods.method import ParamGroup, split_decay
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.distributed import Process
from headctssl.training.run_log import RunLog
from headctssl.training.trainer import Trainer
from headctssl.types import Clock, PretrainBatch, StepResult, Views

SPEC = InputSpec(rule="fixed_spacing", shape=(8, 8, 8), spacing_mm=(1, 1, 1), windows=(Window(level=40, width=80),))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the runs here; the picture has its own test."""
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)


class Toy(nn.Module):
    """A linear model with dropout, a running average (its teacher) and a list of what was called."""

    def __init__(self, bad_steps: tuple[int, ...] = (), dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, 4))
        self.register_buffer("average", torch.zeros(4, 512))
        self.bad_steps = bad_steps
        self.calls: list[str] = []
        self.on_step: Callable[[Clock], None] = lambda clock: None

    def views(self) -> ViewPlan:
        return ViewPlan((ViewGroup("global", 1, (8, 8, 8), (0.5, 1.0)),))

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        self.calls.append(f"forward {clock.step}")
        self.on_step(clock)
        out = self.layer(views.groups["global"][0].flatten(1)).float()
        loss = (out - 1).square().mean()
        if clock.step in self.bad_steps:
            loss = loss * float("nan")
        return StepResult(loss, {"out": out.detach().mean()})

    def before_optimizer_step(self, clock: Clock) -> None:
        assert self.layer[1].weight.grad is not None
        self.calls.append(f"before {clock.step}")

    def after_step(self, clock: Clock) -> None:
        self.calls.append(f"after {clock.step}")
        self.average.lerp_(self.layer[1].weight.detach(), 0.1)

    def param_groups(self) -> list[ParamGroup]:
        return split_decay(self)


def batch_of(samples: list[int], seed: int = 0) -> PretrainBatch:
    volumes = [torch.randint(-100, 300, (1, 10, 10, 10), generator=torch.Generator().manual_seed(i)) for i in samples]
    n = len(samples)
    return PretrainBatch(
        volume=torch.stack(volumes).to(torch.int16),
        inside_box=torch.tensor([[(0, 10)] * 3] * n),
        head_box=torch.tensor([[[1.0, 9.0]] * 3] * n),
        case_index=torch.tensor(samples),
        sample_index=torch.tensor(samples),
        spacing_mm=torch.ones(n, 3),
        seed=seed,
        epoch=0,
    )


def make_trainer(folder: Path, learner: Toy, *, digest: str = "d", **changes: object) -> Trainer:
    base = {"num_steps": 6, "samples_per_epoch": 12, "batch_size": 4, "lr": 0.05, "warmup_steps": 2}
    training = TrainingSettings.model_validate({**base, **changes})

    def batches(start: int) -> Iterator[PretrainBatch]:
        size = training.batch_size // training.accumulation
        for step in range(start, training.num_steps):
            for part in range(training.accumulation):
                first = step * training.batch_size + part * size
                yield batch_of(list(range(first, first + size)))

    folder.mkdir(exist_ok=True)
    log = RunLog(folder, quiet=True)
    log.open(0)
    return Trainer(
        learner,
        training=training,
        input_spec=SPEC,
        make_batches=batches,
        folder=folder,
        log=log,
        digest=digest,
        device=torch.device("cpu"),
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = {f"learner.{k}": v.clone() for k, v in trainer.module.state_dict().items()}
    for key, slot in trainer.optimizer.state_dict()["state"].items():
        state.update({f"optimizer.{key}.{k}": v.clone() for k, v in slot.items() if v is not None})
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_step_goes_forward_before_after_in_order(tmp_path: Path) -> None:
    learner = Toy()
    make_trainer(tmp_path, learner, num_steps=2, accumulation=2).run()
    once = ["forward {0}", "forward {0}", "before {0}", "after {0}"]
    assert learner.calls == [c.format(step) for step in (0, 1) for c in once]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resume_equals_uninterrupted(tmp_path: Path, optimizer: str, precision: str) -> None:
    straight = make_trainer(tmp_path / "a", Toy(), optimizer=optimizer, precision=precision)
    straight.run()
    parted = make_trainer(tmp_path / "b", Toy(), optimizer=optimizer, precision=precision, checkpoint_every=3)
    parted.learner.on_step = _raise_at(3)  # type: ignore[attr-defined]  # Toy
    with pytest.raises(RuntimeError, match="power cut"):
        parted.run()
    resumed = make_trainer(tmp_path / "b", Toy(), optimizer=optimizer, precision=precision)
    assert resumed.resume()
    assert resumed.step == 3
    torch.manual_seed(99)  # the state of torch's generator must not matter
    resumed.run()
    assert same(weights(straight), weights(resumed))
    assert not same(weights(straight), weights(make_trainer(tmp_path / "c", Toy())))


def _raise_at(step: int) -> Callable[[Clock], None]:
    def act(clock: Clock) -> None:
        if clock.step == step:
            raise RuntimeError("power cut")

    return act


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    # Without dropout, whose draws belong to a forward pass. SGD: Adam would magnify rounding of tiny gradients.
    whole = make_trainer(tmp_path / "a", Toy(dropout=0), optimizer="sgd")
    parts = make_trainer(tmp_path / "b", Toy(dropout=0), optimizer="sgd", accumulation=4)
    whole.run()
    parts.run()
    one, other = weights(whole), weights(parts)
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)


def test_bad_step_is_skipped_and_logged_without_voxels(tmp_path: Path) -> None:
    learner = Toy(bad_steps=(1,))
    trainer = make_trainer(tmp_path, learner, num_steps=3)
    trainer.run()
    assert "after 1" not in learner.calls
    assert all(bool(torch.isfinite(t).all()) for t in weights(trainer).values())
    text = (tmp_path / "train.log").read_text()
    assert "step 1: loss or gradient is not finite, step skipped (seed 0, epoch 0, samples 4 to 7)" in text
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert '"loss": null' in lines[1]
    assert "NaN" not in "".join(lines)


def test_weights_stand_still_in_a_bad_step(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    learner = Toy(bad_steps=(1,))
    trainer = make_trainer(tmp_path, learner, num_steps=3)
    learner.on_step = lambda clock: seen.append(weights(trainer))
    trainer.run()
    assert not same(seen[0], seen[1])
    assert same(seen[1], seen[2])


def test_a_bad_step_leaves_no_trace_in_running_statistics(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    learner = Toy(bad_steps=(1,))
    learner.layer.append(nn.BatchNorm1d(4))
    broken = learner.layer[1].register_forward_hook(
        lambda module, inputs, out: out * float("nan") if learner.calls[-1] == "forward 1" else out
    )
    trainer = make_trainer(tmp_path, learner, num_steps=3)
    learner.on_step = lambda clock: seen.append(weights(trainer))
    trainer.run()
    broken.remove()
    assert not torch.equal(seen[0]["learner.layer.2.running_mean"], seen[1]["learner.layer.2.running_mean"])
    assert same(seen[1], seen[2])
    assert all(bool(torch.isfinite(t).all()) for t in weights(trainer).values())


def test_ten_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    enough = tuple(range(1, 10)) + tuple(range(11, 30))  # nine in a row, one good, then ten
    learner = Toy(bad_steps=enough)
    with pytest.raises(TrainingError, match="10 steps in a row"):
        make_trainer(tmp_path, learner, num_steps=30).run()
    assert learner.calls[-1] == "before 20"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_ends_after_a_checkpoint_from_which_the_run_goes_on(tmp_path: Path, number: int) -> None:
    straight = make_trainer(tmp_path / "a", Toy())
    straight.run()
    learner = Toy()
    learner.on_step = lambda clock: os.kill(os.getpid(), number) if clock.step == 3 else None
    stopped = make_trainer(tmp_path / "b", learner)
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match="after step 4 of 6") as error:
        stopped.run()
    assert error.value.exit_code == 75
    assert signal.getsignal(number) is before
    resumed = make_trainer(tmp_path / "b", Toy())
    assert resumed.resume()
    resumed.run()
    assert same(weights(straight), weights(resumed))


def test_reader_that_dies_of_the_signal_still_leads_to_a_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Toy())
    whole = trainer.make_batches

    def dying(start: int) -> Iterator[PretrainBatch]:
        batches = iter(whole(start))
        yield next(batches)
        yield next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        raise TrainingError("a reader died")

    trainer.make_batches = dying
    with pytest.raises(StoppedError, match="after step 2"):
        trainer.run()
    assert make_trainer(tmp_path, Toy()).resume()


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], Trainer]:
    """Makes a trainer believe that it is one of two processes, the other one without a signal."""
    monkeypatch.setattr("headctssl.training.trainer.wrap", lambda module, process, find_unused: module)
    monkeypatch.setattr("headctssl.training.trainer.settle", lambda make, process: make())
    for name in ("trainer.reduce_max", "meter.reduce_mean"):
        monkeypatch.setattr(f"headctssl.training.{name}", lambda values, process: values)

    def make(trainer: Trainer) -> Trainer:
        trainer.process = Process(0, 0, 2)
        return trainer

    return make


def test_a_late_signal_to_one_of_several_processes_waits_for_the_next_agreement(
    tmp_path: Path, one_of_two: Callable[[Trainer], Trainer]
) -> None:
    """Left alone after the exchange of a step, the other process would wait in the next one."""
    learner = Toy()
    real = learner.after_step

    def late(clock: Clock) -> None:
        real(clock)
        if clock.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    learner.after_step = late  # type: ignore[method-assign]
    with pytest.raises(StoppedError, match="after step 4 of 6"):
        one_of_two(make_trainer(tmp_path, learner)).run()


def test_a_signal_to_another_process_stops_this_one_too(
    tmp_path: Path, one_of_two: Callable[[Trainer], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = one_of_two(make_trainer(tmp_path, Toy()))
    told = torch.tensor([0.0, 1.0])
    monkeypatch.setattr("headctssl.training.trainer.reduce_max", lambda values, process: torch.maximum(values, told))
    with pytest.raises(StoppedError, match="another process after step 1 of 6"):
        trainer.run()


def test_one_of_several_processes_tells_of_its_dead_reader(
    tmp_path: Path, one_of_two: Callable[[Trainer], Trainer]
) -> None:
    trainer = one_of_two(make_trainer(tmp_path, Toy()))
    whole = trainer.make_batches

    def dying(start: int) -> Iterator[PretrainBatch]:
        yield next(iter(whole(start)))
        os.kill(os.getpid(), signal.SIGTERM)
        raise TrainingError("a reader died")

    trainer.make_batches = dying
    with pytest.raises(TrainingError, match="a reader died"):
        trainer.run()


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, Toy(), num_steps=1).run()
    with pytest.raises(TrainingError, match="other settings"):
        make_trainer(tmp_path, Toy(), digest="other").resume()
    assert not make_trainer(tmp_path / "empty", Toy()).resume()


def test_finished_run_takes_no_further_step(tmp_path: Path) -> None:
    make_trainer(tmp_path, Toy()).run()
    learner = Toy()
    again = make_trainer(tmp_path, learner)
    again.resume()
    again.run()
    assert learner.calls == []


def test_clipping_limits_the_gradient(tmp_path: Path) -> None:
    norms: list[float] = []
    trainer = make_trainer(tmp_path, Toy(), clip_norm=1e-3)
    real = trainer.optimizer.step

    def step(*args: object, **kwargs: object) -> object:
        norms.append(float(torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None]).norm()))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    trainer.optimizer.step = step  # type: ignore[method-assign,assignment]
    trainer.run()
    assert len(norms) == 6
    assert max(norms) <= 1.001e-3


def test_epoch_end_is_called_and_logged(tmp_path: Path) -> None:
    seen: list[int] = []
    learner = Toy()
    trainer = make_trainer(tmp_path, learner, num_steps=7, log_every=100)

    def ends(clock: Clock) -> dict[str, float]:
        learner.eval()
        seen.append(clock.step)
        return {"val_auroc": 0.5}

    learner.on_step = lambda clock: None if learner.training else pytest.fail("the loop must train in train mode")
    trainer.on_epoch_end = ends
    trainer.run()
    assert seen == [2, 5, 6]  # epochs of 3 steps, and the last step
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("val_auroc") == 3
    assert text.count("\n") == 3


def test_extra_state_is_restored(tmp_path: Path) -> None:
    class Best:
        value = 0.0

        def state_dict(self) -> dict[str, float]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.value = state["value"]

    first = make_trainer(tmp_path, Toy(), num_steps=1)
    first.extra = best = Best()
    best.value = 0.75
    first.run()
    second = make_trainer(tmp_path, Toy(), num_steps=1)
    second.extra = back = Best()
    second.resume()
    assert back.value == 0.75


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be divided"):
        make_trainer(tmp_path, Toy(), batch_size=4, accumulation=3)
    with pytest.raises(UsageError, match="fp16 needs"):
        make_trainer(tmp_path, Toy(), precision="fp16")
    coupled = Toy()
    coupled.batch_coupled = True  # type: ignore[assignment]  # nn.Module attributes
    with pytest.raises(UsageError, match="compares the scans"):
        make_trainer(tmp_path, coupled, accumulation=2)
    make_trainer(tmp_path, coupled, accumulation=1)
