"""Deterministic: operations that give the same bits each time, where a device has a choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headctssl.errors import TrainingError

__all__ = ["deterministic_mode"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic_mode(wanted: bool) -> Iterator[None]:
    """Let torch use only operations that give the same bits each time within the block.

    On a CPU they do anyway (same number of threads). On CUDA sums are made in a fixed order, cuDNN takes the same
    algorithm each time without measuring which is fastest, and cuBLAS gets a fixed workspace; an operation that has
    no such form ends the run (https://docs.pytorch.org/docs/stable/notes/randomness.html).

    Args:
        wanted: False changes nothing.

    Raises:
        TrainingError: an operation has no deterministic form on this device.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # whose property the type checker does not know
    fill = memory.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # read by cuBLAS when it is first used
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it did not write; filling it with NaN would only cost time.
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "deterministic" not in text:
            raise
        raise TrainingError(
            "An operation of this run has no deterministic form on this device.",
            got=text.splitlines()[0][:200],
            expected="operations that give the same bits each time",
            do="Set training.deterministic=false, or train on a CPU.",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
