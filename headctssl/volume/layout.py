"""Layout: how a stored array is cut up and compressed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headctssl.settings import Settings

__all__ = ["StoreLayout"]


class StoreLayout(Settings):
    """Chunks and codec of stored arrays. Never part of the storage digest: the voxels are the same in any layout."""

    codec: Literal["zstd", "lz4"] = Field("zstd", description="Compressor of blosc2; bytes are shuffled before it.")
    level: int = Field(1, ge=1, le=9, description="Level of the compressor.")
    chunk: int = Field(64, ge=8, le=512, description="Edge in voxels of a chunk, which is read and checked as a whole.")
    block: int = Field(32, ge=8, le=512, description="Edge in voxels of a block, which is decompressed as a whole.")
