"""Faulty images: named NIfTI, NRRD and MetaImage files, clean and faulty, each with what must become of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from battery_inputs import HEAD_SPACING, Image, Input, Verdict, collector
from bodies import abdomen, leg

__all__ = ["IMAGE_INPUTS"]

_PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


def nifti(
    path: Path,
    hu: np.ndarray,
    *,
    affine: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    change: Callable[[Any], None] = lambda header: None,
) -> Path:
    """Write an array (z, y, x), x to the left and y to posterior, as NIfTI with nibabel."""
    if affine is None:
        affine = np.diag([-HEAD_SPACING[2], -HEAD_SPACING[1], HEAD_SPACING[0], 1.0])
    image = nib.Nifti1Image(np.ascontiguousarray(hu).transpose(2, 1, 0, *range(3, hu.ndim)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=codes[0])
    image.set_qform(None if codes[1] == 0 else np.diag([*HEAD_SPACING[::-1], 1.0]), code=codes[1])
    change(image.header)
    image.to_filename(path)
    return path


def itk(path: Path, hu: np.ndarray, **information: Any) -> Path:
    """Write an array (z, y, x) with SimpleITK."""
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing(HEAD_SPACING[::-1])
    SimpleITK.WriteImage(image, str(path), **information)
    return path


def _image(
    name: str,
    verdict: Verdict,
    told: str,
    values: Callable[[Image], np.ndarray] = lambda hu: hu,
    *,
    clean: bool = False,
    comes_out: Callable[[Image], Image] = lambda hu: hu,
    suffix: str = ".nii.gz",
    **how: Any,
) -> Input:
    def make(folder: Path, hu: Image) -> Image:
        write = nifti if suffix.startswith(".nii") else itk
        write(folder / f"Leakmann{suffix}", values(hu), **how)
        return comes_out(hu)

    return Input(name, make, ((verdict, told),), clean)


def _bytes(name: str, told: str, content: bytes, file: str = "Leakmann.nii.gz") -> Input:
    def make(folder: Path, hu: Image) -> None:
        del hu
        (folder / file).write_bytes(content)

    return Input(name, make, (("reject", told),))


def _edited(name: str, told: str, edit: Callable[[bytes], bytes], file: str = "Leakmann.nii.gz") -> Input:
    """A good file whose bytes are changed."""

    def make(folder: Path, hu: Image) -> None:
        (nifti if ".nii" in file else itk)(folder / file, hu)
        (folder / file).write_bytes(edit((folder / file).read_bytes()))

    return Input(name, make, (("reject", told),))


def _with(hu: Image, value: float) -> np.ndarray:
    changed = hu.astype(np.float32)
    changed[3, 4, 5] = value
    return changed


def _cormack(hu: Image) -> Image:
    """The published conversion: 200 HU from -124 on are stretched eleven times."""
    above = hu.astype(np.int32) - int(hu.min())
    return (above + np.clip(above - 900, 0, 200) * 10).astype(np.int16)


def _sheared(row: int, column: int, share: float) -> np.ndarray:
    """The affine of a file whose axes are not at right angles."""
    affine = np.diag([-HEAD_SPACING[2], -HEAD_SPACING[1], HEAD_SPACING[0], 1.0])
    affine[row, column] = share * abs(affine[column, column])
    return affine


def _put(at: int, content: bytes) -> Callable[[bytes], bytes]:
    """Replace bytes of a file; for NIfTI's fields see nifti1.h."""
    return lambda old: old[:at] + content + old[at + len(content) :]


def _neck() -> Image:
    """Muscle around a spine, 80 mm long, below the head."""
    y, x = np.meshgrid(*(np.arange(40) - 19.5,) * 2, indexing="ij")
    plane = np.where(np.hypot(y, x) < 10, 50, -1000)
    plane[np.hypot(y - 2, x) < 2] = 400
    return np.repeat(plane[None], 8, axis=0).astype(np.int16)


def _in_trunk(body: Callable[[], Any]) -> Callable[[Image], np.ndarray]:
    return lambda hu: body().hu[::2]


