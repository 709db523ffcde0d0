"""Scan attention: how much each scan of a study weighs, by gated attention over the vectors of its scans."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ScanAttention", "pool_scans"]

# Legend: S scans, B studies, C channels, D hidden units, O outputs of the head.


class ScanAttention(nn.Module):
    """The score of a scan in gated attention pooling (Ilse et al. 2018, arXiv 1802.04712, equation 9).

    The weight of a scan is the softmax, over the scans of its study, of w^T (tanh(V h) * sigmoid(U h)). A score is a
    function of its own scan alone, so scans may be encoded in any batches and be brought together afterwards. It begins
    near the mean of the scans: all three matrices are small.

    Args:
        in_features: channels C of a scan's vector h.
        hidden: rows D of V and U.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.tanh = nn.Linear(in_features, hidden, bias=False)
        self.gate = nn.Linear(in_features, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        for layer in (self.tanh, self.gate, self.score):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, vectors_SC: Tensor) -> Tensor:
        """Scores (S,) of scans, float32 where the vectors are."""
        hidden_SD = torch.tanh(self.tanh(vectors_SC)) * torch.sigmoid(self.gate(vectors_SC))
        scores_S1: Tensor = self.score(hidden_SD)
        return scores_S1[:, 0]


def pool_scans(outputs_SO: Tensor, scores_S: Tensor, study_S: Tensor, num_studies: int) -> Tensor:
    """The outputs of studies: those of their scans, weighed by attention.

    The layer after the pooling is linear and the weights sum to one, so that weighing a head's outputs gives what the
    head gives of the weighed vectors (equation 7), and of one scan its own outputs.

    Args:
        outputs_SO: of a linear layer on each scan's vector.
        scores_S: from `ScanAttention`.
        study_S: int64, number of the study of each scan, from 0; in any order.
        num_studies: B; each has one scan or more.

    Returns:
        (B, O) float32.
    """
    with torch.autocast(outputs_SO.device.type, enabled=False):
        mine_BS = study_S[None] == torch.arange(num_studies, device=study_S.device)[:, None]
        weights_BS = scores_S.float()[None].masked_fill(~mine_BS, -torch.inf).softmax(dim=1)
        return weights_BS @ outputs_SO.float()
