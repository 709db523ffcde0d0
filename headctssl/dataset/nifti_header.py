"""NIfTI header: the first bytes of a file, decompressed no further than the header goes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

__all__ = ["NiftiHeader", "nibabel_silent", "nifti_header"]

_SIZE = 348
_ENOUGH = 4096  # bytes of the file that hold the header of all but the rare file with long extensions


@dataclass(frozen=True)
class NiftiHeader:
    """What `nibabel.load` would know of a file before its voxels."""

    header: Any  # nibabel.Nifti1Header
    shape: tuple[int, ...]
    affine: NDArray[np.float64]  # (4, 4), index -> (R, A, S) in the file's unit


def nifti_header(path: Path) -> NiftiHeader | None:
    """The header of a plain NIfTI-1 file.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        None for anything else, which `nibabel.load` must judge: NIfTI-2, a damaged file, another format, extensions
        that do not fit into the first 4096 bytes.
    """
    try:
        with open(path, "rb") as handle:
            content = handle.read(_ENOUGH)
    except OSError:
        return None  # told by the reader of any file
    if path.suffix.lower() == ".gz":
        content = _decompressed(content)
    if len(content) < _SIZE + 4 or content[344:348] != b"n+1\0":
        return None
    order = "<" if content[:4] == _SIZE.to_bytes(4, "little") else ">"
    offset = float(np.frombuffer(content, f"{order}f4", count=1, offset=108)[0])
    if not _SIZE <= offset <= len(content):
        return None
    try:
        with nibabel_silent():
            header = nib.Nifti1Header.from_fileobj(io.BytesIO(content))
        return NiftiHeader(header, tuple(header.get_data_shape()), np.array(header.get_best_affine(), np.float64))
    except (HeaderDataError, ValueError, OSError):
        return None


@contextmanager
def nibabel_silent() -> Iterator[None]:
    """Within the block nibabel does not log how it mends a header: its lines name no file. What matters is a note."""
    logger = imageglobals.logger
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _decompressed(start: bytes) -> bytes:
    """What the start of a gzip stream says, empty when it is none."""
    from isal import isal_zlib

    try:
        return isal_zlib.decompressobj(wbits=31).decompress(start, _ENOUGH)
    except cast(type[Exception], isal_zlib.error):
        return b""
