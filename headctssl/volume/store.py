"""Store: one case on disk as a blosc2 array whose every byte is under a CRC-32.

File = blosc2 frame (header | compressed chunks | index, vlmeta, trailer) + 40-byte footer. blosc2 reads the frame alone
and has no checksum of its own: the CRC-32 of each compressed chunk stands in vlmeta and is checked when the chunk is
read; the CRC-32 of everything else in the frame stands in the footer and is checked before blosc2 sees the file,
because a damaged header can crash it. What chunks and codecs cost is measured in documentation/preprocessing.md; a
layout is a matter of speed and size alone, and any file is read whatever its layout. (The delta filter is left out:
blosc2 4.14 reads such arrays back wrong.)
"""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from headctssl.errors import CorruptCaseError, DataError
from headctssl.paths import atomic_path
from headctssl.settings import Settings
from headctssl.types import Box, Triple
from headctssl.volume.layout import StoreLayout

__all__ = [
    "CaseMeta",
    "StoredArray",
    "StoredCase",
    "corrupt_case",
    "write_array",
    "write_case",
]

Affine = tuple[tuple[float, ...], ...]
Shape = tuple[int, int, int]

_CODECS = {"zstd": blosc2.Codec.ZSTD, "lz4": blosc2.Codec.LZ4}
_STANDARD = StoreLayout()
_MAGIC = b"HEADCT01"
_FOOTER = struct.Struct("<8sQQQII")  # magic, end of header, end of chunks, end of frame, CRC of the rest, CRC of this
_NOT_STORED = 0
_VLMETA_JSON = "headctssl"
_VLMETA_CRC = "chunk_crc32"


class CaseMeta(Settings):
    """What a stored case knows about itself. Holds no path."""

    format: Literal[1] = 1
    units: Literal["HU"] = "HU"
    slope: float = Field(1.0, description="HU per stored unit.")
    intercept: float = Field(0.0, description="HU of stored 0.")
    spacing_mm: Triple = Field(description="Voxel spacing (z, y, x) of the stored array in mm.")
    affine: Affine = Field(description="4x4, index (z, y, x, 1) of the stored array -> (S, P, L, 1) mm.")
    original_affine: Affine = Field(description="4x4, index of the raw image as stored -> (S, P, L, 1) mm.")
    original_shape: Shape = Field(description="Voxels of the raw image as stored.")
    original_spacing_mm: Triple = Field(description="Spacing of the raw image as stored in mm.")
    crop_box: Box = Field(description="Voxels of the straight volume that were resampled.")
    head_box: Box = Field(description="Voxels of the stored array around the head.")
    tilt_deg: float = Field(0.0, description="Gantry tilt of the raw image in degrees.")
    source_sha256: str = Field(description="SHA-256 of the source file or folder.")
    source_size: int = Field(ge=0, description="Bytes of the source.")
    source_mtime_ns: int = Field(description="Modification time of the source in ns.")
    storage_digest: str = Field(description="Digest of the storage rule.")
    masks: tuple[str, ...] = Field((), description="Masks stored beside the case.")


def write_case(
    path: Path, hu: NDArray[np.int16], meta: CaseMeta, *, layout: StoreLayout = _STANDARD, num_threads: int = 1
) -> None:
    """Write a case under a temporary name, read it back, rename it.

    Args:
        path: the file, ``CASE.b2nd``.
        hu: (C, z, y, x) int16, HU.
        meta: what the case knows about itself.
        layout: chunks and codec.
        num_threads: threads of the compressor.

    Raises:
        CorruptCaseError: the file does not read back as written.
    """
    assert hu.dtype == np.int16, "a case is int16"
    assert hu.ndim == 4, "a case is (C, z, y, x)"
    write_array(path, hu, "case", meta.model_dump_json(), layout, num_threads)


