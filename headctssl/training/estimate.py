"""Estimate: what a pretraining run would decide, need and take, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from headctssl.planning.resolve import print_decisions
from headctssl.planning.run_settings import RunSettings
from headctssl.training.distributed import current_process
from headctssl.training.pretrain_call import Request, as_ids, choose_device, open_call

__all__ = ["estimate"]


def estimate(
    dataset_ids: Sequence[int] | int,
    method: str,
    *,
    config: str | None = None,
    plans_name: str = "plans",
    init: Path | str | None = None,
    tag: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    pretrain_on: Literal["train", "all"] = "train",
    where: str | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> RunSettings:
    """Say what `pretrain` with the same arguments would decide, need and take; nothing is written.

    The arguments are those of `pretrain`; `tag`, `resume` and `overwrite` are accepted, so that a call can be
    turned into its estimate as it is, and change nothing here.

    Returns:
        The settings the run would have.

    Raises:
        HeadCTSSLError: as `pretrain`, before its first step.
    """
    del tag, resume, overwrite
    process = current_process()
    request = Request(
        as_ids(dataset_ids), method, config, plans_name, init, pretrain_on, num_workers, tuple(overrides), where
    )
    settings = open_call(request, choose_device(device, process), process).settings
    print_decisions(settings, quiet=quiet)
    return settings
