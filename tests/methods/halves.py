"""Halves: a method's step on two halves of a batch in two processes, against the step on the whole in one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from together import together

from headctssl.methods.method import Method
from headctssl.training.distributed import processes
from headctssl.types import Clock, Views

CLOCK = Clock(0, 10, 0, 5)


def assert_halves_make_the_whole(method: Method, halves: Sequence[Views], whole: Views) -> None:
    """Loss, gradients and buffers of two processes are those of one.

    Args:
        method: built; it takes one step here.
        halves: the views of each process.
        whole: the same scans as one batch.
    """
    found = together(_half_step, method, list(halves))
    loss = method.training_step(whole, CLOCK).loss
    torch.autograd.backward(loss)
    size = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in method.parameters() if p.grad is not None))
    for half_loss, gradients, buffers in found:
        torch.testing.assert_close(torch.tensor(half_loss), loss.detach())
        for (name, parameter), gradient in zip(method.named_parameters(), gradients, strict=True):
            assert parameter.grad is not None
            assert (torch.from_numpy(gradient) - parameter.grad).norm() < 1e-5 * size, name
        for name, buffer in method.named_buffers():
            torch.testing.assert_close(torch.from_numpy(buffers[name]), buffer)


def _half_step(method: Method, halves: list[Views]) -> tuple[float, list[NDArray[Any]], dict[str, NDArray[Any]]]:
    with processes(torch.device("cpu")) as process:
        method = copy.deepcopy(method)  # the parameters came in shared memory
        loss = method.training_step(halves[process.rank], CLOCK).loss
        torch.autograd.backward(loss)
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        for gradient in gradients:  # what DistributedDataParallel does
            dist.all_reduce(gradient)
            gradient /= process.world_size
        buffers = {name: buffer.numpy() for name, buffer in method.named_buffers()}
        return float(loss.detach()), [gradient.numpy() for gradient in gradients], buffers
