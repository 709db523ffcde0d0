"""Machine: what a run has to work with, found and measured in about half a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from headctssl.errors import UsageError
from headctssl.settings import Settings

if TYPE_CHECKING:
    import torch

__all__ = ["Machine", "available_cores", "detect_machine"]

_SECONDS_PER_PROBE = 0.06
_CPU_BF16_FLAGS = {"avx512_bf16", "avx512bf16", "amx_bf16", "bf16"}


class Machine(Settings):
    """What one process of a run has to work with. No host name, no serial number."""

    device: str = Field(description="'cpu', 'cuda', 'cuda:1' ...")
    memory_gb: float = Field(gt=0, description="Memory of the device in GB (10^9 bytes).")
    cores: int = Field(ge=1, description="CPU cores this process may use.")
    bf16: bool = Field(description="Whether the device multiplies in bfloat16 faster than in float32.")
    matmul_gflops_float32: float = Field(gt=0, description="Matrix products of transformer size, 10^9 operations/s.")
    matmul_gflops_bf16: float = Field(gt=0, description="The same in bfloat16.")
    conv_gflops_float32: float = Field(gt=0, description="3D convolutions, 10^9 operations/s.")
    conv_gflops_bf16: float = Field(gt=0, description="The same in bfloat16.")
    elementwise_per_ns: float = Field(gt=0, description="Elements per ns of an elementwise function (GELU).")
    bandwidth_gb_s: float = Field(gt=0, description="Memory traffic of a float32 sum, 10^9 bytes/s.")
    launch_us: float = Field(ge=0, description="Overhead of one small operation in microseconds.")

    @property
    def is_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return self.device == "cpu"


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=4)
def detect_machine(device: str | None = None) -> Machine:
    """Look at this machine and measure its throughput; measured once per process and device.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``; a CUDA device where there is one when None.

    Raises:
        UsageError: the device is unknown or not there.
    """
    import torch

    target = _device(device)
    cuda = target.type == "cuda"
    bf16_known = torch.cuda.is_bf16_supported() if cuda else _cpu_has_bf16()
    speeds = {dtype: _speeds(target, dtype) for dtype in (torch.float32, torch.bfloat16)}
    slow, fast = speeds[torch.float32], speeds[torch.bfloat16]
    return Machine(
        device=str(target),
        memory_gb=round(_memory_bytes(target) / 1e9, 1),
        cores=available_cores(),
        bf16=bool(bf16_known and fast[0] > 1.2 * slow[0]),
        matmul_gflops_float32=slow[0],
        matmul_gflops_bf16=fast[0],
        conv_gflops_float32=slow[1],
        conv_gflops_bf16=fast[1],
        elementwise_per_ns=_elementwise(target),
        bandwidth_gb_s=_bandwidth(target),
        launch_us=_launch_us(target),
    )


def _device(device: str | None) -> torch.device:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        target = None
    count = torch.cuda.device_count()
    if target is None or target.type not in ("cpu", "cuda"):
        raise UsageError("The device is unknown.", got=device, expected="cpu, cuda or cuda:N", do="Correct --device.")
    if target.type == "cuda" and (target.index or 0) >= count:
        raise UsageError(
            "The device is not there.",
            got=device,
            expected=f"cpu{''.join(f', cuda:{i}' for i in range(count))}",
            do="Correct --device, or leave it out.",
        )
    return target


def _cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions (AVX512-BF16, AMX or ARM's)."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return bool(_CPU_BF16_FLAGS & set(line.split()))
    return False


def _memory_bytes(target: torch.device) -> float:
    import torch

    if target.type == "cuda":
        return float(torch.cuda.mem_get_info(target)[1])
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
        if text.isdigit():
            total = min(total, float(text))
    return total


def _per_second(work: Callable[[], object], amount: float, target: torch.device) -> float:
    """Amount of work per second, the best of several short rounds (other processes only slow it down)."""
    import torch

    def timed(rounds: int) -> float:
        begin = time.perf_counter()
        for _ in range(rounds):
            work()
        if target.type == "cuda":
            torch.cuda.synchronize(target)
        return (time.perf_counter() - begin) / rounds

    timed(1)
    once = timed(1)
    rounds = max(1, min(200, int(_SECONDS_PER_PROBE / 3 / max(once, 1e-7))))
    return amount / min(once, *(timed(rounds) for _ in range(3)))


def _speeds(target: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """GFLOP/s of a matrix product (1024, 384) x (384, 1536) and of a 3^3 convolution 32 -> 32 on (2, 24, 24, 24)."""
    import torch
    from torch.nn import functional

    scale = 8 if target.type == "cuda" else 1
    a = torch.ones((1024 * scale, 384), dtype=dtype, device=target)
    b = torch.ones((384, 1536), dtype=dtype, device=target)
    x = torch.ones((2 * scale, 32, 24, 24, 24), dtype=dtype, device=target)
    w = torch.ones((32, 32, 3, 3, 3), dtype=dtype, device=target)
    with torch.no_grad():
        matmul = _per_second(lambda: a @ b, 2.0 * a.shape[0] * 384 * 1536, target)
        conv_flops = 2.0 * 27 * 32 * 32 * 24**3 * x.shape[0]
        conv = _per_second(lambda: functional.conv3d(x, w, padding=1), conv_flops, target)
    return round(matmul / 1e9, 2), round(conv / 1e9, 2)


def _elementwise(target: torch.device) -> float:
    """Elements per ns of a GELU in bfloat16, on as many elements as a layer of a small transformer has."""
    import torch
    from torch.nn import functional

    x = torch.ones((1024 * (16 if target.type == "cuda" else 1), 768), dtype=torch.bfloat16, device=target)
    with torch.no_grad():
        return round(_per_second(lambda: functional.gelu(x), x.numel(), target) / 1e9, 4)


def _bandwidth(target: torch.device) -> float:
    """GB/s of an elementwise float32 sum of 16 MB arrays: two read, one written."""
    import torch

    a = torch.ones(4_000_000, device=target)
    out = torch.empty_like(a)
    return round(_per_second(lambda: torch.add(a, a, out=out), 3.0 * 4 * a.numel(), target) / 1e9, 3)


def _launch_us(target: torch.device) -> float:
    import torch

    a = torch.ones(8, device=target)
    return round(1e6 / _per_second(lambda: a.add_(0.0), 1.0, target), 2)
