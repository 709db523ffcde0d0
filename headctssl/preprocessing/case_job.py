"""Case job: everything that happens to one case, in one process, ending in an outcome and never in an exception."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headctssl.contract import SegmentationClass, StorageRule
from headctssl.dataset.image_io import data_files, read, source_digest
from headctssl.dataset.label_map import LabelMap
from headctssl.dataset.masks import ANONYMIZATION, SEGMENTATION, read_mask
from headctssl.errors import CorruptCaseError, DataError, HeadCTSSLError
from headctssl.planning.usable import require_hounsfield
from headctssl.preprocessing.index import INDEX_NAME, IndexRow, case_path, mask_path, row_of_file, row_of_meta
from headctssl.preprocessing.masks import anonymised_on_grid, mask_on_grid, require_mask_rule
from headctssl.preprocessing.one_case import Preprocessed, preprocess_volume
from headctssl.preprocessing.output import UnwritableError, writing
from headctssl.preprocessing.report import CaseFailure
from headctssl.volume.layout import StoreLayout
from headctssl.volume.mask_store import MaskMeta, StoredLabels, StoredMask, write_labels, write_mask
from headctssl.volume.store import CaseMeta, StoredArray, StoredCase, write_case

__all__ = ["CaseJob", "CaseOutcome", "run_case"]

_MAY_PASS = (
    *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)


@dataclass(frozen=True)
class CaseJob:
    """One case to store."""

    case_id: str
    image: Path
    mask_images: tuple[tuple[str, Path], ...]  # (name, image) of the masks the dataset brings for this case
    folder: Path  # storage folder
    staging: Path  # where the run that this job is of writes files before they take their place
    rule: StorageRule
    layout: StoreLayout = field(default_factory=StoreLayout)  # how files are cut up and compressed
    classes: tuple[SegmentationClass, ...] = ()  # what the values of the segmentation mean
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
    may_pass: bool = False  # it failed, and trying again may help


def run_case(job: CaseJob) -> CaseOutcome:
    """Store one case unless it is stored already.

    What an earlier version of the source left is removed only when the source was read and refused:
    a share that is away or a machine short of memory says nothing about the case.

    Raises:
        UnwritableError: the disk is full or read-only: that is no fault of the case, and stops the command.
    """
    may_pass = False
    try:
        state = _state(job.image)
        notes: tuple[str, ...] = ()
        if not job.overwrite:
            row, notes = _stored(job, state)
            if row is not None:
                return CaseOutcome(job.case_id, "kept", row)
        row, more = _store(job, state)
        return CaseOutcome(job.case_id, "written", row, notes=(*notes, *more))
    except UnwritableError:
        raise
    except HeadCTSSLError as error:
        may_pass = _may_pass(error)
        if _refused(job, error):
            _forget(job)
        failure = CaseFailure(
            case_id=job.case_id, what=error.what, got=error.got or "", expected=error.expected or "", do=error.do or ""
        )
    except OSError as error:
        may_pass = _may_pass(error)
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
    return CaseOutcome(job.case_id, "failed", failure=failure, may_pass=may_pass)


def _may_pass(error: BaseException | None) -> bool:
    """Whether a device, a share or the network behind an error failed in a way that another try may not."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MAY_PASS:
            return True
        error = error.__context__
    return False


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


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and newest modification time in ns of a source, without reading it.

    Raises:
        DataError: it does not exist.
    """
    if not path.exists():
        raise DataError(
            f"{path} does not exist.", got="nothing", expected="the file named in cases.csv", do="Check the path."
        )
    states = [file.stat() for file in _files(path)]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


def _stored(job: CaseJob, state: tuple[int, int]) -> tuple[IndexRow | None, tuple[str, ...]]:
    """The index line when the stored case is still right, else None and a note where something was wrong."""
    path = case_path(job.folder, job.case_id)
    names = ("head", *(name for name, _ in job.mask_images))
    if not path.is_file() or not all(mask_path(job.folder, job.case_id, name).is_file() for name in names):
        return None, ()
    try:
        row = job.known if job.known is not None else row_of_file(job.case_id, path)
        if row.storage_digest != job.rule.digest() or (row.source_size, row.source_mtime_ns) != state:
            return None, ()
        if row.masks != names or not all(_mask_is_right(job, name, image) for name, image in job.mask_images):
            return None, ()
        if job.verify:
            StoredCase(path).verify()
            for name in names:
                StoredArray(mask_path(job.folder, job.case_id, name)).verify()
            if source_digest(job.image)[0] != row.source_sha256 or not all(
                _mask_is_right(job, name, image, whole=True) for name, image in job.mask_images
            ):
                return None, ("the source's content had changed although size and time had not: stored anew",)
    except CorruptCaseError as error:
        return None, (f"the stored file was damaged ({error.got}): stored anew",)
    return row, ()


def _mask_is_right(job: CaseJob, name: str, image: Path, *, whole: bool = False) -> bool:
    """Whether a stored mask is of this file, unchanged, with these classes; `whole` compares the content too.

    Each mask is compared by itself: two columns of cases.csv that changed places have the same files in sum.
    """
    path = mask_path(job.folder, job.case_id, name)
    meta = (StoredLabels(path) if name == SEGMENTATION else StoredMask(path)).meta
    if meta is None or meta.name != name or (meta.source_size, meta.source_mtime_ns) != _state(image):
        return False
    if name == SEGMENTATION and meta.classes != job.classes:
        return False
    return not whole or source_digest(image)[0] == meta.source_sha256


def _store(job: CaseJob, state: tuple[int, int]) -> tuple[IndexRow, tuple[str, ...]]:
    if job.mask_images:
        require_mask_rule(job.rule.mask_rule)
    # Before they are read: a mask that is replaced meanwhile is stored anew by the next run.
    mask_states = {name: _state(image) for name, image in job.mask_images}
    volume = read(job.image)
    require_hounsfield(volume)  # a doubt is among the notes of the volume
    done = preprocess_volume(volume, job.rule)
    masks = {name: read_mask(name, image, volume, job.classes) for name, image in job.mask_images}
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
        masks=("head", *masks),
    )
    with writing(job.folder):
        _write(job, done, masks, mask_states, meta)
    return row_of_meta(job.case_id, done.hu.shape[1:], meta), info.notes


def _write(
    job: CaseJob,
    done: Preprocessed,
    masks: dict[str, LabelMap],
    mask_states: dict[str, tuple[int, int]],
    meta: CaseMeta,
) -> None:
    """Write a case and its masks, and only when all of them are whole let them take the place of earlier ones.

    Before that the earlier case goes, and the index that describes it: a killed run leaves the old files, the new
    ones or no case, and never the case of one version with a mask or an index of the other.
    """
    if not job.folder.is_dir():
        raise UnwritableError(
            f"The storage folder {job.folder} is not there.",
            got=f"no such folder on {socket.gethostname()}",
            expected="the folder that this command made when it began",
            do="Workers on other machines need the same headctssl_preprocessed under the same path.",
        )
    case = case_path(job.folder, job.case_id)
    place = job.staging / f"{job.case_id}.{socket.gethostname()}.{os.getpid()}"
    try:
        write_mask(place / mask_path(job.folder, job.case_id, "head").name, done.head_mask, layout=job.layout)
        for name, image in job.mask_images:
            path = place / mask_path(job.folder, job.case_id, name).name
            _write_mask(job, path, _mask_meta(job, name, image, mask_states[name]), masks[name], done)
        written = list(place.iterdir())
        write_case(place / case.name, done.hu, meta, layout=job.layout)
        case.parent.mkdir(exist_ok=True)
        if case.exists():
            (job.folder / INDEX_NAME).unlink(missing_ok=True)
            case.unlink()
        for name in set(job.rule.masks) - {"head", *masks}:  # what an earlier cases.csv named
            mask_path(job.folder, job.case_id, name).unlink(missing_ok=True)
        # The case comes last: a case without its masks is never taken for complete.
        for path in (*written, place / case.name):
            path.replace(case.with_name(path.name))
    finally:
        shutil.rmtree(place, ignore_errors=True)  # the next run removes what cannot be removed now


def _mask_meta(job: CaseJob, name: str, image: Path, state: tuple[int, int]) -> MaskMeta:
    return MaskMeta(
        name=name,
        classes=job.classes if name == SEGMENTATION else (),
        source_sha256=source_digest(image)[0],
        source_size=state[0],
        source_mtime_ns=state[1],
    )


def _write_mask(job: CaseJob, path: Path, meta: MaskMeta, mask: LabelMap, done: Preprocessed) -> None:
    """Bring one mask of the dataset to the stored grid and write it."""
    if meta.name == SEGMENTATION:
        labels = mask_on_grid(mask.values.astype(np.uint8), done.crop_box, done.grid)
        write_labels(path, labels, meta, layout=job.layout)
        return
    on_grid = anonymised_on_grid if meta.name == ANONYMIZATION else mask_on_grid
    write_mask(path, on_grid(mask.values > 0, done.crop_box, done.grid), meta, layout=job.layout)


def _forget(job: CaseJob) -> None:
    """Remove what an earlier version of the source left: a case that fails is replaced by nothing."""
    for name in ("head", *job.rule.masks):
        mask_path(job.folder, job.case_id, name).unlink(missing_ok=True)
    case_path(job.folder, job.case_id).unlink(missing_ok=True)


def _rows(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in affine)
