"""Estimate target: the device that an estimate is for, the one here or one that is described."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headctssl.errors import UsageError
from headctssl.planning.gpu_model import assumed_tflops, modelled_gpu
from headctssl.planning.machine import Machine, detect_machine
from headctssl.training.distributed import Process, current_process
from headctssl.training.pretrain_call import choose_device

__all__ = ["Target", "choose_target"]


@dataclass(frozen=True)
class Target:
    """What the run would have to work with."""

    machine: Machine  # of one process
    gpus: int  # processes
    device: torch.device | None  # to measure on; None: it is not here
    why_modelled: str
    assumptions: tuple[str, ...]


def choose_target(device: str | None, gpu_memory: float | None, gpus: int | None, gpu_tflops: float | None) -> Target:
    """The device here, or the one that is described.

    Args:
        device: as for `pretrain`.
        gpu_memory: GB of a described GPU.
        gpus: how many there are.
        gpu_tflops: dense bfloat16 peak of one.

    Raises:
        UsageError: a number does not fit, or GPUs are described for another device.
    """
    for flag, value in (("--gpu_memory", gpu_memory), ("--gpus", gpus), ("--gpu_tflops", gpu_tflops)):
        if value is not None and not value > 0:
            raise UsageError(f"{flag} does not fit.", got=value, expected="more than 0", do=f"Correct {flag}.")
    described = gpu_memory is not None or gpus is not None or gpu_tflops is not None
    if described and device is not None and not device.startswith("cuda"):
        raise UsageError(
            "GPUs are described for a run on another device.",
            got=f"--device {device}",
            expected="--device, or --gpu_memory, --gpus and --gpu_tflops",
            do="Leave out one of them.",
        )
    here = torch.cuda.is_available()
    if not described or (here and gpu_tflops is None):
        process = Process() if described else current_process()
        target = choose_device(device, process)
        machine = detect_machine(str(target))
        count = gpus or process.world_size
        notes = ["readers and other processes of the machine have memory of their own, which is not counted"]
        if gpu_memory is not None and gpu_memory > machine.memory_gb:
            notes.append(f"a GPU as fast as the one here, with {gpu_memory:g} GB")
        if count > 1:
            notes.append(f"one of {count} processes; what they exchange is not counted")
        machine = machine.model_copy(update={"memory_gb": gpu_memory or machine.memory_gb})
        return Target(machine, count, target, "", tuple(notes))
    memory = gpu_memory or 24.0
    peak = gpu_tflops or assumed_tflops(memory)
    machine, assumptions = modelled_gpu(memory, peak)
    if gpu_memory is None:
        assumptions = (*assumptions, "--gpu_memory was not given")
    if gpu_tflops is None:
        assumptions = (*assumptions, "--gpu_tflops was not given: an A10's, from 32 GB on an A100's")
    if (gpus or 1) > 1:
        assumptions = (*assumptions, "what the processes exchange is not counted")
    why = "there is no GPU here" if not here else "--gpu_tflops describes another GPU"
    return Target(machine, gpus or 1, None, why, assumptions)
