"""Distributed: which process this is under torchrun, and the few collectives the loop needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from headctssl.errors import HeadCTSSLError, UsageError
from headctssl.planning.run_settings import TrainingSettings
from headctssl.training.signals import StopSignal, hold_signals

__all__ = [
    "Process",
    "barrier",
    "check_division",
    "current_process",
    "gather_shares",
    "no_sync",
    "processes",
    "reduce_max",
    "reduce_mean",
    "settle",
    "share_of",
    "wrap",
]

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=2)
"""How long processes wait for what the main one does alone, such as preprocessing a dataset. A process that dies is
noticed at once: the connection breaks, and torchrun ends the others."""


@dataclass(frozen=True)
class Process:
    """One process of a run."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    patient: Any = field(default=None, compare=False, repr=False)  # process group (gloo) for what may take long

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def current_process() -> Process:
    """The process as torchrun's environment describes it; a single one without torchrun.

    Raises:
        UsageError: the environment is incomplete.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    values = [os.environ.get(name) for name in names]
    if values[0] is None or values[2] is None:
        return Process()
    if values[1] is None:
        raise UsageError(
            "The environment of a distributed run is incomplete.",
            got=", ".join(n for n, v in zip(names, values, strict=True) if v is not None),
            expected=", ".join(names),
            do="Start with torchrun --nproc_per_node N -m headctssl pretrain ...",
        )
    return Process(int(values[0]), int(values[1]), int(values[2]))


@contextmanager
def processes(device: torch.device) -> Iterator[Process]:
    """Join the other processes of a torchrun call for the length of the block.

    Args:
        device: a CUDA device selects nccl, anything else gloo.
    """
    process = current_process()
    if process.world_size == 1:
        yield process
        return
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield replace(process, patient=dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))
    finally:
        if joined:
            dist.destroy_process_group()


def wrap(module: nn.Module, process: Process, *, find_unused: bool = False) -> nn.Module:
    """Let gradients be averaged over processes; the module itself when there is one process.

    Args:
        module: its forward must reach every trainable parameter unless `find_unused`.
        process: this process.
        find_unused: whether some parameters get no gradient in some steps.
    """
    if process.world_size == 1:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused)


def reduce_max(values: Tensor, process: Process) -> Tensor:
    """Elementwise largest value over processes, in place."""
    if process.world_size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def reduce_mean(values: Tensor, process: Process) -> Tensor:
    """Elementwise mean over processes, in place."""
    if process.world_size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        values /= process.world_size
    return values


def barrier(process: Process) -> None:
    """Wait until every process is here."""
    if process.world_size > 1:
        dist.barrier(group=process.patient)


def settle(make: Callable[[], T], process: Process) -> T:
    """Let the main process do something alone, and give every process its result.

    Args:
        make: called on the main process only; what it returns is pickled to the others.
        process: this process.

    Raises:
        HeadCTSSLError: of the main process, on every process, also that a signal stopped it. Without this the others
            would report a broken connection.
    """
    if process.world_size == 1:
        return make()
    box: list[Any] = [None]
    made: T | None = None
    if process.is_main:
        try:
            made = make()
            box[0] = made
        except HeadCTSSLError as error:
            box[0] = error
        except StopSignal as told:
            box[0] = told.error
    with hold_signals():  # a signal to all must not take one of them out of the middle of this
        dist.broadcast_object_list(box, src=0, group=process.patient)
        if isinstance(box[0], HeadCTSSLError):
            barrier(process)  # nobody leaves before all have heard it
    if isinstance(box[0], HeadCTSSLError):
        raise box[0]
    result: T = box[0] if made is None else made
    return result


def share_of(items: Sequence[T], process: Process) -> Sequence[T]:
    """The items that this process works on; every item is in the share of exactly one process."""
    return items[process.rank :: process.world_size]


def gather_shares(rows: Tensor | None, total: int, process: Process) -> Tensor:
    """The rows of all processes in the order of the items they were computed from.

    Args:
        rows: (n, ...) on the CPU, one per item of `share_of`; None when the share is empty.
        total: number of items, at least 1.
        process: this process; every process of the run must call this.

    Returns:
        (total, ...), the same on every process.
    """
    assert (0 if rows is None else len(rows)) == len(share_of(range(total), process)), "one row per item of the share"
    parts: list[Tensor | None] = [rows] * process.world_size
    if process.world_size > 1:
        dist.all_gather_object(parts, rows, group=process.patient)
    first = parts[0]
    assert first is not None, "the first process has the first item"
    out = torch.empty(total, *first.shape[1:], dtype=first.dtype)
    for rank, part in enumerate(parts):
        if part is not None:
            out[rank :: process.world_size] = part
    return out


def no_sync(module: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients of accumulated passes are averaged over processes once, with the last pass."""
    if last or not isinstance(module, DistributedDataParallel):
        return contextlib.nullcontext()
    held: contextlib.AbstractContextManager[Any] = module.no_sync()
    return held


def check_division(training: TrainingSettings, device: torch.device, process: Process, *, coupled: bool) -> None:
    """Refuse a batch that cannot be shared out, and a precision that the device does not have.

    Args:
        training: batch size, accumulation, precision.
        device: where the run computes.
        process: this process among those of the run.
        coupled: whether the loss compares the scans of a batch.

    Raises:
        UsageError: they do not go together.
    """
    passes = process.world_size * training.accumulation
    if training.batch_size % passes:
        raise UsageError(
            "training.batch_size cannot be divided over the processes and the accumulation.",
            got=f"{training.batch_size} scans over {process.world_size} x {training.accumulation}",
            expected=f"a multiple of {passes}",
            do=f"Set training.batch_size to {passes * max(1, round(training.batch_size / passes))}.",
        )
    if coupled and training.accumulation > 1:
        raise UsageError(
            "This method compares the scans of a batch, so accumulation changes its loss.",
            got=f"training.accumulation={training.accumulation}",
            expected="1",
            do="Set training.accumulation=1 with a smaller batch, or use more processes.",
        )
    if training.precision == "fp16" and device.type != "cuda":
        raise UsageError(
            "fp16 needs a CUDA device.",
            got=f"training.precision=fp16 on {device.type}",
            expected="bf16 or float32",
            do="Set training.precision=bf16 or float32.",
        )
