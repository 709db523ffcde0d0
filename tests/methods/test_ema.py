"""Tests of the teacher that follows: one fused operation over all weights equals the loop."""

from __future__ import annotations

import pytest
import torch

from headctssl.methods.ema import make_teacher, update_teacher
from headctssl.networks import build_encoder


@pytest.mark.parametrize("name", ["vit_test", "unet3d_test"])
@pytest.mark.parametrize("momentum", [0.0, 0.994, 1.0])
def test_the_teacher_follows_bit_for_bit_as_in_a_loop(name: str, momentum: float) -> None:
    torch.manual_seed(0)
    student = build_encoder(name)
    teacher, loop = make_teacher(student), make_teacher(student)
    with torch.no_grad():
        for values in (*student.parameters(), *student.buffers()):
            if values.is_floating_point():
                values.add_(torch.randn_like(values))
        for follower, leader in zip(loop.parameters(), student.parameters(), strict=True):
            follower.lerp_(leader, 1.0 - momentum)
    update_teacher(teacher, student, momentum)
    for one, other in zip(teacher.parameters(), loop.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(one, other)
    assert not any(p.requires_grad for p in teacher.parameters())
