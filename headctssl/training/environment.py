"""Environment: environment.json, in what versions, on what hardware and on which data a run was made."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

import headctssl
from headctssl.contract import StorageRule
from headctssl.planning.machine import available_cores
from headctssl.settings import Settings

__all__ = ["Environment", "data_digest", "describe_environment", "differences"]

_PACKAGES = (
    "acvl-utils",
    "batchgenerators",
    "batchgeneratorsv2",
    "blosc2",
    "dynamic-network-architectures",
    "monai",
    "nibabel",
    "numpy",
    "pydantic",
    "safetensors",
    "scipy",
    "SimpleITK",
    "torch",
)


class Environment(Settings):
    """environment.json: versions, hardware and a digest of the data; no path, user, host or case name."""

    format: Literal[1] = 1
    package_version: str
    git_commit: str | None
    git_changed: bool | None
    python: str
    system: str
    machine: str
    processor: str
    cores: int
    memory_gb: float
    device: str
    packages: tuple[tuple[str, str], ...]
    usable_cores: int = Field(0, description="Cores that the process might use; 0: not noted.")
    threads: int = Field(0, description="Threads of an operation on the CPU; 0: not noted.")
    processes: int = Field(0, description="Processes that shared the run; 0: not noted.")
    cuda: str | None = Field(None, description="Version of CUDA that torch was built for, where it was used.")
    data_digest: str = Field("", description="SHA-256 over storage rule and cases, first 16 hex digits.")


def data_digest(storage: StorageRule, cases_digest: str) -> str:
    """What names the data of a run: the rule they are stored under and the digest of its cases.

    Args:
        storage: the storage rule.
        cases_digest: digest of the case list.
    """
    return hashlib.sha256(f"{storage.digest()}\n{cases_digest}".encode()).hexdigest()[:16]


def describe_environment(device: torch.device, *, data: str = "", processes: int = 1) -> Environment:
    """What environment.json says of this process.

    Args:
        device: where the run computes.
        data: from `data_digest`.
        processes: that share the run.
    """
    commit, changed = _git_state(Path(headctssl.__file__).resolve().parent)
    cuda = device.type == "cuda"
    return Environment(
        package_version=headctssl.__version__,
        git_commit=commit,
        git_changed=changed,
        python=platform.python_version(),
        system=platform.system(),
        machine=platform.machine(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        device=torch.cuda.get_device_name(device) if cuda else device.type,
        packages=tuple((name, _version(name)) for name in _PACKAGES),
        usable_cores=available_cores(),
        threads=torch.get_num_threads(),
        processes=processes,
        cuda=torch.version.cuda if cuda else None,
        data_digest=data,
    )


def differences(before: Environment, now: Environment) -> list[str]:
    """What is not as it was, one sentence per field: versions, git state, hardware; not the data.

    Args:
        before: of the run.
        now: of this process. A field that was not noted is not compared.
    """
    one, other = dict(before.packages), dict(now.packages)
    found = [
        f"{name}: {one[name]} then, {other[name]} now"
        for name in sorted(one)
        if other.get(name, one[name]) != one[name]
    ]
    for name in Environment.model_fields:
        was, is_now = getattr(before, name), getattr(now, name)
        if name not in ("format", "packages", "data_digest") and was not in (0, None) and was != is_now:
            found.append(f"{name}: {was} then, {is_now} now")
    if before.git_changed:
        found.append("git_changed: the package had changes then that no commit holds")
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that the package lies in and whether the package was changed; None outside of one."""
    if not (package.parent / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", package.name))
    except (OSError, subprocess.SubprocessError):
        return None, None