def write_array(path: Path, values: NDArray[Any], kind: str, meta: str, layout: StoreLayout, num_threads: int) -> None:
    """Write an array as `write_case` does.

    Args:
        path: the file.
        values: (C, z, y, x).
        kind: what `StoredArray` of this kind will open.
        meta: JSON text of what the array knows about itself.
        layout: chunks and codec.
        num_threads: threads of the compressor.

    Raises:
        CorruptCaseError: the file does not read back as written.
    """
    spatial = values.shape[1:]
    chunks = (1, *(min(layout.chunk, n) for n in spatial))
    blocks = (1, *(min(layout.block, layout.chunk, n) for n in spatial))
    compression = blosc2.CParams(
        codec=_CODECS[layout.codec],
        clevel=layout.level,
        filters=[blosc2.Filter.SHUFFLE],
        filters_meta=[0],
        typesize=values.dtype.itemsize,
        nthreads=num_threads,
    )
    array = blosc2.asarray(np.ascontiguousarray(values), chunks=chunks, blocks=blocks, cparams=compression)
    schunk = array.schunk
    compressed = [schunk.get_chunk(i) for i in range(schunk.nchunks)]
    crc, chunks_end = _chunk_crcs(array.to_cframe(), compressed)
    header = {"kind": kind, "layout": _layout(array), "meta": json.loads(meta)}
    schunk.vlmeta[_VLMETA_JSON] = json.dumps(header)
    schunk.vlmeta[_VLMETA_CRC] = np.array(crc, "<u4").tobytes()
    frame = array.to_cframe()
    with atomic_path(path) as temporary:
        temporary.write_bytes(frame + _footer(frame, chunks_end))
        if not np.array_equal(StoredArray(temporary).read_all(), values):
            raise CorruptCaseError(
                f"{path.name} does not read back as it was written.",
                got="other voxels",
                expected="the same voxels",
                do="Check the disk and the memory of this machine, then run the command again.",
            )


def _layout(array: Any) -> list[str]:
    """What blosc2 makes voxels of a frame with, as text."""
    return [str(array.shape), str(array.chunks), str(array.blocks), str(array.dtype)]


def _header_end(frame: bytes) -> int:
    return int.from_bytes(frame[11:15], "big")  # blosc2 frame format: msgpack int32 after the magic


def _chunk_crcs(frame: bytes, compressed: list[bytes]) -> tuple[list[int], int]:
    """CRC-32 of each chunk and where the last one ends in the frame.

    A chunk of one repeated value is not stored but noted in the index, which the footer covers: its CRC is 0.
    """
    crc = []
    end = _header_end(frame)
    for chunk in compressed:
        stored = frame[end : end + len(chunk)] == chunk
        crc.append(isal_zlib.crc32(chunk) if stored else _NOT_STORED)
        end += len(chunk) if stored else 0
    return crc, end


def _footer(frame: bytes, chunks_end: int) -> bytes:
    header_end = _header_end(frame)
    rest = _crc_of_rest(frame[:header_end], frame[chunks_end:])
    body = _FOOTER.pack(_MAGIC, header_end, chunks_end, len(frame), rest, 0)[:-4]
    return body + struct.pack("<I", isal_zlib.crc32(body))


def _crc_of_rest(header: bytes, trailer: bytes) -> int:
    return int(isal_zlib.crc32(trailer, isal_zlib.crc32(header)))