_EIGHTH = (np.arange(18) == 7)[:, None, None]
_TRUNK = np.diag([-4.0, -4.0, 10.0, 1.0])
_ODD = np.diag([-6.0, -6.0, 10.0, 1.0]) + np.array([[0, 1.5, 2, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])

IMAGE_INPUTS: list[Input] = [
    _image("compressed NIfTI", "accept", "", clean=True),
    _image("plain NIfTI", "accept", "", suffix=".nii", clean=True),
    _image("floats", "accept", "", lambda hu: hu.astype(np.float64), clean=True),
    _image("32-bit integers", "accept", "", lambda hu: hu.astype(np.int32), clean=True),
    _image("four axes, the last of one", "accept", "", lambda hu: hu[..., None], clean=True),
    _image(
        "right, posterior, inferior",
        "accept",
        "",
        lambda hu: hu[::-1, :, ::-1],
        affine=np.diag([6.0, -6.0, -10.0, 1.0]),
        clean=True,
    ),
    _image("NRRD", "accept", "", suffix=".nrrd", clean=True),
    _image("MetaImage", "accept", "", suffix=".mha", clean=True),
    _image("MetaImage of two files", "accept", "", suffix=".mhd", clean=True),
    _image("Leakmann, Änne (geb. 日本)  = \"x\"; 'y' #", "accept", "", clean=True),
    _image("a name that is long " + "Leakmann " * 23, "accept", "", clean=True),
    _image("NaN voxels", "reject", "NaN or infinite", lambda hu: _with(hu, np.nan)),
    _image("infinite voxels", "reject", "NaN or infinite", lambda hu: _with(hu, np.inf)),
    _image("one voxel of 1e30", "review", "no CT number is as high", lambda hu: _with(hu, 1e30)),
    _image("four axes", "reject", "4 dimensions", lambda hu: np.stack([hu, hu], axis=-1)),
    _image("a single slice", "reject", "at least 2 along", lambda hu: hu[8:9]),
    _image("slices stacked at a slant", "accept", "tilt 15.0", affine=_sheared(1, 2, np.tan(np.radians(15)))),
    _image("rows and columns not at right angles", "accept", "Resampled", affine=_sheared(0, 1, 0.2)),
    _image("no two axes at right angles", "reject", "right angles", affine=_ODD),
    _edited("affine of zeros", "affine", _put(280, bytes(48)), "Leakmann.nii"),
    _edited("affine of NaN", "affine", _put(280, np.float32(np.nan).tobytes()), "Leakmann.nii"),
    _image("spacing of metres", "reject", "farther apart", change=lambda header: header.set_xyzt_units("meter")),
    _image("spacing of microns", "reject", "without volume", change=lambda header: header.set_xyzt_units("micron")),
    _image("no orientation", "review", "states no orientation", codes=(0, 0)),
    _image("HU + 1024", "reject", "HU + 1024", lambda hu: hu + np.int16(1024)),
    _image("HU + 1000, unsigned", "reject", "HU + 1000", lambda hu: np.maximum(hu + 1000, 0).astype(np.uint16)),
    _image("Cormack units", "reject", "Cormack", _cormack),
    _image("window of 8 bits", "reject", "8-bit", lambda hu: np.clip((hu + 20) * 2.55, 0, 255).astype(np.uint8)),
    _image("16 bits wrapped", "reject", "16 bits", lambda hu: hu.astype(np.uint16)),
    _image("12 bits wrapped", "reject", "12-bit", lambda hu: np.where(hu > 1023, hu - 4096, hu).astype(np.int16)),
    _image("mask", "reject", "mask", lambda hu: (hu > 0).astype(np.uint8)),
    _image("scaled to 0..1", "reject", "", lambda hu: (hu + 1024).astype(np.float32) / 4095),
    _image("every voxel 0", "reject", "", lambda hu: np.zeros_like(hu)),
    _image(
        "one slice 300 HU higher", "review", "neighbours", lambda hu: np.where(_EIGHTH, hu + 300, hu).astype(np.int16)
    ),
    _image("one slice black", "review", "neighbours", lambda hu: np.where(_EIGHTH, 0, hu).astype(np.int16)),
    _image("abdomen", "reject", "trunk", _in_trunk(abdomen), affine=_TRUNK),
    _image("leg", "review", "brain", _in_trunk(leg), affine=_TRUNK),
    _image("neck and base only", "review", "vertex", lambda hu: hu[:10]),
    _image("nine slices", "reject", "9 slices", lambda hu: hu[4:13]),
    _image("a strip", "reject", "60 mm", lambda hu: hu[:, :, 16:24]),
    _image("upside down", "review", "upside down", lambda hu: np.concatenate([_neck(), hu[2:-2]])[::-1]),
    _image(
        "colours",
        "reject",
        "one number per voxel",
        lambda hu: hu.astype(np.uint8).repeat(3).view([("R", "u1"), ("G", "u1"), ("B", "u1")]).reshape(hu.shape),
    ),
    _bytes("no bytes", "empty", b""),
    _bytes("PNG named .nii.gz", "NIfTI", _PNG),
    _bytes("PNG named .nii", "file type", _PNG[::-1], "Leakmann.nii"),
    _bytes("web page named .nrrd", "nrrd", b"<html>404 Leakmann</html>" * 30, "Leakmann.nrrd"),
    _bytes("text named .mha", "metaimage", b"Leakmann\n" * 30, "Leakmann.mha"),
    _bytes("zero bytes of MetaImage", "empty", b"", "Leakmann.mhd"),
    _edited("gzip cut in the middle", "", lambda content: content[: len(content) // 2]),
    _edited("gzip cut in its last bytes", "gzip", lambda content: content[:-6]),
    _edited(
        "a bit flipped in gzip", "gzip", lambda content: content[:9000] + bytes([content[9000] ^ 4]) + content[9001:]
    ),
    _edited("NIfTI cut", "bytes", lambda content: content[:-5000], "Leakmann.nii"),
    _edited("NIfTI header alone", "bytes", lambda content: content[:352], "Leakmann.nii"),
    _edited("NIfTI of a lying size", "bytes", _put(42, b"\xff\x7f" * 3), "Leakmann.nii"),
    _edited("NIfTI of an unknown type", "", _put(70, b"\x99\x99"), "Leakmann.nii"),
    _edited("NRRD cut", "", lambda content: content[:-9000], "Leakmann.nrrd"),
    _edited(
        "NRRD of a lying size",
        "",
        lambda c: c.replace(b"sizes: 40 40 18", b"sizes: 99999 99999 99999"),
        "Leakmann.nrrd",
    ),
    _edited("MetaImage cut", "", lambda content: content[:-9000], "Leakmann.mha"),
    _edited("MetaImage in many files", "several files", lambda c: c.replace(b"LOCAL", b"LIST"), "Leakmann.mha"),
]


_add = collector(IMAGE_INPUTS)


@_add("NRRD without space", ("review", "states no orientation"))
def _no_space(folder: Path, hu: Image) -> None:
    sizes = b"type: short\ndimension: 3\nsizes: 40 40 18\nspacings: 6 6 10\nendian: little\nencoding: raw\n\n"
    (folder / "Leakmann.nrrd").write_bytes(b"NRRD0004\n" + sizes + hu.astype("<i2").tobytes())


@_add("MetaImage without its raw file", ("reject", ""))
def _no_raw(folder: Path, hu: Image) -> None:
    itk(folder / "Leakmann.mhd", hu)
    (folder / "Leakmann.raw").unlink()


@_add("MetaImage with half of its raw file", ("reject", ""))
def _half_raw(folder: Path, hu: Image) -> None:
    itk(folder / "Leakmann.mhd", hu)
    raw = folder / "Leakmann.raw"
    raw.write_bytes(raw.read_bytes()[: raw.stat().st_size // 2])


@_add("NRRD header without its data", ("reject", ""))
def _no_data(folder: Path, hu: Image) -> None:
    itk(folder / "Leakmann.nhdr", hu)
    for file in folder.glob("*.raw*"):
        file.unlink()


@_add("pictures and notes", ("accept", ""), clean=True, counted="files that are no images")
def _notes(folder: Path, hu: Image) -> Image:
    nifti(folder / "Leakmann.nii.gz", hu)
    (folder / "Leakmann.png").write_bytes(_PNG)
    (folder / "Leakmann.txt").write_text("Leakmann")
    (folder / "up").symlink_to(folder, target_is_directory=True)
    return hu


@_add("links and pipes named as images", ("accept", ""), clean=True, counted="3 links that lead nowhere")
def _links(folder: Path, hu: Image) -> Image:
    nifti(folder / "Leakmann.nii.gz", hu)
    (folder / "self.nii.gz").symlink_to(folder / "self.nii.gz")
    (folder / "gone.nii.gz").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.nii.gz")
    (folder / "folder.nii.gz").mkdir()
    return hu


@_add("the same file twice", ("accept", ""), clean=True)
def _twice(folder: Path, hu: Image) -> Image:
    nifti(folder / "Leakmann.nii.gz", hu)
    (folder / "twin.nii.gz").write_bytes((folder / "Leakmann.nii.gz").read_bytes())
    return hu
