"""Train: steps of ViT-B/12 at 96^3 beside the matrix peak of the same moments and a reference in MONAI's blocks.

Run as ``python -m benchmarks.train``; needs the extra ``bench``. Prints a table, writes ``benchmarks/train.json``, ends
with 1 when a target is missed. One thread and processor time on both sides, sides in turn, so that other work on the
machine counts little. The reference (`benchmarks.train_reference`) trains in float32 on one 96^3 volume per view, as
HeadCT-Foundation does on a CPU; views are made before the clock starts on both sides.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.rows import Row, alternate, faster, finish, on_one_thread, value

if TYPE_CHECKING:
    import torch

    from headctssl.planning.run_settings import RunSettings
    from headctssl.types import Views

RESULT = Path(__file__).with_suffix(".json")
CONFIG = "headct_foundation"  # ViT-B/12 at 96^3
SHARES = {"bf16": 60.0, "float32": 88.0}
"""Precision -> least share of the matrix peak, in percent."""
RATIO, DEFAULT_RATIO = 2.5, 5.0
MEMORY = 10.0
VIEWS = 2
"""Views per student step; an embedding takes twice as many, DINO one scan of four views."""
SCANS = 8
"""Scans per MAE step: the planner's batch on a CPU."""
PEAKS = (
    "mae headct_foundation 4",
    "dino headct_foundation 2",
    "dino headct_foundation 2 training.precision=float32",
    "mae headct_foundation 4 method.decoder_depth=8 training.recompute=true",
    "dino vit_s 8",
    "mae primus_s 2",
    "mae resenc_s 4",
)
"""Method, encoder, batch and settings whose memory is measured."""
PROTOTYPES = 512
"""What the planner chooses at that batch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per side, at least 5 for figures to report")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--only", choices=("memory", "student", "mae", "dino", "embed"), nargs="+", help="parts to run")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)  # a process of its own, whose memory is measured
    arguments = parser.parse_args(argv)
    on_one_thread("benchmarks.train", argv)
    if arguments.peak_of:
        return _print_peak(arguments.peak_of)

    import torch

    from headctssl.console import say

    torch.set_num_threads(1)
    began = time.perf_counter()
    parts: dict[str, Callable[[int], list[Row]]] = {
        "memory": _memory,  # first, while this process holds little itself
        "student": _student,
        "mae": _mae,
        "dino": _dino,
        "embed": _embed,
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"headctssl_{name}"] = str(Path(folder) / name)
        _heads()
        for name in arguments.only or parts:
            measured = parts[name](arguments.runs)
            for row in measured:
                say(f"{row.what}: {row.ours:g} {row.unit}" + ("" if row.ratio is None else f", {row.ratio:.2f}x"))
            rows += measured
            gc.collect()
    return finish(
        f"training: ViT-B/12 at 96^3, medians of {arguments.runs} runs",
        rows,
        arguments.output,
        ("torch", "monai"),
        began,
    )


def _heads() -> None:
    """A few synthetic heads, preprocessed: batches and plans come from them as in a run."""
    import headctssl

    headctssl.make_phantom(1, n=4, profile="laptop", overwrite=True)
    headctssl.plan_and_preprocess([1], quiet=True)


def _settings(method: str, batch: int, *overrides: str, config: str = CONFIG) -> RunSettings:
    """What the planner decides for the method, with an encoder whose input is 96^3 whatever the data are."""
    import torch

    from headctssl.training.distributed import Process
    from headctssl.training.pretrain_call import Request, open_call

    typed = (f"training.batch_size={batch}", "training.num_steps=100", *overrides)
    return open_call(
        Request((1,), method, config, "plans", None, "all", 0, typed), torch.device("cpu"), Process()
    ).settings


class Learner:
    """A method with its optimiser and the views of one batch; each call makes a whole optimiser step."""

    def __init__(self, settings: RunSettings) -> None:
        import torch

        from headctssl.console import say
        from headctssl.loading.views import make_views
        from headctssl.methods import method_class
        from headctssl.networks import build_from_settings
        from headctssl.training.accelerate import accelerate
        from headctssl.training.optimizer import build_optimizer
        from headctssl.training.process_memory import keep_freed_memory

        keep_freed_memory()  # as the loop does; the other side of a comparison has the gain too
        torch.manual_seed(0)
        self.settings = settings
        self.method = method_class(settings.method_name)(settings.method)
        self.method.build(build_from_settings(settings.encoder), settings)
        self.method.train()
        for line in accelerate(self.method, settings.training, torch.device("cpu")):
            say(line)
        self.optimizer = build_optimizer(self.method.param_groups(), settings.training)
        self.parameters = [p for p in self.method.parameters() if p.requires_grad]
        self.views: Views = make_views(_batch(settings), self.method.views(), settings.input)
        self.done = 0

    def step(self) -> float:
        """One optimiser step as `training.trainer` makes it; the loss."""
        import torch

        from headctssl.types import Clock

        training = self.settings.training
        clock = Clock(self.done, training.num_steps, 0, training.num_steps)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
            loss = self.method.training_step(self.views, clock).loss
        loss.backward()
        self.method.before_optimizer_step(clock)
        torch.nn.utils.clip_grad_norm_(self.parameters, training.clip_norm or float("inf"))
        self.optimizer.step()
        self.method.after_step(clock)
        self.done += 1
        return float(loss.detach())


def _batch(settings: RunSettings) -> Any:
    """A batch of stored heads."""
    from headctssl.loading.loader import BatchLoader
    from headctssl.training.pretrain_data import open_pretrain_data

    loader = BatchLoader(
        open_pretrain_data((1,), "plans", "all", None).indexes,
        read_shape=settings.read_shape,
        batch_size=settings.training.batch_size,
        samples_per_epoch=settings.training.samples_per_epoch,
        seed=0,
        num_steps=1,
        num_workers=0,
    )
    return next(iter(loader))


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    """Processor seconds of this thread, which is the only one that computes."""

    def timed() -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    return timed


def _peak(dtype: torch.dtype) -> Callable[[], float]:
    """10^9 operations per second of a product of 2048 x 2048 matrices, the median of five."""
    import torch

    a, b = torch.randn(2, 2048, 2048).to(dtype)
    product = _timed(lambda: a @ b)
    return lambda: 2e-9 * 2048**3 / median(product() for _ in range(5))


def _student(runs: int) -> list[Row]:
    """Forward and backward pass of the student over the peak before and after it."""
    import torch

    from headctssl.networks import build_encoder
    from headctssl.training.process_memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG).train()
    s, volume = encoder.settings, torch.rand(VIEWS, 3, 96, 96, 96)
    tokens, patch = 513, 3 * 12**3
    # Two operations per multiply-add; backward takes twice the forward pass, but the input has no gradient.
    blocks = s.depth * (2 * tokens * 12 * s.width**2 + 4 * tokens**2 * s.width)
    work = VIEWS * (3 * blocks + 2 * 2 * 512 * patch * s.width) / 1e9

    rows = []
    for name, target in SHARES.items():
        half = name == "bf16"

        def step(half: bool = half) -> None:
            encoder.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                features = encoder(volume).features
            features.float().square().mean().backward()

        peak = _peak(torch.bfloat16 if half else torch.float32)
        step()
        before, seconds, after = alternate(runs, peak, _timed(step), peak)
        shares = [100 * work / took / ((a + b) / 2) for a, took, b in zip(before, seconds, after, strict=True)]
        rows.append(value(f"student step in {name}, share of the matrix peak", shares, "%", target))
        rows.append(value(f"student step in {name}, matrix peak", [*before, *after], "GFLOP/s"))
    return rows


def _mae(runs: int) -> list[Row]:
    from benchmarks.train_reference import ReferenceMae

    # The planner gives real data the published decoder of 8 blocks, and synthetic heads one of 2.
    ours = Learner(_settings("mae", SCANS, "views.global_count=1", "method.decoder_depth=8"))
    reference = ReferenceMae()
    volume = ours.views.groups["global"][0]
    return _against("MAE step", runs, ours.step, lambda: reference.step(volume), RATIO)


def _dino(runs: int) -> list[Row]:
    from benchmarks.train_reference import ReferenceDino
    from headctssl.methods.dino.settings import DinoSettings

    same = _settings("dino", 1, "views.local_shape=[96,96,96]").model_copy(update={"method": DinoSettings()})
    ours, reference = Learner(same), ReferenceDino()
    views = [*ours.views.groups["global"], *ours.views.groups["local"]]
    rows = _against("DINO step, identical views", runs, ours.step, lambda: reference.step(views), RATIO)
    ours = Learner(_settings("dino", 1, f"method.prototypes={PROTOTYPES}"))
    # A view is a class token and its patches; three passes of the student, one of the teacher.
    large, small = 2 * (1 + 8**3), 2 * (1 + 4**3)
    fewer = (3 * (large + large) + large) / (3 * (large + small) + large)
    note = f"; the planner's views have {fewer:.2f} times fewer tokens"
    return rows + _against(
        "DINO step, planner's views", runs, ours.step, lambda: reference.step(views), DEFAULT_RATIO, note
    )


def _embed(runs: int) -> list[Row]:
    import torch

    from benchmarks.train_reference import ReferenceViT
    from headctssl.finetuning.whole_head import encode
    from headctssl.inference.embed import Features
    from headctssl.networks import build_encoder

    device, volume = torch.device("cpu"), torch.rand(2 * VIEWS, 3, 96, 96, 96)
    ours, reference = Features(build_encoder(CONFIG)), ReferenceViT().eval()

    def peer() -> None:
        with torch.no_grad():
            reference(volume)

    return _against("embedding, bf16", runs, lambda: encode(ours, [volume], device, half=True), peer, RATIO)


def _memory(runs: int) -> list[Row]:
    """Peak memory of a process that trains, over the estimate; once per case, since it does not vary."""
    rows = []
    for case in PEAKS:
        found = subprocess.run(
            [sys.executable, "-m", "benchmarks.train", "--peak_of", case], check=True, stdout=subprocess.PIPE, text=True
        )
        peak, estimate = json.loads(found.stdout.splitlines()[-1])
        off = 100 * abs(estimate / peak - 1)
        rows.append(
            value(f"{case}: estimate {estimate:.2f} GB, peak {peak:.2f} GB, apart", [off], "%", MEMORY, "at most")
        )
    return rows


def _print_peak(case: str) -> int:
    """Train two steps and print the peak memory of this process and the estimate, in GB."""
    method, config, batch, *overrides = case.split()
    settings = _settings(method, int(batch), *overrides, config=config)
    learner = Learner(settings)
    for _ in range(2):
        learner.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sys.stdout.write(f"\n{json.dumps([peak, settings.estimate.memory_gb])}\n")
    return 0


def _against(
    what: str, runs: int, ours: Callable[[], object], peer: Callable[[], object], target: float, note: str = ""
) -> list[Row]:
    import torch

    ours()
    peaks = _peak(torch.bfloat16), _peak(torch.float32)
    first, second, half, whole = alternate(runs, _timed(ours), _timed(peer), *peaks)
    cause = (
        f"bfloat16 multiplies {median(half) / median(whole):.2f} times as fast as float32 on this machine, and 4.4 "
        f"times on the one that the target was set for{note}"
    )
    return [faster(what, first, second, "MONAI's blocks in float32", target, cause)]


if __name__ == "__main__":
    raise SystemExit(main())
