"""Layer rates: learning rates of an encoder's layers that fall towards the input."""

from __future__ import annotations

from torch import nn

from headctssl.methods.method import ParamGroup, no_decay_names, split_decay
from headctssl.networks.encoder import Encoder

__all__ = ["encoder_groups"]


def encoder_groups(encoder: Encoder, layer_decay: float) -> list[ParamGroup]:
    """The trainable parameters of an encoder, each in one group; biases, norms, tokens and tables without decay.

    Layer i of n, counted from the input, learns at ``layer_decay ** (n - 1 - i)`` times the rate (BEiT, arXiv
    2106.08254, appendix; MAE, arXiv 2111.06377, table 9). For a plain transformer this is the public code of both:
    the final norm has the full rate, the last block one factor less, and the embedding the least.

    Args:
        encoder: its `layers` say what stands where, asked only where `layer_decay` is below 1.
        layer_decay: in (0, 1]; 1 gives every layer the same rate.

    Raises:
        UsageError: the family does not say which layer is nearer to the input.
    """
    if layer_decay == 1.0:
        return split_decay(encoder, name="encoder")
    layers = encoder.layers()
    exempt = no_decay_names(encoder)
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        where = [n for n, parts in enumerate(layers) if any(name == p or name.startswith(f"{p}.") for p in parts)]
        assert len(where) == 1, f"the parameter '{name}' is in the layers {where}"
        if parameter.requires_grad:
            members.setdefault((where[0], name not in exempt), []).append(parameter)
    return [
        ParamGroup(
            f"encoder.{layer:02d}.{'decay' if decays else 'no_decay'}",
            tuple(parameters),
            layer_decay ** (len(layers) - 1 - layer),
            decays,
        )
        for (layer, decays), parameters in sorted(members.items(), key=lambda entry: (entry[0][0], not entry[0][1]))
    ]
