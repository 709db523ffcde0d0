"""GPU model: the throughput to assume of a GPU that is not there, from its memory and its peak."""

from __future__ import annotations

from headctssl.planning.budget import MATMUL_EFFICIENCY
from headctssl.planning.machine import Machine
from headctssl.planning.relative_cost import REFERENCE

__all__ = ["CORES_PER_GPU", "assumed_tflops", "modelled_gpu"]

_REFERENCE_TFLOPS = 312.0
"""Dense bfloat16 peak of the GPU that `REFERENCE` rounds: an A100."""

_SMALL_TFLOPS = 125.0  # A10, 24 GB
_LARGE_FROM_GB = 32.0

CORES_PER_GPU = 9
"""Cores assumed beside each GPU: one for training, eight for readers."""


def assumed_tflops(memory_gb: float) -> float:
    """The dense bfloat16 peak in TFLOP/s to assume when only the memory is known: an A10's, from 32 GB on an A100's."""
    return _SMALL_TFLOPS if memory_gb < _LARGE_FROM_GB else _REFERENCE_TFLOPS


def modelled_gpu(memory_gb: float, tflops: float) -> tuple[Machine, tuple[str, ...]]:
    """A GPU that is not there.

    Rule: every throughput of the reference GPU, times the ratio of the peaks; the time to launch an operation is the
    same. Assumption: memory traffic grows with the peak, which holds within a third for an A10, an RTX 4090 and an
    A100, and is twice too much for an L4.

    Args:
        memory_gb: memory in GB (10^9 bytes).
        tflops: dense bfloat16 peak in TFLOP/s, as its data sheet says.

    Returns:
        The machine of one process, and what was assumed, a sentence each.
    """
    ratio = tflops / _REFERENCE_TFLOPS
    scaled = {
        name: getattr(REFERENCE, name) * ratio
        for name in (
            "matmul_gflops_float32",
            "matmul_gflops_bf16",
            "conv_gflops_float32",
            "conv_gflops_bf16",
            "elementwise_per_ns",
            "bandwidth_gb_s",
        )
    }
    machine = REFERENCE.model_copy(update={**scaled, "memory_gb": memory_gb, "cores": CORES_PER_GPU})
    share = REFERENCE.matmul_gflops_bf16 / 1e3 / _REFERENCE_TFLOPS * MATMUL_EFFICIENCY
    return machine, (
        f"a GPU with {memory_gb:g} GB and a dense bfloat16 peak of {tflops:g} TFLOP/s, not measured",
        f"linear layers reach {share:.0%} of that peak, everything else in the ratio of round numbers for an A100",
        f"{CORES_PER_GPU} CPU cores beside each GPU",
    )
