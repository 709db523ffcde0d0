"""Sources: images that no dataset knows, found under a path, named, read and preprocessed under a contract."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from headctssl.console import say, warn
from headctssl.contract import StorageRule
from headctssl.dataset.image_io import find_images, read, read_series
from headctssl.dataset.straightening import HOLE_MARK
from headctssl.errors import DataError, HeadCTSSLError, ImageReadError, UsageError
from headctssl.inference.ids import distinct_ids, own_names
from headctssl.ingest.dicom import find_scans
from headctssl.ingest.scan import Scan, SeriesFacts
from headctssl.ingest.verdict import appraise
from headctssl.planning.usable import require_hounsfield
from headctssl.preprocessing.one_case import Preprocessed, preprocess_volume
from headctssl.types import Volume

__all__ = [
    "Failure",
    "Ready",
    "Source",
    "exit_code",
    "find_sources",
    "prepared",
    "print_failures",
    "print_remarks",
    "print_shared_names",
    "read_ahead",
]

T = TypeVar("T")
R = TypeVar("R")

_SHOWN = 5  # names of damaged files in one message


@dataclass(frozen=True)
class Source:
    """One image and the id it gets."""

    case_id: str
    path: Path  # a file, or the folder of a DICOM series
    files: tuple[Path, ...] = ()  # the slices of a DICOM series; () = `path` is read as it is
    study: tuple[str, str] = field(default=("", ""), repr=False)  # patient and study of DICOM headers; '' = unknown
    damaged: tuple[str, ...] = ()  # names of the damaged DICOM files in the folders of its slices
    fault: HeadCTSSLError | None = None  # of a damaged file, which is no image
    facts: SeriesFacts | None = None  # what DICOM headers say
    told: str = ""  # which image it is, beside others in its folder
    shared_name: bool = False  # whether its id is a name that it shares, or that with a number


@dataclass(frozen=True)
class Failure:
    """An image that could not be used."""

    case_id: str
    error: HeadCTSSLError


@dataclass(frozen=True)
class Ready:
    """An image as the contract stores it."""

    source: Source
    case: Preprocessed
    notes: tuple[str, ...]  # what reading noticed
    doubt: str = ""  # why it may be no head CT, or not a whole one; '' = nothing speaks against it


def find_sources(path: Path) -> list[Source]:
    """Every image at or below a path, sorted, with distinct ids; then every damaged DICOM file, with its fault.

    An id is the name of the file without suffix or of the DICOM folder, made safe; names that occur twice get
    the folders above them, and a number where that is not enough (`print_shared_names` tells which is which).

    Args:
        path: an image file, a DICOM folder, or a folder with images at any depth.

    Raises:
        UsageError: the path does not exist.
        DataError: there is no image in the folder.
    """
    if not path.exists():
        raise UsageError(f"There is nothing at {path}.", got="no such path", expected="an image", do="Correct -i.")
    if path.is_file():
        return _named([Source("", path)], path)
    images = [Source("", image, told=str(image)) for image in find_images(path) if image.is_file()]
    series, damaged = _series(path)
    found = sorted([*images, *series], key=lambda source: (source.path, source.files))
    if not found and not damaged:
        raise DataError(
            f"There is no image in {path}.",
            got="no file with a known suffix and no DICOM series of CT",
            expected="NIfTI, NRRD, MetaImage files or DICOM series",
            do="Correct -i.",
        )
    return [*_named(found, path), *damaged]


def _named(found: Sequence[Source], root: Path) -> list[Source]:
    paths = [source.path for source in found]
    ids, names = distinct_ids(paths, root), own_names(paths, root)
    times = Counter(names)
    return [
        replace(source, case_id=case_id, shared_name=times[name] > 1)
        for source, case_id, name in zip(found, ids, names, strict=True)
    ]


def print_shared_names(sources: Sequence[Source], *, quiet: bool) -> None:
    """Say which image each id is of where a number tells it from others of the same name."""
    for source in sources:
        if source.shared_name:
            say(f"{source.case_id}: {source.told}", quiet=quiet)


def _series(root: Path) -> tuple[list[Source], list[Source]]:
    """Every CT series below a folder, at the folder of its first slice, and every damaged file, under its path.

    Localisers and other modalities are left out.
    """
    found = find_scans(root)
    damaged = [
        Source(verdict.source, root / verdict.source, fault=_damaged_file(verdict.source, verdict.reasons))
        for verdict in found.rejected
    ]
    beside: defaultdict[Path, list[str]] = defaultdict(list)
    for source in damaged:
        beside[source.path.parent].append(source.path.name)
    series = []
    for scan in found.scans:
        names = (name for folder in sorted({file.parent for file in scan.files}) for name in beside.get(folder, ()))
        study = (scan.subject, scan.session)
        series.append(
            Source("", scan.path, scan.files, study, damaged=tuple(names), facts=scan.facts, told=_told(scan))
        )
    return series, damaged


def _damaged_file(name: str, reasons: Sequence[str]) -> DataError:
    return DataError(
        f"{name} is damaged.",
        got=" ".join(reasons),
        expected="a whole DICOM file",
        do="Export it again. A series of its folder that shows no hole is predicted; the file may be an end of one.",
    )


def _refuse_hole(source: Source, volume: Volume) -> None:
    """Refuse a series that lacks slices where damaged files may be these; others keep their hole, which is noted.

    Raises:
        ImageReadError: it does.
    """
    holes = [note for note in volume.info.notes if HOLE_MARK in note]
    if source.damaged and holes:
        more = f" and {len(source.damaged) - _SHOWN} more" if len(source.damaged) > _SHOWN else ""
        raise ImageReadError(
            f"The series in {source.told} lacks slices, and damaged files beside it may be these:"
            f" {', '.join(source.damaged[:_SHOWN])}{more}.",
            got=" ".join(holes),
            expected="every slice",
            do="Export the series again.",
        )


def _told(scan: Scan) -> str:
    """Folder, series and files, by which a user finds a series of several in one folder."""
    facts = scan.facts
    number = f", series {facts.series_number}" if facts is not None and facts.series_number is not None else ""
    name = f" '{facts.series_description}'" if facts is not None and facts.series_description else ""
    return f"{scan.path}{number}{name}, {len(scan.files)} files from {scan.files[0].name}"


def prepared(
    sources: Sequence[Source], rule: StorageRule, num_workers: int
) -> Iterator[tuple[Source, Ready | HeadCTSSLError]]:
    """Read and preprocess images in order; one that cannot be used gives its error.

    Args:
        sources: the images; a damaged file gives its fault.
        rule: how the contract stores cases.
        num_workers: reading threads; 0 reads in the calling thread.
    """

    def make(source: Source) -> Ready | HeadCTSSLError:
        try:
            if source.fault is not None:
                return source.fault
            volume = read_series(source.files) if source.files else read(source.path)
            _refuse_hole(source, volume)
            require_hounsfield(volume)  # a doubt is among the notes of the volume
            return _judged(source, volume, preprocess_volume(volume, rule))
        except HeadCTSSLError as error:
            return error
        except OSError as error:
            return DataError(f"{source.path} cannot be read.", got=error, expected="a readable file", do="Check it.")
        except Exception as error:  # a fault of ours in one image must not cost the others
            return DataError(
                f"Internal error in this image: {type(error).__name__}.",
                got=error,
                expected="a prediction",
                do="This is a fault of headctssl: please report it without patient data.",
            )

    yield from zip(sources, read_ahead(sources, make, num_workers), strict=True)


def _judged(source: Source, volume: Volume, case: Preprocessed) -> Ready:
    """An image with what `headct_convert` would say of it."""
    found = appraise(volume, source.facts)
    notes = (note for note in volume.info.notes if note not in found.reasons)
    verb = {"accept": "", "review": "ask to look at it", "reject": "refuse it"}[found.status]
    doubt = f"headct_convert would {verb}: {' '.join(found.reasons)}" if verb else ""
    return Ready(source, case, (*notes, *found.notes), doubt)


def print_remarks(image: Ready, *, quiet: bool) -> None:
    """Say what was noticed in an image, and warn, quiet or not, where it may be no head CT."""
    for note in image.notes:
        say(f"{image.source.case_id}: {note}", quiet=quiet)
    if image.doubt:
        warn(f"{image.source.case_id}: {image.doubt}")


def read_ahead(items: Iterable[T], read_one: Callable[[T], R], num_workers: int) -> Iterator[R]:
    """Apply a function to items in order, at most twice `num_workers` ahead of the consumer.

    Args:
        items: what to read.
        read_one: run in threads; decompression and matrix products leave the interpreter free.
        num_workers: threads; 0 works in the calling thread.
    """
    if num_workers <= 0:
        yield from map(read_one, items)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read_one, item))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def print_failures(failures: Sequence[Failure]) -> None:
    """Name every image that failed on stderr; quiet or not."""
    for failure in failures:
        print(f"failed: {failure.case_id}: {failure.error.message}", file=sys.stderr)


def exit_code(num_done: int, num_failed: int) -> int:
    """0 all done, 1 some failed, 2 all failed."""
    if num_failed == 0:
        return 0
    return 1 if num_done else 2
