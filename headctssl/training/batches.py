"""Batches: move a batch to the device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headctssl.types import PretrainBatch

__all__ = ["to_device"]


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
        segmentation=None if batch.segmentation is None else move(batch.segmentation),
        known_classes=None if batch.known_classes is None else move(batch.known_classes),
        labels=None if batch.labels is None else move(batch.labels),
    )
