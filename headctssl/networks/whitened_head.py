"""Whitened head: a linear head that learns on features whose directions all vary alike, and becomes a plain one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from headctssl.networks.heads import LinearHead

__all__ = ["WhitenedHead", "whitening_matrix"]

# Legend: n cases, C channels.


def whitening_matrix(features_nC: Tensor, shrinkage: float) -> Tensor:
    """The symmetric matrix that makes directions of features vary alike (ZCA).

    ``(S + shrinkage * trace(S) / C * I) ** -1/2`` of the covariance S. The shrinkage keeps directions in which the
    cases do not vary from being blown up without bound.

    Args:
        features_nC: (n, C), n at least 2.
        shrinkage: share of the mean variance, above 0.

    Returns:
        (C, C) float64; the identity where the features do not vary at all.
    """
    covariance_CC = torch.cov(features_nC.double().T).reshape(features_nC.shape[1], -1)
    variances_C, directions_CC = torch.linalg.eigh(covariance_CC)
    variances_C = variances_C.clamp(min=0)
    mean = variances_C.mean()
    if mean <= 0:
        return torch.eye(len(variances_C), dtype=torch.float64)
    matrix_CC: Tensor = (directions_CC * (variances_C + shrinkage * mean).rsqrt()) @ directions_CC.T
    return matrix_CC


class WhitenedHead(nn.Module):
    """A linear head in whitened coordinates.

    Gradient descent finds what lies in directions of little variance late or never (LeCun et al. 1998, Efficient
    BackProp, section 4.3), and frozen features may have nearly all of their variance in one. What is learnt is linear
    in the features all the same: `put_back` gives it to a plain head.

    Args:
        head: as it begins, with its norm settled; it is not changed before `put_back`.
        features: (n, C) of the training cases.
        shrinkage: of `whitening_matrix`, taken of the normalised features.
    """

    def __init__(self, head: LinearHead, features: Tensor, shrinkage: float) -> None:
        super().__init__()
        self.norm = copy.deepcopy(head.norm).eval()
        self.register_buffer("matrix_CC", whitening_matrix(self.norm(features.float()), shrinkage))
        self.matrix_CC: Tensor
        self.head = copy.deepcopy(head)
        self.head.norm = nn.Identity()

    def forward(self, features_BC: Tensor) -> Tensor:
        """As the head: logits (B, L) float32, with attention over scans their scores in a last column."""
        outputs: Tensor = self.head(self.norm(features_BC.float()) @ self.matrix_CC.float())
        return outputs

    @torch.no_grad()
    def put_back(self, head: LinearHead) -> None:
        """Give a head the weights that make it this function.

        Args:
            head: of the same shape, with the norm that this one was made with.
        """
        head.load_state_dict({**head.state_dict(), **self.head.state_dict()})
        readers = [head.linear, *((head.scans.tanh, head.scans.gate) if head.scans is not None else ())]
        for layer in readers:
            layer.weight.copy_(layer.weight.double() @ self.matrix_CC)
