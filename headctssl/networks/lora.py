"""LoRA: low-rank adapters beside the linear layers of a transformer, the rest of it frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.networks.encoder import Encoder

__all__ = ["LoraLinear", "add_lora", "lora_layers", "merge_lora"]

_ALIASES = {"qkv": ("qkv", "q_proj", "k_proj", "v_proj")}
"""Families that keep query, key and value in one layer, and those that keep them apart, have one word for them."""


class LoraLinear(nn.Linear):
    """A frozen linear layer plus the product of two small matrices (LoRA, arXiv 2106.09685, section 4.1).

    ``y = W x + b + alpha / rank * up (down dropout(x))``. `down` begins as a Gaussian of variance 1 / inputs and `up`
    as zero, so that the layer begins as the frozen one, to the bit. Weight and bias keep their names.

    Args:
        linear: the layer; its parameters are taken over and frozen.
        rank: columns of `up`, rows of `down`.
        alpha: numerator of the scale.
        dropout: chance that an input of `down` is zeroed while training.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.normal_(self.down, std=linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        low = functional.linear(self.dropout(x), self.down)
        return super().forward(x) + functional.linear(low, self.up) * self.scale

    def merged(self) -> nn.Linear:
        """A plain layer that does the same but for rounding, and without dropout."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        with torch.no_grad():
            plain.weight = nn.Parameter(self.weight + self.scale * self.up @ self.down)
        plain.bias = self.bias
        return plain


def add_lora(
    encoder: Encoder, targets: Sequence[str], *, rank: int, alpha: float, dropout: float = 0.0
) -> tuple[str, ...]:
    """Freeze an encoder and put adapters beside its linear layers.

    Args:
        encoder: changed in place; after this only the adapters learn.
        targets: parts of names: a layer is adapted when a part of its dotted name is one of them. ``qkv`` also means
            layers that keep query, key and value apart.
        rank: of every adapter.
        alpha: scale of every adapter times its rank.
        dropout: on the input of every adapter.

    Returns:
        Names of the adapted layers.

    Raises:
        UsageError: the encoder is a CNN, a target matches no layer, or the rank is no smaller than a layer.
    """
    if encoder.kind == "cnn":
        raise UsageError(
            "LoRA adapts the linear layers of transformers; a CNN has none.",
            got=f"--adapt lora with an encoder of the family {encoder.settings.family}",
            expected="an encoder of the family vit, primus or swin_unetr",
            do="Use --adapt full, --adapt attentive or --adapt linear.",
        )
    linear = {name: module for name, module in encoder.named_modules() if type(module) is nn.Linear}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        names = _ALIASES.get(target, (target,))
        found = {name: module for name, module in linear.items() if set(names) & set(name.split("."))}
        if not found:
            parts = {part for name in linear for part in name.split(".") if not part.isdecimal()}
            raise UsageError(
                f"No linear layer of the encoder is called '{target}'.",
                got=f"lora.targets with '{target}'",
                expected="parts of the names of layers: " + ", ".join(sorted(parts)),
                do="Correct lora.targets.",
            )
        chosen |= found
    for name, module in chosen.items():
        if rank >= min(module.weight.shape):
            raise UsageError(
                "The rank of LoRA is no smaller than a layer that it adapts.",
                got=f"lora.rank={rank}, '{name}' is {module.out_features} x {module.in_features}",
                expected=f"less than {min(module.weight.shape)}",
                do="Choose a lower lora.rank, or --adapt full.",
            )
    encoder.requires_grad_(False)
    for name in sorted(chosen):
        encoder.set_submodule(name, LoraLinear(chosen[name], rank=rank, alpha=alpha, dropout=dropout))
    return tuple(sorted(chosen))


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers of a module with their names."""
    yield from ((name, part) for name, part in module.named_modules() if isinstance(part, LoraLinear))


def merge_lora(module: nn.Module) -> int:
    """Put plain layers that do the same in place of adapted ones.

    Args:
        module: changed in place.

    Returns:
        How many layers were adapted.
    """
    adapted = list(lora_layers(module))
    for name, layer in adapted:
        module.set_submodule(name, layer.merged())
    return len(adapted)
