"""Processes: two take the same steps as one, with every method; a batch in two passes is the batch in one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_matrix import ALLOWED, ONE_LOCAL, SMALL_GRID, dataset  # noqa: F401  # a fixture of every test here
from together import command, together

from headctssl.methods import METHODS, method_class
from headctssl.presets import METHOD_FACTS
from headctssl.training.trainer import Trainer

SETS = (
    "training.num_steps=3",
    "training.batch_size=4",
    "training.precision=float32",
    "training.num_workers=0",
    "training.optimizer=sgd",  # Adam would magnify the rounding of tiny gradients
    "training.lr=0.001",  # a norm over the few embeddings of a random encoder magnifies rounding from step to step
    "training.accumulation=1",
)
FEW = [("dino", "vit_test"), ("swin_ssl", "unet3d_test")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes of these tests have: with more, sums are made in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def call_of(method: str, preset: str, tag: str, *more: str) -> list[str]:
    facts = METHOD_FACTS[method]
    given = {text.partition("=")[0] for text in more}
    sets = [*(text for text in SETS if text.partition("=")[0] not in given), *more]
    sets += [ONE_LOCAL] * bool(facts.local_views) + [SMALL_GRID] * bool(facts.base_grid)
    if preset.startswith("primus"):
        sets.append("encoder.drop_path=0")  # drawn in every process by itself
    flags = [word for text in sets for word in ("--set", text)]
    return ["-d", "1", "-m", method, "-c", preset, "--device", "cpu", "--quiet", "--tag", tag, *flags]


def go(processes: int, method: str, preset: str, tag: str, *more: str) -> Path:
    """Pretrain in so many processes; the run folder."""
    call = call_of(method, preset, tag, *more)
    results = [command("pretrain", call)] if processes == 1 else together(command, "pretrain", call, number=processes)
    assert [code for code, _ in results] == [0] * processes, results
    (folder,) = Path(os.environ["headctssl_results"]).glob(f"*/pretrain/{method}__{preset}__plans__{tag}")
    return folder


def assert_same(one: Path, other: Path) -> None:
    lines, others = (
        [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)
    )
    for a, b in zip(lines, others, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
    tensors = load_file(other / "encoder.safetensors")
    for name, tensor in load_file(one / "encoder.safetensors").items():
        torch.testing.assert_close(tensor, tensors[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("method", "preset"),
    [*FEW, *(pytest.param(*pair, marks=pytest.mark.evidence) for pair in ALLOWED if pair not in FEW)],
)
def test_two_processes_take_the_steps_of_one(method: str, preset: str) -> None:
    one, two = go(1, method, preset, "one"), go(2, method, preset, "two")
    # Only the main process writes: no file is there twice or more.
    assert {p.name for p in one.iterdir()} | {"progress.png"} == {p.name for p in two.iterdir()} | {"progress.png"}
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 3
    assert_same(one, two)


ALONE = [m for m in METHODS if not method_class(m).batch_coupled]


@pytest.mark.evidence
@pytest.mark.parametrize("method", ALONE)
def test_a_batch_in_two_passes_is_the_batch_in_one(method: str) -> None:
    presets = [preset for name, preset in ALLOWED if name == method and preset in ("vit_test", "resenc_test")]
    # For two passes dino is planned without the parts that compare the scans of a batch.
    more = ("method.targets=centring", "method.koleo_weight=0") if method == "dino" else ()
    for preset in presets:
        whole, parts = ("whole", *more), ("parts", *more, "training.accumulation=2")
        assert_same(go(1, method, preset, *whole), go(1, method, preset, *parts))


def stopped(call: list[str], step: int) -> int:
    """Run until a signal comes to the first process after a step; the exit code."""
    real = Trainer._after

    def after(self: Trainer, *arguments: object) -> None:
        real(self, *arguments)  # type: ignore[arg-type]  # as they came
        if self.step == step and self.process.is_main:
            os.kill(os.getpid(), signal.SIGUSR1)

    Trainer._after = after  # type: ignore[method-assign]  # of a process that ends with this call
    return command("pretrain", call)[0]


@pytest.mark.evidence
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(first: int, then: int) -> None:
    tag = f"from{first}to{then}"
    call = call_of("dino", "vit_test", tag, "training.num_steps=5")
    assert together(stopped, call, 2, number=first) == [75] * first
    results = together(command, "pretrain", [*call, "--continue"], number=then)
    assert [code for code, _ in results] == [0] * then, results
    whole = go(1, "dino", "vit_test", f"whole{first}{then}", "training.num_steps=5")
    assert_same(whole, whole.with_name(f"dino__vit_test__plans__{tag}"))
