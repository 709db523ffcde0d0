"""Batches: move a batch to the device and cut it into the parts of an accumulated step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headctssl.types import PretrainBatch

__all__ = ["split_batch", "to_device"]


def to_device(batch: PretrainBatch, device: torch.device) -> PretrainBatch:
    """The batch with its tensors on `device`; the indices stay on the CPU, where they are read."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return replace(
        batch,
        volume=move(batch.volume),
        inside=move(batch.inside),
        head_box=move(batch.head_box),
        spacing_mm=move(batch.spacing_mm),
        masks={name: move(mask) for name, mask in batch.masks.items()},
        labels=None if batch.labels is None else move(batch.labels),
    )


def split_batch(batch: PretrainBatch, parts: int) -> list[PretrainBatch]:
    """Cut a batch into equal parts along the samples.

    Args:
        batch: B samples, B a multiple of `parts`.
        parts: how many.
    """
    if parts == 1:
        return [batch]
    size = batch.volume.shape[0] // parts
    assert size * parts == batch.volume.shape[0], "the batch cannot be cut into equal parts"
    cuts = [slice(k * size, (k + 1) * size) for k in range(parts)]
    return [
        replace(
            batch,
            volume=batch.volume[cut],
            inside=batch.inside[cut],
            head_box=batch.head_box[cut],
            case_index=batch.case_index[cut],
            sample_index=batch.sample_index[cut],
            spacing_mm=batch.spacing_mm[cut],
            masks={name: mask[cut] for name, mask in batch.masks.items()},
            labels=None if batch.labels is None else batch.labels[cut],
        )
        for cut in cuts
    ]
