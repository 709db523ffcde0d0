"""Measure: a few real steps of a run in a process of their own: its memory is the run's, and a crash is survived."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from headctssl.errors import HeadCTSSLError
from headctssl.planning.run_settings import RunSettings
from headctssl.training.distributed import Process
from headctssl.training.pretrain_call import Request, open_call
from headctssl.training.pretrain_parts import build_learner, make_trainer
from headctssl.training.run_lines import read_metrics
from headctssl.training.run_log import RunLog

__all__ = ["Measured", "measure", "steps_to_measure"]

_WARM_UP = 2  # steps that still allocate, compile and fill the readers
_MOST_STEPS = 12
_FEWEST_STEPS = 3
_SECONDS = 20.0
_MOST_SECONDS = 240.0
_CUDA_CONTEXT_GB = 0.5  # of the driver and its kernels; not measured


@dataclass(frozen=True)
class Measured:
    """What a few steps took, or why there is no number."""

    step_seconds: float = 0.0
    data_wait: float = 0.0
    memory_gb: float = 0.0
    steps: int = 0
    out_of_memory: bool = False
    failure: str = ""


class _PlainLog(RunLog):
    """Lines only: drawing a picture would be most of the time."""

    def picture(self, *, final: bool = False) -> None:
        del final


def steps_to_measure(step_seconds: float) -> int:
    """How many steps to measure for a modelled time of a step: about 20 s worth, 3 to 12; 0 when that is minutes."""
    if step_seconds * (_WARM_UP + _FEWEST_STEPS + 1) > _MOST_SECONDS:
        return 0
    return max(_FEWEST_STEPS, min(_MOST_STEPS, int(_SECONDS / max(step_seconds, 1e-6))))


def measure(request: Request, settings: RunSettings, device: torch.device, steps: int) -> Measured:
    """Run some steps of one process and leave nothing behind.

    Args:
        request: what was asked for.
        settings: of one process: its share of the batch is the whole batch here.
        device: where to compute.
        steps: from `steps_to_measure`, 1 or more.
    """
    training = settings.training.model_copy(
        update={
            "num_steps": _WARM_UP + steps + 1,
            "warmup_steps": 0,
            "log_every": 1,
            "checkpoint_every": 10**9,
        }
    )
    monitor = settings.monitor.model_copy(update={"every": 10**9, "probe_cases": 0})
    short = settings.model_copy(update={"training": training, "monitor": monitor})
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_run, args=(request, short, str(device), torch.get_num_threads(), theirs))
    worker.start()
    theirs.close()
    try:
        found: Measured = ours.recv()
    except EOFError:
        worker.join()
        killed = worker.exitcode is not None and worker.exitcode < 0
        return Measured(out_of_memory=killed, failure=f"the measuring process ended with code {worker.exitcode}")
    finally:
        ours.close()
    worker.join()
    return found


def _run(request: Request, settings: RunSettings, device: str, threads: int, answer: Connection) -> None:
    torch.set_num_threads(threads)
    try:
        found = _steps(request, settings, torch.device(device))
    except torch.OutOfMemoryError:
        found = Measured(out_of_memory=True, failure="the memory of the device was not enough")
    except HeadCTSSLError as error:
        found = Measured(failure=error.what)
    answer.send(found)


def _steps(request: Request, settings: RunSettings, device: torch.device) -> Measured:
    process = Process()
    call = open_call(request, device, process, settings=settings)
    learner, _ = build_learner(call)
    with tempfile.TemporaryDirectory(prefix="headct_estimate_") as name:
        folder = Path(name)
        log = _PlainLog(folder, quiet=True)
        trainer = make_trainer(call, learner, folder, log, device, process)
        log.open(0)
        try:
            trainer.run()
        finally:
            log.close()
        lines = read_metrics(folder / "metrics.jsonl")
    # The last line also holds the monitor.
    kept = [line for line in lines if _WARM_UP < int(line["step"] or 0) < settings.training.num_steps]
    speeds = [float(line["scans_per_second"] or 0.0) for line in kept]
    waits = [float(line["data_wait"] or 0.0) for line in kept]
    return Measured(
        step_seconds=settings.training.batch_size / statistics.median(speeds),
        data_wait=statistics.mean(waits),
        memory_gb=round(_peak_bytes(device) / 1e9, 2),
        steps=len(kept),
    )


def _peak_bytes(device: torch.device) -> float:
    """Most memory that this process held: on the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + _CUDA_CONTEXT_GB * 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which a new process takes over from the one that started it.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM"):
                return float(line.split()[1]) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
