"""Token share: leaving tokens of air out of views, for encoders that take a part of the tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.networks.encoder import Encoder
from headctssl.types import Views

__all__ = ["check_token_share", "tissue_first", "tissue_tokens", "used_tokens"]

# Legend: B samples, N tokens of a view, U used.

Shape = tuple[int, int, int]


def used_tokens(views: Views, group: str, patch: Shape, share: float) -> list[Tensor | None]:
    """Which tokens of each view of a group are encoded: those with tissue before those of air, each at random.

    All scans use the same number, so that what is drawn for a scan does not depend on the others.

    Args:
        views: with tissue where the share is below 1 (`ViewPlan.tissue`).
        group: the views; one that the batch does not have has none.
        patch: voxels (z, y, x) per token.
        share: U / N; at least one token is used.

    Returns:
        Per view (B, U) int64, ascending, on its device; None when every token is used.
    """
    members = views.groups.get(group, ())
    if share >= 1.0:
        return [None] * len(members)
    used: list[Tensor | None] = []
    for index, view in enumerate(members):
        tissue = tissue_tokens(views, group, index, patch)
        count = max(1, round(share * tissue.shape[1]))
        kept = [
            np.sort(tissue_first(generator.permutation(tissue.shape[1]), row, count))
            for row, generator in zip(tissue, views.generators(f"keep.{group}{index}"), strict=True)
        ]
        used.append(torch.from_numpy(np.stack(kept).astype(np.int64)).to(view.device))
    return used


def tissue_tokens(views: Views, group: str, index: int, patch: Shape) -> NDArray[np.bool_]:
    """Which tokens of a view hold any tissue, (B, N) in the order of `networks.tokens`."""
    blocks = functional.max_pool3d(views.tissue[group][index].float(), patch)
    found: NDArray[np.bool_] = (blocks > 0).flatten(1).cpu().numpy()
    return found


def tissue_first(order: NDArray[np.int64], tissue: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The first `count` of an order of tokens when those with tissue (N,) are moved to the front."""
    return order[np.argsort(~tissue[order], kind="stable")][:count]


def check_token_share(encoder: Encoder, share: float) -> None:
    """Refuse to leave tokens out where the encoder computes every place.

    Raises:
        UsageError: the share is below 1 and the encoder is no plain transformer.
    """
    if share < 1.0 and not encoder.drops_tokens:
        raise UsageError(
            "Only an encoder that can leave tokens out saves time on air.",
            got=f"method.token_share={share:g} with {type(encoder).__name__}",
            expected="method.token_share=1",
            do="Leave method.token_share out, or choose an encoder of the family vit or primus with -c.",
        )