class StoredArray:
    """An array on disk, opened for partial reading; its header and index are checked on opening.

    Args:
        path: the file.

    Raises:
        DataError: the file does not exist.
        CorruptCaseError: header, index or metadata are damaged, or another program wrote the file.
    """

    kind: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        _check_frame(self.path)
        try:
            self.array = blosc2.open(str(self.path), mode="r", dparams=blosc2.DParams(nthreads=1))
            self._crc = np.frombuffer(self.array.schunk.vlmeta[_VLMETA_CRC], "<u4")
            header = json.loads(self.array.schunk.vlmeta[_VLMETA_JSON])
            kind, layout, self.meta_json = header["kind"], header["layout"], json.dumps(header["meta"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise corrupt_case(self.path, f"{type(error).__name__}: {error}", "a stored case") from None
        if layout != _layout(self.array) or len(self._crc) != self.array.schunk.nchunks:
            raise corrupt_case(self.path, f"layout {_layout(self.array)}", f"layout {layout}")
        if self.kind not in (None, kind):
            raise corrupt_case(self.path, f"a stored {kind}", f"a stored {self.kind}")
        self.shape: tuple[int, int, int, int] = tuple(self.array.shape)

    def check(self, box: Box) -> None:
        """Check the CRC-32 of every compressed chunk that a box touches.

        Args:
            box: (start, stop) in voxels (z, y, x), inside the array.

        Raises:
            CorruptCaseError: a chunk is damaged.
        """
        spans = [range(self.array.chunks[0] and self.shape[0])]
        spans += [
            range(start // edge, -(-stop // edge))
            for (start, stop), edge in zip(box, self.array.chunks[1:], strict=True)
        ]
        counts = [-(-n // edge) for n, edge in zip(self.shape, self.array.chunks, strict=True)]
        for place in itertools.product(*spans):
            self._check_chunk(int(np.ravel_multi_index(place, counts)))

    def _check_chunk(self, number: int) -> None:
        if int(self._crc[number]) == _NOT_STORED:
            return
        try:
            found = isal_zlib.crc32(self.array.schunk.get_chunk(number))
        except (RuntimeError, ValueError) as error:
            raise corrupt_case(self.path, f"chunk {number} cannot be read: {error}", "a whole chunk") from None
        if found != int(self._crc[number]):
            raise corrupt_case(self.path, f"chunk {number} has CRC-32 {found:08x}", f"{int(self._crc[number]):08x}")

    def read_box(self, box: Box) -> NDArray[Any]:
        """A box of voxels (C, d, h, w), after the checks of `check`."""
        for (start, stop), size in zip(box, self.shape[1:], strict=True):
            assert 0 <= start <= stop <= size, f"box {box} is not inside {self.shape}"
        self.check(box)
        try:
            return np.asarray(self.array[(slice(None), *(slice(a, b) for a, b in box))])
        except (RuntimeError, ValueError) as error:
            raise corrupt_case(self.path, f"{type(error).__name__}: {error}", "voxels") from None

    @property
    def whole(self) -> Box:
        """The box of the whole array."""
        return ((0, self.shape[1]), (0, self.shape[2]), (0, self.shape[3]))

    def read_all(self) -> NDArray[Any]:
        """Every voxel, (C, z, y, x), after the checks of `check`."""
        return self.read_box(self.whole)

    def verify(self) -> None:
        """Check every byte of the file and decompress every voxel.

        Raises:
            CorruptCaseError: something is damaged.
        """
        self.read_box(self.whole)


class StoredCase(StoredArray):
    """A case: int16 HU (C, z, y, x). Arguments and errors as `StoredArray`."""

    kind = "case"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.meta = CaseMeta.model_validate_json(self.meta_json)
        except ValidationError as error:
            raise corrupt_case(self.path, error.errors()[0]["msg"], "metadata of format 1") from None

    def read(self, box: Box) -> NDArray[np.int16]:
        """Read a box; only the chunks it touches are read and checked.

        Args:
            box: (start, stop) in voxels (z, y, x), inside the array.

        Returns:
            int16 (C, d, h, w), HU.

        Raises:
            CorruptCaseError: a touched chunk is damaged.
        """
        return self.read_box(box)


def _check_frame(path: Path) -> None:
    """Check header and index before blosc2 opens the file."""
    try:
        with open(path, "rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(0, size - _FOOTER.size))
            footer = handle.read(_FOOTER.size)
            if len(footer) < _FOOTER.size or isal_zlib.crc32(footer[:-4]) != struct.unpack("<I", footer[-4:])[0]:
                raise corrupt_case(path, f"{size} bytes without an intact end", "a whole case file")
            magic, header_end, chunks_end, frame_end, expected, _ = _FOOTER.unpack(footer)
            if magic != _MAGIC or frame_end + _FOOTER.size != size:
                raise corrupt_case(
                    path, f"{size} bytes, mark {magic!r}", f"{frame_end + _FOOTER.size} bytes, {_MAGIC!r}"
                )
            handle.seek(0)
            header = handle.read(header_end)
            handle.seek(chunks_end)
            trailer = handle.read(frame_end - chunks_end)
    except FileNotFoundError:
        raise DataError(
            f"The stored case {path.name} does not exist.",
            got=path,
            expected="a file",
            do="Run headct_plan_and_preprocess again; it makes the cases that are missing.",
        ) from None
    if _crc_of_rest(header, trailer) != expected:
        raise corrupt_case(path, f"CRC-32 {_crc_of_rest(header, trailer):08x} of header and index", f"{expected:08x}")


def corrupt_case(path: Path, got: str, expected: str) -> CorruptCaseError:
    """The error of a stored file that cannot be used, with what to do."""
    return CorruptCaseError(
        f"The stored case {path} is damaged.",
        got=got,
        expected=expected,
        do="Delete this file and run headct_plan_and_preprocess again; check the disk when it happens twice.",
    )
