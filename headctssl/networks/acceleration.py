"""Acceleration: the blocks of transformers, computed again in the backward pass or compiled."""

from __future__ import annotations

import functools
import warnings

import torch
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headctssl.errors import UsageError
from headctssl.networks.transformer import Block

__all__ = ["compile_blocks", "recompute_blocks", "why_not_compiled"]

_MOST_VERSIONS = 64
"""Compiled versions of one function that torch keeps: by default 8, and views, teacher and monitor need as many."""


def recompute_blocks(module: nn.Module) -> int:
    """Keep only the input of each transformer block for the backward pass, which computes the rest again.

    Gradients are the same (arXiv 1604.06174), for a third more work. Blocks without gradients, as a teacher's, are left
    alone. Names and state stay.

    Args:
        module: built and with its weights; it must not be copied afterwards.

    Returns:
        How many blocks.

    Raises:
        UsageError: it has no transformer block that is trained.
    """
    blocks = [
        part
        for part in module.modules()
        if isinstance(part, Block | EvaBlock) and any(p.requires_grad for p in part.parameters())
    ]
    if not blocks:
        raise UsageError(
            "Only transformers compute their blocks again to save memory.",
            got="training.recompute=true with an encoder without transformer blocks",
            expected="an encoder of the family vit or primus",
            do="Leave training.recompute out; training.accumulation saves memory with every encoder.",
        )
    for block in blocks:
        # Set on this block alone, so that the names of its weights stay as they are.
        setattr(block, "forward", functools.partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010  for mypy
    return len(blocks)


def compile_blocks(module: nn.Module, device: torch.device) -> str:
    """Compile each `Block`, the teacher's too, on its first use; blocks of one width share what is compiled.

    Each shape of input is compiled anew, and so is each chance of dropping a branch. torch keeps what it compiled on
    disk (``TORCHINDUCTOR_CACHE_DIR``). Measured on one thread of an AVX512-BF16 CPU, forward and backward pass of a
    block of ViT-B in bfloat16: 7-12 % more speed at 513 tokens, 1-8 % at 129, 3 % of a whole MAE step, after half a
    minute to two of compiling per shape; in float32 none. So no plan asks for it.

    Args:
        module: built and with its weights; it must not be copied afterwards.
        device: where it computes.

    Returns:
        What was done, or why nothing was, as a sentence for the log.
    """
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    if not blocks:
        return "not compiled: no block of the family vit"
    if reason := why_not_compiled(device):
        return f"not compiled: {reason}"
    torch._dynamo.config.recompile_limit = _MOST_VERSIONS
    for block in blocks:
        setattr(block, "forward", torch.compile(block.forward, dynamic=False))  # noqa: B010  as above, for mypy
    return f"{len(blocks)} transformer blocks are compiled on first use"


def why_not_compiled(device: torch.device) -> str | None:
    """What keeps torch from compiling for a device, found by trying; None where it works."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on what else a machine does not have
            probe = torch.compile(_probe, dynamic=False)
            torch.autograd.backward(probe(torch.ones(16, device=device, requires_grad=True)))
    except Exception as error:  # no compiler, no Triton, no headers: each has an error of its own, some plain
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
    return None


def _probe(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x).sum()
