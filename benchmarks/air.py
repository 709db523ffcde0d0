"""Air: what leaving tokens of air out saves a masked autoencoder, on synthetic heads through the whole pipeline.

Run as ``python -m benchmarks.air``. Makes and preprocesses synthetic heads, measures how many tokens of the views hold
tissue, and trains with every token and with a share of them in turn. Prints a table and writes ``benchmarks/air.json``.
Figures are medians over steps, on a CPU in seconds of its time, so that other work on the machine counts little; only
ratios of one run should be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from headctssl.training.pretrain_call import PretrainCall
    from headctssl.types import Views

RESULT = Path(__file__).with_suffix(".json")
DATASET = 1
PROFILE = "laptop"  # coarse voxels; the heads and the views of them have the sizes of the clinical profile


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.air", description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=12, help="heads to make")
    parser.add_argument("--steps", type=int, default=9, help="steps per side; the first is not counted")
    parser.add_argument("--batch", type=int, default=4, help="scans per step")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.6], help="values of method.token_share")
    parser.add_argument("-c", "--config", nargs="+", default=["vit_s"], help="encoders")
    parser.add_argument("--scale", type=float, nargs=2, metavar=("LEAST", "MOST"), help="views.global_scale")
    parser.add_argument("--data", type=Path, help="folder to keep the heads in, and to find them in")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        prepare(asked.data or Path(folder), asked.scans)
        rows = [row for config in asked.config for row in _measure(config, asked)]

    from headctssl.console import name_files, table

    cells = [tuple(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    table(f"mae on {asked.scans} synthetic heads, {asked.steps - 1} steps a side", tuple(rows[0]), cells)
    content = {
        "format": 1,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "headctssl")},
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "rows": rows,
    }
    asked.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    name_files([asked.output])
    return 0


def prepare(folder: Path, scans: int) -> None:
    """Heads and their plans under `folder`, made once."""
    import headctssl

    for name in ("raw", "preprocessed", "results"):
        os.environ[f"headctssl_{name}"] = str(folder / name)
    if not any((folder / "preprocessed").glob("Dataset001_*/plans.json")):
        headctssl.make_phantom(DATASET, n=scans, profile=PROFILE, overwrite=True)
        headctssl.plan_and_preprocess([DATASET])


def _measure(config: str, asked: argparse.Namespace) -> list[dict[str, float | str]]:
    """One row per share, beside a run with every token; the sides take turns, step by step."""
    import torch

    from headctssl.training.distributed import Process
    from headctssl.training.pretrain_call import Request, open_call

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = [f"training.batch_size={asked.batch}", f"training.num_steps={asked.steps}"]
    if asked.scale:
        common.append(f"views.global_scale={asked.scale}")
    sides = []
    for share in (1.0, *asked.shares):
        overrides = (*common, f"method.token_share={share}")
        call = open_call(Request((DATASET,), "mae", config, "plans", None, "all", 0, overrides), device, Process())
        sides.append(whole_steps(call, device))
    seconds: list[list[float]] = [[] for _ in sides]
    tissue: list[float] = []
    for _ in range(asked.steps):
        for side, kept in zip(sides, seconds, strict=True):
            took, found = next(side)
            kept.append(took)
            tissue += found
    medians = [median(kept[1:]) for kept in seconds]
    return [
        {
            "encoder": config,
            "view_scale": "{:g} to {:g}".format(*(asked.scale or (0.5, 1.0))),
            "token_share": share,
            "scans_per_second": round(asked.batch / took, 3),
            "ratio": round(medians[0] / took, 2),
            "views_with_more_tissue": round(sum(part > share for part in tissue) / len(tissue), 3),
        }
        | {f"tissue_{p}%": round(sorted(tissue)[len(tissue) * p // 100], 3) for p in (10, 50, 90)}
        for share, took in zip((1.0, *asked.shares), medians, strict=True)
    ]


def whole_steps(call: PretrainCall, device: torch.device) -> Iterator[tuple[float, list[float]]]:
    """Whole steps, as training makes them: seconds, and per scan the share of tokens with tissue where it is known."""
    import torch

    from headctssl.loading.loader import BatchLoader
    from headctssl.loading.views import make_views
    from headctssl.networks import build_from_settings
    from headctssl.training.batches import to_device
    from headctssl.training.optimizer import build_optimizer
    from headctssl.types import Clock

    settings, training = call.settings, call.settings.training
    method = call.method(settings.method)
    method.build(build_from_settings(settings.encoder), settings)
    method.to(device).train()
    optimizer = build_optimizer(method.param_groups(), training)
    half = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")
    loader = BatchLoader(
        call.data.indexes,
        read_shape=settings.read_shape,
        batch_size=training.batch_size,
        samples_per_epoch=training.samples_per_epoch,
        seed=training.seed,
        num_steps=training.num_steps,
        num_workers=0,
    )
    batches = iter(loader)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for step in range(training.num_steps):
        began = clock()
        views = make_views(to_device(next(batches), device), method.views(), settings.input)
        optimizer.zero_grad(set_to_none=True)
        with half:
            loss = method.training_step(views, Clock(step, training.num_steps, 0, 1)).loss
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        yield clock() - began, _tissue(views, settings.encoder.token_size)


def _tissue(views: Views, token_size: tuple[int, int, int]) -> list[float]:
    from torch.nn.functional import max_pool3d

    found = [max_pool3d(tissue.float(), token_size).mean((1, 2, 3, 4)) for tissue in views.tissue.get("global", ())]
    return [float(part) for view in found for part in view]


if __name__ == "__main__":
    raise SystemExit(main())
