"""Gains: what small local views and leaving tokens out save dino, dinov2 and jepa, on synthetic heads.

Run as ``python -m benchmarks.gains``. Every objective is trained with its published views and with one thing changed,
whole steps in turn, reading and views included; scans per second are medians over steps, on a CPU in seconds of its
time, so that other work on the machine counts little. Prints a table and writes ``benchmarks/gains.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.air import DATASET, prepare, whole_steps
from benchmarks.rows import Row, finish, on_one_thread

RESULT = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Gain:
    """One thing that saves time, and the run without it. `{shape}` stands for the shape of a global view."""

    method: str
    what: str
    settings: tuple[str, ...]
    without: tuple[str, ...]
    other: str


SMALL = "local views of half the side"
WHOLE = ("views.local_shape={shape}",)
GAINS = (
    Gain("dino", SMALL, (), WHOLE, "as large as global ones"),
    Gain("dino", "80 % of the tokens, tissue first", ("method.token_share=0.8",), (), "every token"),
    Gain("dinov2", SMALL, (), WHOLE, "as large as global ones"),
    Gain("dinov2", "80 % of the tokens, tissue first", ("method.token_share=0.8",), (), "every token"),
    Gain("jepa", "90 % of the tokens, tissue first (the default)", (), ("method.token_share=1",), "every token"),
    Gain(
        "jepa",
        "80 % of the tokens, tissue first",
        ("method.token_share=0.8",),
        ("method.token_share=1",),
        "every token",
    ),
    Gain("jepa", "a student that sees 20 % of them (the default)", (), ("method.context_share=0.9",), "90 %"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    began = time.perf_counter()
    on_one_thread("benchmarks.gains", argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gains", description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=12, help="heads to make")
    parser.add_argument("--steps", type=int, default=6, help="steps per side; the first is not counted")
    parser.add_argument("--batch", type=int, default=4, help="scans per step")
    parser.add_argument("-m", "--method", nargs="+", default=["dino", "dinov2", "jepa"], help="objectives")
    parser.add_argument("-c", "--config", default="vit_s", help="encoder")
    parser.add_argument("--data", type=Path, help="folder to keep the heads in, and to find them in")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        prepare(asked.data or Path(folder), asked.scans)
        rows = [_measure(gain, asked) for gain in GAINS if gain.method in asked.method]
    return finish(f"{asked.config}, {asked.batch} scans per step", rows, asked.output, ("torch",), began)


def _measure(gain: Gain, asked: argparse.Namespace) -> Row:
    """Scans per second with and without, step by step in turn."""
    import torch

    from headctssl.training.distributed import Process
    from headctssl.training.pretrain_call import PretrainCall, Request, open_call

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = (f"training.batch_size={asked.batch}", f"training.num_steps={asked.steps}")

    def call(settings: tuple[str, ...]) -> PretrainCall:
        overrides = (*common, *settings)
        return open_call(
            Request((DATASET,), gain.method, asked.config, "plans", None, "all", 0, overrides), device, Process()
        )

    one = call(gain.settings)
    shape = list(one.settings.input.shape)
    other = call(tuple(text.format(shape=shape) for text in gain.without))
    sides = [whole_steps(one, device), whole_steps(other, device)]
    seconds: list[list[float]] = [[], []]
    for _ in range(asked.steps):
        for side, kept in zip(sides, seconds, strict=True):
            kept.append(next(side)[0])
    with_it, without = (float(f"{asked.batch / median(kept[1:]):.4g}") for kept in seconds)
    ratio = float(f"{with_it / without:.3g}")
    return Row(f"{gain.method}: {gain.what}", with_it, without, ratio, asked.steps - 1, "scans/s", gain.other)


if __name__ == "__main__":
    raise SystemExit(main())
