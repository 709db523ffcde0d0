"""Case job: everything that happens to one case, in one process, ending in an outcome and never in an exception."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import StorageRule
from headctssl.dataset.image_io import data_files, read, source_digest
from headctssl.errors import CorruptCaseError, DataError, HeadCTSSLError
from headctssl.planning.usable import require_hounsfield
from headctssl.preprocessing.index import IndexRow, case_path, mask_path, row_of_file, row_of_meta
from headctssl.preprocessing.masks import mask_on_grid
from headctssl.preprocessing.one_case import Preprocessed, preprocess_volume
from headctssl.preprocessing.report import CaseFailure
from headctssl.types import Volume
from headctssl.volume.store import CaseMeta, StoredCase, StoredMask, write_case, write_mask

__all__ = ["CaseJob", "CaseOutcome", "run_case"]

_FATAL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


@dataclass(frozen=True)
class CaseJob:
    """One case to store."""

    case_id: str
    image: Path
    mask_images: tuple[tuple[str, Path], ...]  # (name, image) of the masks the dataset brings for this case
    folder: Path  # storage folder
    rule: StorageRule
    known: IndexRow | None = None  # its line in the index so far
    verify: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class CaseOutcome:
    """What became of it."""

    case_id: str
    status: Literal["written", "kept", "failed"]
    row: IndexRow | None = None
    failure: CaseFailure | None = None
    notes: tuple[str, ...] = field(default=())


def run_case(job: CaseJob) -> CaseOutcome:
    """Store one case unless it is stored already.

    What an earlier version of the source left is removed only when the source was read and refused:
    a share that is away or a machine short of memory says nothing about the case.

    Raises:
        OSError: the disk is full or read-only: that is no fault of the case, and stops the command.
    """
    try:
        state = _source_state(job)
        notes: tuple[str, ...] = ()
        if not job.overwrite:
            row, notes = _stored(job, state)
            if row is not None:
                return CaseOutcome(job.case_id, "kept", row)
        row, more = _store(job, state)
        return CaseOutcome(job.case_id, "written", row, notes=(*notes, *more))
    except HeadCTSSLError as error:
        if _refused(job, error):
            _forget(job)
        failure = CaseFailure(
            case_id=job.case_id, what=error.what, got=error.got or "", expected=error.expected or "", do=error.do or ""
        )
    except OSError as error:
        if error.errno in _FATAL:
            raise
        failure = CaseFailure(
            case_id=job.case_id, what="A file cannot be read or written.", got=str(error), do="Check it and run again."
        )
    except Exception as error:  # a fault of ours in one case must not cost the other 361,662
        failure = CaseFailure(
            case_id=job.case_id,
            what=f"Internal error in this case: {type(error).__name__}.",
            got=str(error),
            do="This is a fault of headctssl: please report it without patient data. Other cases are not affected.",
        )
    return CaseOutcome(job.case_id, "failed", failure=failure)


def _refused(job: CaseJob, error: HeadCTSSLError) -> bool:
    """Whether the error is about the content of the source: all of it can be read, and something in it is wrong."""
    if not isinstance(error, DataError) or isinstance(error, CorruptCaseError):
        return False
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, MemoryError):
            return False
        behind = behind.__context__
    try:
        for path in _sources(job):
            files = _files(path)
            if not files or (path.suffix.lower() in (".mhd", ".nhdr") and len(files) < 2):  # the voxels are away
                return False
            source_digest(path)
    except OSError:
        return False
    except HeadCTSSLError:
        return True
    return True


def _sources(job: CaseJob) -> tuple[Path, ...]:
    return (job.image, *(image for _, image in job.mask_images))


def _files(path: Path) -> list[Path]:
    """The files of a source: itself and the data file that its header names, or the slices of a DICOM folder."""
    if path.is_dir():
        return [p for p in path.iterdir() if p.is_file() and p.name[0] != "."]
    return [path, *data_files(path)] if path.is_file() else []


def _source_state(job: CaseJob) -> tuple[int, int]:
    """Size in bytes and newest modification time in ns of the image and its masks, without reading them.

    Raises:
        DataError: a file does not exist.
    """
    size = newest = 0
    for path in _sources(job):
        if not path.exists():
            raise DataError(
                f"{path} does not exist.", got="nothing", expected="the file named in cases.csv", do="Check the path."
            )
        for file in _files(path):
            status = file.stat()
            size += status.st_size
            newest = max(newest, status.st_mtime_ns)
    return size, newest


def _stored(job: CaseJob, state: tuple[int, int]) -> tuple[IndexRow | None, tuple[str, ...]]:
    """The index line when the stored case is still right, else None and a note where something was wrong."""
    path = case_path(job.folder, job.case_id)
    masks = [mask_path(job.folder, job.case_id, mask) for mask in ("head", *(name for name, _ in job.mask_images))]
    if not path.is_file() or not all(mask.is_file() for mask in masks):
        return None, ()
    try:
        row = job.known if job.known is not None else row_of_file(job.case_id, path)
        if row.storage_digest != job.rule.digest() or (row.source_size, row.source_mtime_ns) != state:
            return None, ()
        if job.verify:
            StoredCase(path).verify()
            for mask in masks:
                StoredMask(mask).verify()
            if source_digest(job.image)[0] != row.source_sha256:
                return None, ("the source's content had changed although size and time had not: stored anew",)
    except CorruptCaseError as error:
        return None, (f"the stored file was damaged ({error.got}): stored anew",)
    return row, ()


def _store(job: CaseJob, state: tuple[int, int]) -> tuple[IndexRow, tuple[str, ...]]:
    volume = read(job.image)
    require_hounsfield(volume)  # a doubt is among the notes of the volume
    done = preprocess_volume(volume, job.rule)
    masks = {"head": done.head_mask}
    for name, image in job.mask_images:
        masks[name] = _mask(name, image, volume, done)
    info = volume.info
    meta = CaseMeta(
        spacing_mm=done.spacing_mm,
        affine=_rows(done.affine),
        original_affine=info.original_affine,
        original_shape=info.original_shape,
        original_spacing_mm=info.original_spacing_mm,
        crop_box=done.crop_box,
        head_box=done.head_box,
        tilt_deg=info.tilt_deg,
        source_sha256=source_digest(job.image)[0],
        source_size=state[0],
        source_mtime_ns=state[1],
        storage_digest=job.rule.digest(),
        masks=tuple(masks),
    )
    for name, mask in masks.items():
        write_mask(mask_path(job.folder, job.case_id, name), mask)
    for name in set(job.rule.masks) - set(masks):  # what an earlier cases.csv named
        mask_path(job.folder, job.case_id, name).unlink(missing_ok=True)
    # The case comes last: a case without its masks is never taken for complete.
    write_case(case_path(job.folder, job.case_id), done.hu, meta)
    return row_of_meta(job.case_id, done.hu.shape[1:], meta), info.notes


def _mask(name: str, image: Path, volume: Volume, done: Preprocessed) -> NDArray[np.bool_]:
    """A mask of the raw dataset on the stored grid; what is above 0 is inside.

    Raises:
        DataError: the mask does not lie on the voxels of the image.
    """
    raw = read(image)
    if raw.hu.shape != volume.hu.shape or not np.allclose(raw.affine, volume.affine, atol=0.1):
        raise DataError(
            f"The mask '{name}' does not lie on the voxels of its image.",
            got=f"{raw.hu.shape} voxels of {_text(raw.spacing_mm)} mm",
            expected=f"{volume.hu.shape} voxels of {_text(volume.spacing_mm)} mm at the same place",
            do=f"Resample {image.name} to its image, or empty the cell in cases.csv.",
        )
    # Above 0, not other than 0: a mask that was straightened has air, -1024, around it.
    return mask_on_grid(raw.hu > 0, done.crop_box, done.grid)


def _forget(job: CaseJob) -> None:
    """Remove what an earlier version of the source left: a case that fails is replaced by nothing."""
    for name in ("head", *job.rule.masks):
        mask_path(job.folder, job.case_id, name).unlink(missing_ok=True)
    case_path(job.folder, job.case_id).unlink(missing_ok=True)


def _rows(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in affine)


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:.3g}" for v in values)
