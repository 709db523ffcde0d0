"""Whole head: the deterministic view that validation, evaluation, prediction and embedding share, and its encoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headctssl.contract import InputSpec
from headctssl.errors import TrainingError
from headctssl.loading.loader import ordered_batches
from headctssl.loading.views import whole_head_view
from headctssl.preprocessing.index import CaseIndex
from headctssl.training.batches import to_device
from headctssl.training.distributed import Process, gather_shares, share_of
from headctssl.types import Box, PretrainBatch, Triple

__all__ = ["encode", "encode_stored", "head_view", "stored_views"]


def head_view(
    hu: NDArray[np.int16], head_box: Box, spacing_mm: Triple, spec: InputSpec, device: torch.device
) -> Tensor:
    """What the encoder sees of one preprocessed case: the whole head, nothing drawn.

    Args:
        hu: (1, z, y, x) Hounsfield units at storage spacing.
        head_box: (start, stop) per axis in voxels of `hu`.
        spacing_mm: storage spacing (z, y, x).
        spec: shape, rule and windows.
        device: where to compute.

    Returns:
        float32 (1, C, D, H, W) in [0, 1].
    """
    volume = torch.from_numpy(np.ascontiguousarray(hu))[None]
    batch = PretrainBatch(
        volume=volume,
        inside_box=torch.tensor([[(0, n) for n in hu.shape[1:]]]),
        head_box=torch.tensor(head_box, dtype=torch.float32)[None],
        case_index=torch.zeros(1, dtype=torch.int64),
        sample_index=torch.zeros(1, dtype=torch.int64),
        spacing_mm=torch.tensor(spacing_mm, dtype=torch.float32)[None],
        seed=0,
        epoch=0,
    )
    return whole_head_view(to_device(batch, device), spec).groups["global"][0]


def stored_views(
    index: CaseIndex,
    spec: InputSpec,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    order: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The whole-head views of stored cases in the order of the index.

    Args:
        index: the cases, one or more.
        spec: what the encoder sees.
        batch_size: cases per view tensor; the last one may be smaller.
        num_workers: reader processes; 0 reads in this process.
        device: where to compute.
        order: positions of cases in the index to take instead, in this order.

    Yields:
        float32 (B, C, D, H, W) in [0, 1].

    Raises:
        HeadCTSSLError: a case cannot be read; it is named.
    """
    # Whole cases: nothing of the head may be cut off.
    batches = ordered_batches(index, read_shape=None, batch_size=batch_size, num_workers=num_workers, order=order)
    for batch in batches:
        yield whole_head_view(to_device(batch, device), spec).groups["global"][0]


def encode(module: nn.Module, views: Iterable[Tensor], device: torch.device, *, half: bool = False) -> Tensor:
    """Run a module on views: eval mode, no gradient; the module's mode is restored.

    In eval mode no layer mixes samples, so a row does not depend on its batch mates or their order.

    Args:
        module: (B, C, D, H, W) -> (B, ...), on `device`.
        views: tensors (B, C, D, H, W).
        device: where to compute.
        half: multiply in bfloat16; float32 gives the same on every machine but for rounding.

    Returns:
        (N, ...) float32 on the CPU, in order.

    Raises:
        TrainingError: an output is not finite.
    """
    was_training = module.training
    module.eval()
    rows: list[Tensor] = []
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            rows.extend(module(view.to(device)).float().cpu() for view in views)
    finally:
        module.train(was_training)
    out = torch.cat(rows)
    if not bool(torch.isfinite(out).all()):
        raise TrainingError(
            "The network's output is not finite.",
            got="NaN or infinity",
            expected="finite numbers",
            do="The weights are spoilt: train again with a lower training.lr.",
        )
    return out


def encode_stored(
    module: nn.Module,
    index: CaseIndex,
    spec: InputSpec,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    process: Process,
) -> Tensor:
    """Run a module on the whole heads of stored cases, each case once, shared out over the processes.

    Args:
        module: (B, C, D, H, W) -> (B, F), on `device`.
        index: the cases.
        spec: what the module sees.
        batch_size: cases encoded at once.
        num_workers: reader processes of this process; 0 reads in it.
        device: where to compute.
        process: this process; every process of the run must call this.

    Returns:
        (N, F) float32 on the CPU in the order of the index, the same on every process.

    Raises:
        HeadCTSSLError: as `stored_views` and `encode`.
    """
    mine = share_of(index.case_ids, process)
    rows = None
    if mine:
        views = stored_views(index.subset(mine), spec, batch_size=batch_size, num_workers=num_workers, device=device)
        rows = encode(module, views, device)
    return gather_shares(rows, len(index), process)
