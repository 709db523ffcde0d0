"""EMA: a teacher whose weights follow the student's."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["make_teacher", "update_teacher"]

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy with the student's weights, without gradients, in eval mode."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, in place; buffers are copied.

    Args:
        teacher: made by `make_teacher` from the same architecture.
        student: the trained module.
        momentum: share of the teacher that stays, 0 to 1.
    """
    followers: list[Tensor] = list(teacher.parameters())
    leaders: list[Tensor] = list(student.parameters())
    if followers:
        torch._foreach_lerp_(followers, leaders, 1.0 - momentum)
    for follower, leader in zip(teacher.buffers(), student.buffers(), strict=True):
        follower.copy_(leader)
