"""NIfTI: header by nibabel, voxels by a fast gzip stream, integers kept as integers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from headctssl.dataset.nifti_header import nibabel_silent, nifti_header
from headctssl.dataset.raw_image import Geometry, RawImage, hounsfield, mirror_to_spl, unreadable
from headctssl.errors import ImageReadError
from headctssl.types import Volume

__all__ = ["nifti_geometry", "read_nifti", "save_nifti"]

_DO_EXPORT = "Export or download the file again."
_UNIT_MM = {"meter": 1000.0, "micron": 0.001}
_LARGEST_RATIO = 1032  # of a deflate stream: 258 bytes for 2 bits
_PIECE = 1 << 19  # bytes decompressed and checked at once: they stay in a second-level cache


def nifti_geometry(path: Path) -> Geometry:
    """Geometry of a .nii or .nii.gz file without its voxels.

    Raises:
        ImageReadError: not a NIfTI file, not three-dimensional, or without a usable affine.
    """
    return _geometry(path, nifti_header(path) or _open(path))


def read_nifti(path: Path) -> RawImage:
    """Geometry and voxels of a .nii or .nii.gz file.

    Raises:
        ImageReadError: as `nifti_geometry`, and truncated data or NaN voxels.
    """
    image = _open(path)
    geometry = _geometry(path, image)
    dtype = image.header.get_data_dtype()
    offset = int(image.dataobj.offset)
    count = int(np.prod(geometry.shape))
    content = _content(path, offset + count * dtype.itemsize)
    stored: NDArray[Any] = np.frombuffer(content, dtype, count=count, offset=offset).reshape(geometry.shape)
    if not dtype.isnative:
        stored = stored.astype(dtype.newbyteorder("="))
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return RawImage(geometry, hounsfield(stored, slope, intercept, path, copy=False))


def save_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as int16 .nii.gz with the affine in sform and qform.

    Args:
        path: file ending in .nii.gz or .nii.
        volume: the volume; its affine has orthogonal columns.
    """
    from isal import igzip

    affine = mirror_to_spl(volume.affine, ras=False)  # the same reversal of axes, (z, y, x) -> (i, j, k) LPS
    affine[:2] *= -1.0  # LPS -> RAS
    image = nib.Nifti1Image(volume.hu.transpose(2, 1, 0), affine, dtype=np.int16)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    content = image.to_bytes()
    if path.suffix.lower() == ".gz":
        content = igzip.compress(content, compresslevel=2, mtime=0)
    path.write_bytes(content)


def _open(path: Path) -> Any:
    try:
        with nibabel_silent():
            image = nib.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        told = _first_line(error).replace(f"File {path} is", "the content is").replace(f'"{path}"', "the file")
        raise unreadable(path, told, "a NIfTI file (.nii, .nii.gz)", _DO_EXPORT) from None
    if not isinstance(image, nib.Nifti1Image):
        raise unreadable(path, type(image).__name__, "a NIfTI file (.nii, .nii.gz)", _DO_EXPORT)
    return image


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _geometry(path: Path, image: Any) -> Geometry:
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise unreadable(
            path,
            f"an array of {len(shape)} dimensions, {' x '.join(map(str, shape))}",
            "one volume of three dimensions",
            "Save each volume of a perfusion or dual-energy file by itself.",
        )
    if min(shape) < 2:
        raise unreadable(path, " x ".join(map(str, shape)) + " voxels", "at least 2 along each axis", _DO_EXPORT)
    dtype = image.header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise unreadable(path, f"voxels of type {dtype}", "one number per voxel", "Save it as integers or floats.")
    notes: list[str] = []
    if int(image.header["sform_code"]) == 0:
        _require_voxel_size(path, image.header)
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        notes.append("The file states no orientation (sform and qform codes are 0): its axes are taken as L, A, S.")
    affine = np.array(image.affine, dtype=np.float64)
    try:
        unit = image.header.get_xyzt_units()[0]
    except KeyError:  # a code that NIfTI does not define
        notes.append(f"The unit code {int(image.header['xyzt_units'])} is not one of NIfTI: lengths are taken as mm.")
        unit = "unknown"
    affine[:3] *= _UNIT_MM.get(unit, 1.0)
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise unreadable(path, "an affine without volume", "voxel spacing and directions", "Correct the header.")
    size = (shape[2], shape[1], shape[0])
    return Geometry("nifti", size, mirror_to_spl(affine, ras=True), notes=tuple(notes))


def _require_voxel_size(path: Path, header: Any) -> None:
    """Refuse a file whose spacing only nibabel knows, which takes 1 mm where the file says 0.

    Raises:
        ImageReadError: a voxel size is 0 or no number, and there is no sform that could say it instead.
    """
    with _opened(path, zipped=path.suffix.lower() == ".gz") as stream:
        stated = type(header).from_fileobj(stream, check=False)["pixdim"][1:4]
    if not np.all(np.isfinite(stated)) or np.any(stated == 0):
        raise unreadable(
            path,
            f"voxel sizes of {' x '.join(f'{size:g}' for size in stated)} and no sform",
            "the spacing of the voxels, in pixdim or sform",
            "Correct the header, or export the file again.",
        )


def _content(path: Path, needed: int) -> NDArray[np.uint8]:
    """The first `needed` decompressed bytes of the file, the gzip checksum verified."""
    size = path.stat().st_size
    zipped = path.suffix.lower() == ".gz"
    if needed > size * (_LARGEST_RATIO if zipped else 1):  # before memory is taken: a damaged header may ask for any
        raise _too_short(path, f"a file of {size} bytes", needed)
    # Memory of its own, in large pages where the system has them: a fifth of the time beside growing bytes.
    content = np.empty(needed, np.uint8)
    filled, memory = 0, content.data
    with _opened(path, zipped=zipped) as stream:
        while filled < needed and (count := stream.readinto(memory[filled : filled + _PIECE])):
            filled += count
        while zipped and stream.read(_PIECE):  # the checksum is at the end
            pass
    if filled < needed:
        raise _too_short(path, f"{filled} bytes", needed)
    return content


@contextmanager
def _opened(path: Path, *, zipped: bool) -> Iterator[BufferedIOBase]:
    """The stream of decompressed bytes.

    Raises:
        ImageReadError: within the block, what speaks against the gzip stream.
    """
    if not zipped:
        with open(path, "rb") as plain:
            yield plain
        return
    from isal import igzip, igzip_lib

    # Its stub calls the class an instance.
    stream_error = cast(type[Exception], igzip_lib.IsalError)
    try:
        with igzip.open(path) as stream:
            yield stream
    except (OSError, EOFError, ValueError, stream_error) as error:
        raise unreadable(path, _first_line(error), "a complete gzip stream", _DO_EXPORT) from None


def _too_short(path: Path, got: str, needed: int) -> ImageReadError:
    return unreadable(path, got, f"{needed} bytes: header and voxels", _DO_EXPORT)
