"""Seeding: every random number is a function of (seed, epoch, sample, purpose), so none is saved."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["derive_seed", "sample_generator"]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words, stable over runs, machines and Python versions.

    Args:
        parts: e.g. ``(seed, epoch, sample_index, "crop")``.
    """
    text = "\x1f".join([f"{type(p).__name__}:{p}" for p in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def sample_generator(seed: int, epoch: int, sample_index: int, purpose: str) -> np.random.Generator:
    """The generator of one purpose (``"crop"``, ``"view"``, ``"mask"``) of one sample of one epoch.

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
        sample_index: the position of the sample in the global order of the epoch, from 0.
        purpose: what the numbers are for; different purposes are independent.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(int(seed), int(epoch), int(sample_index), purpose)))
