"""Simclr loss: the normalised temperature-scaled cross-entropy (NT-Xent)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["nt_xent"]

# Legend: V = 2 views, B samples of the global batch, D channels.


def nt_xent(embeddings_VBD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """How well each view finds the other one of its scan among all others (arXiv 2002.05709, equation 1).

    Args:
        embeddings_VBD: (2, B, D), of any length; B at least 2, or nothing is to be told apart.
        temperature: divides the cosines.

    Returns:
        Scalar float32, the mean over 2 * B views of the cross-entropy with 2 * B - 1 candidates; and the cosines
        (2 * B, 2 * B), detached, -inf of a view with itself.
    """
    with torch.autocast(embeddings_VBD.device.type, enabled=False):
        unit = functional.normalize(embeddings_VBD.float().flatten(0, 1), dim=-1)
        cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    half = embeddings_VBD.shape[1]
    partner = torch.arange(2 * half, device=unit.device).roll(half)
    return functional.cross_entropy(cosines / temperature, partner), cosines.detach()
