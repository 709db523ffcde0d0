"""Batches: iterate over them so that their readers end, and move one to the device."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from headctssl.types import PretrainBatch

__all__ = ["opened", "to_device"]


@contextmanager
def opened(batches: Iterable[PretrainBatch]) -> Iterator[Iterator[PretrainBatch]]:
    """Iterate, and end the reader processes with the block, also after an error whose traceback is kept.

    A traceback keeps the loop's frame and with it the readers; Python would wait for them at exit for ever.
    """
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def to_device(batch: PretrainBatch, device: torch.device) -> PretrainBatch:
    """The batch with its tensors on `device`; indices, boxes and spacings stay on the CPU, where they are read.

    From page-locked memory, so that the copy to a GPU waits neither for the work before it nor makes the loop wait.
    """
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return replace(
        batch,
        volume=move(batch.volume),
        masks={name: move(mask) for name, mask in batch.masks.items()},
        segmentation=None if batch.segmentation is None else move(batch.segmentation),
        known_classes=None if batch.known_classes is None else move(batch.known_classes),
        labels=None if batch.labels is None else move(batch.labels),
    )
