"""Monitor: the share of a run's time that its monitors take, as planned, on the laptop phantom.

Run as ``python -m benchmarks.monitor``. For each pair a run of 800 steps is resolved; a step, a look and a
probe are timed in turn by processor time on one thread, so that other work on the machine counts little, and the share
is that of as many looks and probes as are planned. The first probe, which loads libraries, is timed in a process of its
own. Ends with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.rows import Row, finish, on_one_thread, value

RESULT = Path(__file__).with_suffix(".json")
PAIRS = (("dino", "vit_tiny"), ("mae", "vit_tiny"), ("dino", "resenc_s"), ("mae", "resenc_s"))
TARGET = 3.0  # percent
CASES, STEPS = 240, 5
LENGTH = 800
"""Steps of a run: what ten minutes allow on two quiet cores; left to the planner, a busy machine would shorten it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="times per pair")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument(
        "--dataset", type=int, help="a labelled, preprocessed dataset of the data roots; else a phantom"
    )
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    on_one_thread("benchmarks.monitor", argv)
    if arguments.first:
        return _print_first()
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    dataset = arguments.dataset or 1
    with tempfile.TemporaryDirectory() as folder:
        if arguments.dataset is None:
            _make_data(Path(folder))
        command = [sys.executable, "-m", "benchmarks.monitor", "--first"]
        first = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        rows = [row for method, config in PAIRS for row in _pair(dataset, method, config, arguments.runs, first)]
    rows.append(value("libraries that the first probe loads", [first], "s"))
    title = f"monitors: share of a run's time, medians of {arguments.runs} runs"
    return finish(title, rows, arguments.output, ("torch", "scikit-learn"), began)


def _make_data(folder: Path) -> None:
    import headctssl

    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir()
        os.environ[f"headctssl_{name}"] = str(folder / name)
    headctssl.make_phantom(1, n=CASES, seed=1, profile="laptop", quiet=True)
    headctssl.plan_and_preprocess([1], quiet=True)


def _pair(dataset: int, method: str, config: str, runs: int, first: float) -> list[Row]:
    import torch

    from headctssl.training.distributed import Process
    from headctssl.training.pretrain_call import Request, open_call
    from headctssl.training.pretrain_parts import build_learner, make_batches, make_trainer
    from headctssl.training.pretrain_watch import watch
    from headctssl.training.run_log import RunLog

    device, process = torch.device("cpu"), Process()
    request = Request((dataset,), method, config, "plans", None, "train", 0, (f"training.num_steps={LENGTH}",))
    call = open_call(request, device, process)
    settings = call.settings
    learner, _ = build_learner(call)
    with tempfile.TemporaryDirectory() as name:
        log = RunLog(Path(name), quiet=True)
        trainer = make_trainer(call, learner, Path(name), log, device, process)
        log.open(0)
        trainer.run(until=2)
        batch = next(iter(make_batches(call, process, 0)))
        watch(trainer, call, Path(name), learner, log)
        monitor, trainer.monitor = trainer.monitor, None
        assert monitor is not None, "just made"
        norm = trainer.last[1]
        steps, looks, probes = [], [], []
        for _ in range(runs):
            steps.append(_timed(lambda: trainer.run(until=trainer.step + STEPS)) / STEPS)
            with torch.no_grad(), trainer._autocast():
                looks.append(_timed(lambda: monitor.look(1, batch, norm)))
                if settings.monitor.probe_cases:
                    probes.append(_timed(monitor.first))
        log.close()
    planned = settings.training.num_steps
    count_looks = planned // settings.monitor.every + 1
    count_probes = 2 + (planned - 1) // settings.monitor.probe_every if probes else 0
    spent = count_looks * median(looks) + (first + count_probes * median(probes) if probes else 0.0)
    share = 100 * spent / (planned * median(steps) + spent)
    watched = f"{count_looks} looks, {count_probes} probes of {settings.monitor.probe_cases} cases in {planned} steps"
    return [
        value(f"{method}, {config}: monitors' share of the time, {watched}", [share], "%", TARGET, "at most"),
        value(f"{method}, {config}: a step", steps, "s"),
        value(f"{method}, {config}: a look", looks, "s"),
        *([value(f"{method}, {config}: a probe", probes, "s")] if probes else []),
    ]


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _print_first() -> int:
    """Seconds that the readouts take the first time in a process, beyond the second."""
    import numpy as np
    import torch

    from headctssl.metrics.classification import mean_auroc
    from headctssl.metrics.probe import attentive_scores, knn_scores, linear_scores

    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(80, 192)), (rng.random((80, 6)) < 0.5).astype(np.float32)
    tokens = torch.from_numpy(rng.normal(size=(80, 64, 192))).half()

    def work() -> None:
        for scores in (
            knn_scores(rows, labels, rows),
            linear_scores(rows, labels, rows),
            attentive_scores(tokens, labels, tokens),
        ):
            mean_auroc(labels.astype(np.float64), scores, np.arange(80), num_resamples=200)

    first, again = _timed(work), _timed(work)
    print(max(0.0, first - again))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
