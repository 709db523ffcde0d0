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

from torch import Size, Tensor, nn

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
        self.stages: dict[Size, Tensor] = {}

    def at(self, shape: Size) -> Tensor:
        """Visible places, bool (B, 1, D, H, W), of a stage of (D, H, W)."""
        if shape not in self.stages:
            _, d, h, w = self.blocks.shape
            self.stages[shape] = voxels_of_mask(self.blocks, grid_of(shape, (d, h, w)))
        return self.stages[shape]


def _convolve(layer: nn.Conv3d, places: _Places, x: Tensor) -> Tensor:
    out = type(layer).forward(layer, x)
    return out.masked_fill(~places.at(out.shape[2:]), 0.0)


def _normalise(layer: nn.Module, places: _Places, x: Tensor) -> Tensor:
    visible = places.at(x.shape[2:])
    if isinstance(layer, nn.BatchNorm3d):
        return sparse_batch_norm(layer, x, visible)
    assert isinstance(layer, nn.InstanceNorm3d | nn.GroupNorm), "one of the norms that are looked for"
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
    return sparse_group_norm(x, visible, groups, layer.weight, layer.bias, layer.eps)


def sparse_group_norm(
    x: Tensor, visible: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Group normalisation (arXiv 1803.08494, equation 7) over visible places only, in float32; one group per channel
    is instance normalisation.

    Args:
        x: (B, C, D, H, W).
        visible: bool (B, 1, D, H, W).
        groups: groups of channels.
        weight: factors (C,), or None.
        bias: summands (C,), or None.
        eps: added to the variance.

    Returns:
        (B, C, D, H, W) of the type of `x`, zero at hidden places, whatever stood there.
    """
    channels = x.shape[1] // groups
    values_BGCN = x.float().reshape(x.shape[0], groups, channels, -1)
    hidden = ~visible.flatten(2)[:, None]
    number = (visible.flatten(1).sum(1) * channels).clamp(min=1).view(-1, 1, 1, 1)
    mean = values_BGCN.masked_fill(hidden, 0.0).sum((2, 3), keepdim=True) / number
    centred = (values_BGCN - mean).masked_fill(hidden, 0.0)
    variance = centred.square().sum((2, 3), keepdim=True) / number
    out = (centred * (variance + eps).rsqrt()).view_as(x)
    return _scale(out, visible, weight, bias).to(x.dtype)


def sparse_batch_norm(norm: nn.BatchNorm3d, x: Tensor, visible: Tensor) -> Tensor:
    """Batch normalisation (arXiv 1502.03167, algorithm 1) over the visible places of the global batch, in float32.

    While training, the running statistics of `norm` move as torch's do, towards those of visible places, the same on
    every process.

    Args:
        norm: its parameters, running statistics and mode are used.
        x: (B, C, D, H, W).
        visible: bool (B, 1, D, H, W).

    Returns:
        (B, C, D, H, W) of the type of `x`, zero at hidden places, whatever stood there.
    """
    mean, variance = norm.running_mean, norm.running_var
    values = x.float()
    if norm.training or mean is None or variance is None:
        number = _over_processes(visible.sum().float()).clamp(min=1)
        mean = _over_processes(values.masked_fill(~visible, 0.0).sum((0, 2, 3, 4))) / number
        centred = (values - mean.view(1, -1, 1, 1, 1)).masked_fill(~visible, 0.0)
        variance = _over_processes(centred.square().sum((0, 2, 3, 4))) / number
        _move_statistics(norm, mean.detach(), variance.detach() * number / (number - 1).clamp(min=1))
    else:
        centred = values - mean.view(1, -1, 1, 1, 1)
    out = centred * (variance.view(1, -1, 1, 1, 1) + norm.eps).rsqrt()
    return _scale(out, visible, norm.weight, norm.bias).to(x.dtype)


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


def _scale(out: Tensor, visible: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        out = out * weight.view(1, -1, 1, 1, 1)
    if bias is not None:
        out = out + bias.view(1, -1, 1, 1, 1)
    return out.masked_fill(~visible, 0.0)
