"""Losses under autocast: every product of a loss keeps the float32 of its inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from headctssl.methods.dino.dino_loss import cross_view_loss, koleo, sinkhorn, teacher_probabilities
from headctssl.methods.dinov2.dinov2_loss import masked_token_loss
from headctssl.methods.jepa.jepa_loss import normalised_targets, predicted_token_loss
from headctssl.methods.lejepa.lejepa_loss import prediction_loss, random_directions, sigreg
from headctssl.methods.simclr.simclr_loss import nt_xent
from headctssl.methods.spread import directions_used, unit_spread
from headctssl.methods.voco.voco_loss import assign, overlap_loss, separation_loss

Loss = Callable[[Tensor], Tensor]
"""Of eight alike features (8, 32)."""

LOSSES: dict[str, Loss] = {
    "koleo": koleo,
    "sinkhorn": lambda x: sinkhorn(x, 0.07),
    "teacher_probabilities": lambda x: teacher_probabilities(x, x.mean(0), 0.04),
    "cross_view_loss": lambda x: cross_view_loss([sinkhorn(x, 0.1), sinkhorn(-x, 0.1)], [x, 2 * x, -x], 0.1),
    "masked_token_loss": lambda x: masked_token_loss(sinkhorn(x, 0.1), x, torch.full((8,), 0.125), 0.1),
    "nt_xent": lambda x: nt_xent(x.view(2, 4, 32), 0.5)[0],
    "sigreg": lambda x: sigreg(x.view(2, 4, 32), random_directions(32, 64, 0)),
    "predicted_token_loss": lambda x: predicted_token_loss(
        x.view(2, 4, 32), normalised_targets(-x.view(2, 4, 32)), torch.ones(2, 4)
    ),
    "prediction_loss": lambda x: prediction_loss(x.view(2, 4, 32), 1),
    "overlap_loss": lambda x: overlap_loss(torch.eye(4).expand(2, 4, 4), assign(x.view(2, 4, 32), -x.view(2, 4, 32))),
    "separation_loss": lambda x: separation_loss(x.view(2, 4, 32)),
    "unit_spread": unit_spread,
    "directions_used": directions_used,
}


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_neither_a_loss_nor_its_gradient(name: str) -> None:
    torch.manual_seed(0)
    alike = functional.normalize(torch.randn(1, 32) + 0.05 * torch.randn(8, 32), dim=-1)
    results = []
    for half in (False, True):
        x = alike.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = LOSSES[name](x)
        assert loss.dtype == torch.float32
        gradient = torch.autograd.grad(loss.sum(), x)[0] if loss.requires_grad else torch.zeros(1)
        results.append((loss.detach(), gradient))
    (plain, plain_gradient), (cast, cast_gradient) = results
    assert torch.equal(plain, cast)
    assert torch.equal(plain_gradient, cast_gradient)
