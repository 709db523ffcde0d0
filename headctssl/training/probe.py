"""Probe run: during pretraining, what the encoder's features tell of labels, on cases that are never test cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headctssl.contract import InputSpec
from headctssl.loading.loader import ordered_batches
from headctssl.loading.views import whole_head_view
from headctssl.metrics.classification import auroc, mean_auroc
from headctssl.metrics.probe import attentive_scores, knn_scores, linear_scores
from headctssl.metrics.representation import rank_me
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_from_tokens, tokens_from_grid
from headctssl.training.batches import to_device
from headctssl.training.distributed import Process, gather_shares, share_of
from headctssl.training.probe_cases import ProbeCases

__all__ = ["BEST_BY", "Probe"]

BEST_BY = "probe_linear_auroc"
"""The line of metrics.jsonl by which encoder_probe_best.safetensors is chosen."""

_BATCH = 8  # cases encoded at once
_MOST_PLACES = 8  # per axis, of the tokens that the attentive probe reads
_RESAMPLES = 200  # of the interval: enough for a curve


class Probe:
    """Encodes the probe cases, learns on one part of them and scores the other.

    Nothing is drawn, no weight or running statistic changes, and the state of random generators stays as it is.

    Args:
        cases: from `choose_probe_cases`.
        spec: what the encoder sees.
        attentive: whether tokens are read too.
        process: this process; the cases are shared out over all, and every process must call.
    """

    def __init__(self, cases: ProbeCases, spec: InputSpec, *, attentive: bool, process: Process) -> None:
        self.cases, self.spec, self.attentive, self.process = cases, spec, attentive, process
        items = [(number, case_id) for number, index in enumerate(cases.indexes) for case_id in index.case_ids]
        mine = share_of(items, process)
        parts = [
            index.subset({case_id for place, case_id in mine if place == number})
            for number, index in enumerate(cases.indexes)
        ]
        self.mine = [part for part in parts if len(part)]

    def __call__(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Scores of an encoder, under the names they have in metrics.jsonl.

        Args:
            encoder: in eval mode, on the device.
            device: where it is.
        """
        features, tokens = self.encode(encoder, device)
        if not self.process.is_main:
            return {}
        if not bool(torch.isfinite(features).all()):
            return {"probe_not_finite": float((~torch.isfinite(features)).any(1).sum())}  # cases; the rest is undefined
        rows, learns = features.numpy().astype(np.float64), self.cases.learns
        labels = self.cases.labels
        found = {"probe_rank_me": rank_me(features)}
        scores: dict[str, Callable[[], NDArray[np.float64]]] = {
            "knn": lambda: knn_scores(rows[learns], labels[learns], rows[~learns]),
            "linear": lambda: linear_scores(rows[learns], labels[learns], rows[~learns]),
        }
        if tokens is not None:
            one, other = (tokens[torch.from_numpy(side)].to(device) for side in (learns, ~learns))
            scores["attentive"] = lambda: attentive_scores(one, labels[learns], other)
        truth, subjects = labels[~learns].astype(np.float64), self.cases.subjects[~learns]
        for name, score in scores.items():
            values = score()
            mean, interval = mean_auroc(truth, values, subjects, num_resamples=_RESAMPLES)
            if mean is not None:
                found[f"probe_{name}_auroc"] = mean
            if interval is not None:
                found[f"probe_{name}_auroc_low"], found[f"probe_{name}_auroc_high"] = interval
            if name == "linear":
                each = {label: auroc(truth[:, i], values[:, i]) for i, label in enumerate(self.cases.names)}
                found.update({f"probe_linear_auroc.{label}": v for label, v in each.items() if v is not None})
        return found

    def encode(self, encoder: Encoder, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features (n, C) float32 and tokens (n, N, C) float16 of all cases, on the CPU, on every process.

        Args:
            encoder: in eval mode, on the device.
            device: where it is.
        """
        rows: list[Tensor] = []
        places: list[Tensor] = []
        if self.mine:
            for batch in ordered_batches(self.mine, read_shape=None, batch_size=_BATCH, num_workers=0):
                out = encoder(whole_head_view(to_device(batch, device), self.spec).groups["global"][0])
                rows.append(out.features.float().cpu())
                if self.attentive:
                    places.append(_fewer(out.tokens, out.grid).half().cpu())
        return self._gathered(rows), self._gathered(places) if self.attentive else None

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # which knows no float16
            return gather_shares(torch.cat(parts) if parts else None, len(self.cases), self.process)


def _fewer(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Tokens (B, N, C), averaged over neighbours where a side of the grid has more than 8."""
    size = (min(_MOST_PLACES, grid[0]), min(_MOST_PLACES, grid[1]), min(_MOST_PLACES, grid[2]))
    if size == grid:
        return tokens
    return tokens_from_grid(functional.adaptive_avg_pool3d(grid_from_tokens(tokens.float(), grid), size))
