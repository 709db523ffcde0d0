"""Sparse: a CNN that computes as if hidden blocks did not exist, emulated by hiding them after every layer.

A sparse convolution gives nothing at hidden places and takes nothing from them (arXiv 2301.03580, section 3.1). With
blocks that are whole places of the coarsest stage, that is the dense convolution whose output is set to zero at hidden
places again; norms take their statistics over visible places only. Between these layers stand activations that leave
zero at zero and poolings that never look across a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Size, Tensor, dtype, nn

from headctssl.errors import UsageError
from headctssl.methods.gather import gather_samples
from headctssl.networks.tokens import grid_of, voxels_of_mask

__all__ = ["check_layers", "sparse_batch_norm", "sparse_group_norm", "sparse_layers"]

_NORMS = (nn.InstanceNorm3d, nn.GroupNorm, nn.BatchNorm3d)
_POOLS = (nn.MaxPool3d, nn.AvgPool3d)
_ZERO_STAYS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Identity, nn.Dropout, nn.Dropout3d)


def check_layers(encoder: nn.Module) -> None:
    """Refuse an encoder with a layer that cannot be made sparse.

    Args:
        encoder: a CNN of convolutions, norms, poolings without overlap, and activations that keep zero.

    Raises:
        UsageError: naming the layer.
    """
    for name, layer in encoder.named_modules():
        if next(layer.children(), None) is not None:
            continue
        if isinstance(layer, (nn.Conv3d, *_ZERO_STAYS)):
            continue
        if isinstance(layer, _NORMS) and not (isinstance(layer, nn.InstanceNorm3d) and layer.track_running_stats):
            continue
        if isinstance(layer, _POOLS) and layer.kernel_size == layer.stride and layer.padding in (0, (0, 0, 0)):
            continue
        raise UsageError(
            "SparK cannot make this encoder sparse.",
            got=f"{name}: {layer}",
            expected="convolutions, instance, group or batch norms, poolings without overlap, activations that keep 0",
            do="Choose an encoder of the family resenc, unet3d or segresnet with -c, or the method mae with -m.",
        )


@contextmanager
def sparse_layers(module: nn.Module, visible: Tensor) -> Iterator[None]:
    """Let every convolution and norm of a module be sparse within the block; afterwards it is a plain one again.

    Args:
        module: a CNN that passed `check_layers`; it is to be called on an input that is zero in hidden blocks.
        visible: bool (B, d, h, w), False where a block is hidden; places of every stage are whole parts of a block.
    """
    places = _Places(visible)
    changed: list[nn.Module] = []
    try:
        for layer in module.modules():
            if isinstance(layer, nn.Conv3d):
                forward: Callable[[Tensor], Tensor] = functools.partial(_convolve, layer, places)
            elif isinstance(layer, _NORMS):
                forward = functools.partial(_normalise, layer, places)
            else:
                continue
            # Only on the object, where it hides the method of the class until it is taken away.
            layer.__dict__["forward"] = forward
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]


class _Places:
    """Which places of a stage are visible."""

    def __init__(self, visible: Tensor) -> None:
        self.blocks = visible
        self.stages: dict[tuple[Size, dtype], Tensor] = {}

    def at(self, x: Tensor) -> Tensor:
        """1 at visible places, 0 at hidden ones, (B, 1, D, H, W), in the type of a stage (B, C, D, H, W)."""
        key = (x.shape[2:], x.dtype)
        if key not in self.stages:
            _, d, h, w = self.blocks.shape
            self.stages[key] = voxels_of_mask(self.blocks, grid_of(key[0], (d, h, w))).to(x.dtype)
        return self.stages[key]


def _convolve(layer: nn.Conv3d, places: _Places, x: Tensor) -> Tensor:
    out = type(layer).forward(layer, x)
    return out.mul_(places.at(out))  # a convolution does not need its output for its gradient


def _normalise(layer: nn.Module, places: _Places, x: Tensor) -> Tensor:
    values = x.float()
    visible = places.at(values)
    if isinstance(layer, nn.BatchNorm3d):
        return sparse_batch_norm(layer, values, visible).to(x.dtype)
    assert isinstance(layer, nn.InstanceNorm3d | nn.GroupNorm), "one of the norms that are looked for"
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
    return sparse_group_norm(values, visible, groups, layer.weight, layer.bias, layer.eps).to(x.dtype)


def sparse_group_norm(
    x: Tensor, visible: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Group normalisation (arXiv 1803.08494, equation 7) over visible places only; one group per channel is instance
    normalisation.

    Args:
        x: float32 (B, C, D, H, W), zero at hidden places.
        visible: float32 (B, 1, D, H, W), 1 at visible places and 0 at hidden ones.
        groups: groups of channels.
        weight: factors (C,), or None.
        bias: summands (C,), or None.
        eps: added to the variance.

    Returns:
        float32 (B, C, D, H, W), zero at hidden places.
    """
    channels = x.shape[1] // groups
    number = (visible.flatten(1).sum(1) * channels).clamp(min=1.0)[:, None]
    values_BGN = x.reshape(x.shape[0], groups, -1)
    # Hidden places add nothing to the sums; the squares are summed in one pass, without an array of their own.
    mean = values_BGN.sum(2) / number
    variance = (torch.linalg.vector_norm(values_BGN, dim=2).square() / number - mean.square()).clamp(min=0.0)
    mean, variance = (value.repeat_interleave(channels, dim=1) for value in (mean, variance))
    return _apply(x, visible, mean, variance + eps, weight, bias)


def sparse_batch_norm(norm: nn.BatchNorm3d, x: Tensor, visible: Tensor) -> Tensor:
    """Batch normalisation (arXiv 1502.03167, algorithm 1) over the visible places of the global batch.

    While training, the running statistics of `norm` move as torch's do, towards those of visible places, the same on
    every process.

    Args:
        norm: its parameters, running statistics and mode are used.
        x: float32 (B, C, D, H, W), zero at hidden places.
        visible: float32 (B, 1, D, H, W), 1 at visible places and 0 at hidden ones.

    Returns:
        float32 (B, C, D, H, W), zero at hidden places.
    """
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        number = _over_processes(visible.sum()).clamp(min=1.0)
        squares = torch.linalg.vector_norm(x, dim=(0, 2, 3, 4)).square()
        mean = _over_processes(x.sum((0, 2, 3, 4))) / number
        variance = (_over_processes(squares) / number - mean.square()).clamp(min=0.0)
        _move_statistics(norm, mean.detach(), variance.detach() * number / (number - 1.0).clamp(min=1.0))
    return _apply(x, visible, mean[None], variance[None] + norm.eps, norm.weight, norm.bias)


def _over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over processes, with gradient."""
    return gather_samples(values[None]).sum(0)


def _move_statistics(norm: nn.BatchNorm3d, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


def _apply(
    x: Tensor, visible: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """(x - mean) / sqrt(variance) * weight + bias at visible places; statistics are (B or 1, C)."""
    scale = variance.rsqrt() if weight is None else variance.rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(x * scale[..., None, None, None], shift[..., None, None, None], visible)
