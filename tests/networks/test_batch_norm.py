"""Batch norm: two processes compute what one does on the whole batch, with gradient and running statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from headctssl.networks.batch_norm import GlobalBatchNorm3d


def norm() -> GlobalBatchNorm3d:
    layer = GlobalBatchNorm3d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, -0.3]))
    return layer.train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, 3, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1, 1) + 2
    return x, torch.randn(x.shape, generator=generator)


def half_of_the_batch(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    layer = norm()
    x, outer = (part[2 * rank : 2 * rank + 2] for part in batch())
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * outer).sum().backward()
    grads = [layer.weight.grad, layer.bias.grad]
    for grad in grads:
        dist.all_reduce(grad)
    eval_out = layer.eval()(x[:1]).detach()
    torch.save((out.detach(), x.grad, grads, dict(layer.named_buffers()), eval_out), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    multiprocessing.spawn(half_of_the_batch, args=(str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    layer, plain = norm(), nn.BatchNorm3d(3).train()
    plain.load_state_dict(layer.state_dict())
    x, outer = batch()
    x.requires_grad_()
    out = plain(x)
    (out * outer).sum().backward()
    assert torch.equal(layer(x), out), "one process is torch's norm"
    assert x.grad is not None
    torch.testing.assert_close(torch.cat([h[0] for h in halves]), out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([h[1] for h in halves]), x.grad, atol=1e-4, rtol=1e-3)
    for half in halves:
        for ours, theirs in zip(half[2], (plain.weight.grad, plain.bias.grad), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        for name, value in plain.named_buffers():
            torch.testing.assert_close(half[3][name], value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(halves[0][4], plain.eval()(x[:1]), atol=1e-5, rtol=1e-4)


def test_sixteen_bits_stay_sixteen_bits() -> None:
    layer = norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(batch()[0].bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", [True, False])
def test_only_training_looks_at_batch_mates(mode: bool) -> None:
    layer = norm().train(mode)
    x, _ = batch()
    alone, together = layer(x[:1]), layer(x)[:1]
    assert torch.allclose(alone, together, atol=1e-6) != mode
