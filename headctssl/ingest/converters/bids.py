"""BIDS: the CT images of a BIDS dataset, with its tables, side-car files and masks of derivatives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import find_images, stem
from headctssl.dataset.masks import ANATOMY, ANONYMIZATION, SEGMENTATION
from headctssl.dataset.table import STANDARD_COLUMNS
from headctssl.errors import DataError
from headctssl.ingest.converters.cells import binary_columns, copied_remark, info_columns, is_ct, split_cell
from headctssl.ingest.converters.source_files import identified, layout_error, left_out, lines_of, read_object
from headctssl.ingest.scan import Found, Scan
from headctssl.settings import JsonValue

__all__ = ["find_scans"]

_ENTITY = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9+]+")
_OF_THE_MASK = ("desc", "label", "atlas", "seg", "res", "den", "mod")
_SIDECAR = {
    "Manufacturer": "manufacturer",
    "ManufacturersModelName": "model",
    "KVP": "kvp",
    "ConvolutionKernel": "convolution_kernel",
    "SliceThickness": "slice_thickness_mm",
    "StudyDescription": "study_description",
}
_MASKS = {
    "head": ANATOMY,
    "brain": ANATOMY,
    "anatomy": ANATOMY,
    "deface": ANONYMIZATION,
    "defaced": ANONYMIZATION,
    "face": ANONYMIZATION,
    "anonymization": ANONYMIZATION,
}
_HIGHEST = 255  # of a value in a label map of a raw dataset
_Key = TypeVar("_Key", str, tuple[str, str])
_Entities = frozenset[str]  # "sub-01", "ses-2", "acq-thin" ...


@dataclass(frozen=True)
class _Tables:
    """Cells of the tables of a dataset, by what their lines are about."""

    participants: dict[str, dict[str, str]]  # "sub-01" -> cells
    sessions: dict[tuple[str, str], dict[str, str]]  # ("sub-01", "ses-1") -> cells
    scans: dict[str, dict[str, str]]  # "sub-01/ses-1/ct/sub-01_ses-1_ct.nii.gz" -> cells


@dataclass
class _Masks:
    """Masks under derivatives."""

    of_image: dict[_Entities, dict[str, Path]] = field(default_factory=dict)  # entities of the image -> column -> file
    classes: dict[str, int] = field(default_factory=dict)  # of the segmentations, name -> value
    remarks: list[str] = field(default_factory=list)


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every image of a BIDS dataset whose suffix is `ct`; the others are counted.

    BIDS has no data type for CT: `ct/`, `anat/` and any other folder of a subject are searched for
    `*_ct` (or `*_CT`). Cells come from participants.tsv, `*_sessions.tsv`, `*_scans.tsv` (an inner one before an
    outer one) and the JSON beside the image; columns of 0 and 1 are labels; `split` fixes a split. Masks
    are those under `derivatives/` with the same entities: `*_dseg` is the segmentation (classes from its
    TSV), `*_desc-brain_mask` or `head` the anatomy, `*_desc-deface_mask` what was changed to hide a face.

    Args:
        source: the folder with `sub-*` folders.
        num_workers: processes that read the files; None = one per core.
        quiet: print no progress.

    Raises:
        DataError: there is no `sub-*` folder, a table or a JSON file cannot be read, or a table has two lines for one
            participant, session or image.
    """
    people = sorted(path for path in source.glob("sub-*") if path.is_dir()) if source.is_dir() else []
    if not people:
        raise layout_error(source, "bids", "dataset_description.json, participants.tsv, sub-*/")
    tables = _tables(source, people)
    masks = _masks(source)
    others: Counter[str] = Counter()
    scans: list[Scan] = []
    images: list[Path] = []
    used: set[Path] = set()
    for person in people:
        for image in find_images(person):
            entities, suffix = _parts(image)
            if not is_ct(suffix):
                others[suffix] += 1
                continue
            own = masks.of_image.get(entities, {})
            scans.append(_scan(source, image, tables, own))
            images.append(image)
            used |= set(own.values())
    result = identified(scans, num_workers, quiet=quiet)
    labels = tuple(LabelSpec(name=name) for name in binary_columns([dict(scan.columns) for scan in result.scans]))
    unused = len({path for of in masks.of_image.values() for path in of.values()} - used)
    about = read_object(source / "dataset_description.json") if (source / "dataset_description.json").is_file() else {}
    return Found(
        result.scans,
        ignored=left_out(others, "images with the suffix"),
        rejected=result.rejected,
        labels=labels,
        segmentation_classes=tuple(masks.classes.items()),
        licence=str(about.get("License") or ""),
        reference=str(about.get("DatasetDOI") or ""),
        remarks=(
            *copied_remark(result.scans, (*STANDARD_COLUMNS, *(spec.name for spec in labels))),
            *_line_remarks(tables, [image.relative_to(source) for image in images]),
            *masks.remarks,
            *((f"{unused} masks under derivatives belong to no CT image.",) if unused else ()),
            *result.remarks,
        ),
    )


def _parts(image: Path) -> tuple[_Entities, str]:
    """Entities and suffix of a file name: `sub-01_ses-2_ct.nii.gz` has sub-01 and ses-2, and `ct`."""
    parts = stem(image).split("_")
    return frozenset(part for part in parts[:-1] if _ENTITY.fullmatch(part)), parts[-1]


def _tables(source: Path, people: list[Path]) -> _Tables:
    """Read participants.tsv, sub-01/sub-01_sessions.tsv and sub-01/[ses-1/]sub-01_[ses-1_]scans.tsv.

    Raises:
        DataError: two lines are about the same.
    """
    tables = _Tables({}, {}, {})
    if (path := source / "participants.tsv").is_file():
        for row in lines_of(path, ("participant_id",), delimiter="\t"):
            _enter(tables.participants, _prefixed("sub-", row["participant_id"]), _cells(row), path)
    for person in people:
        for path in sorted(person.glob("*_sessions.tsv")):
            for row in lines_of(path, ("session_id",), delimiter="\t"):
                _enter(tables.sessions, (person.name, _prefixed("ses-", row["session_id"])), _cells(row), path)
        for path in sorted(person.rglob("*_scans.tsv")):
            for row in lines_of(path, ("filename",), delimiter="\t"):
                name = (path.parent / row["filename"]).relative_to(source).as_posix()
                _enter(tables.scans, name, _cells({key: text for key, text in row.items() if key != "filename"}), path)
    return tables


def _enter(table: dict[_Key, dict[str, str]], key: _Key, cells: dict[str, str], path: Path) -> None:
    if key in table:
        raise DataError(
            f"{path.name}: '{key if isinstance(key, str) else ' '.join(key)}' is there twice.",
            got="two lines",
            expected="one line, in one table, for each participant, session and image",
            do="Remove the wrong one.",
        )
    table[key] = cells


def _line_remarks(tables: _Tables, images: Collection[Path]) -> list[str]:
    """Sentences on lines of tables without an image, and images without a line: ids may be written in two ways.

    Args:
        tables: those that were read; a table that is not there needs no line.
        images: the CT images, relative to the source.
    """
    people = [image.parts[0] for image in images]
    visits = [(image.parts[0], session) for image in images if (session := _session(image))]
    names = [image.as_posix() for image in images]
    listed = {name for name in tables.scans if is_ct(_parts(Path(name))[1])}  # other lines are of other images
    told = (
        ("participants.tsv", tables.participants, people),
        ("*_sessions.tsv", tables.sessions, visits),
        ("*_scans.tsv", listed, names),
    )
    remarks: list[str] = []
    for table, lines, keys in told:
        unused = len(set(lines) - set(keys))
        without = sum(key not in lines for key in keys)
        if lines and (unused or without):
            remarks.append(f"{table}: {unused} lines without a CT image, {without} CT images without a line.")
    return remarks


def _session(image: Path) -> str:
    """The session of an image by its folder, '' without one."""
    return next((part for part in image.parts[1:-1] if part.startswith("ses-")), "")


def _prefixed(prefix: str, text: str) -> str:
    return text if text.startswith(prefix) else prefix + text


def _cells(row: Mapping[str, str]) -> dict[str, str]:
    cells = dict(info_columns(row))
    if split := split_cell(row.get("split", "")):
        cells["split"] = split
    if day := row.get("acq_time", ""):
        cells["study_date"] = day  # becomes an interval when a case is made
    return cells


def _sidecar(source: Path, image: Path, suffix: str) -> dict[str, str]:
    """What the JSON of the image says, over that of the dataset (the inheritance principle of BIDS)."""
    found: dict[str, JsonValue] = {}
    for path in (source / f"{suffix}.json", image.parent / f"{stem(image)}.json"):
        if path.is_file():
            found.update(read_object(path))
    return dict(info_columns({column: found[key] for key, column in _SIDECAR.items() if key in found}))


def _scan(source: Path, image: Path, tables: _Tables, masks: Mapping[str, Path]) -> Scan:
    name = image.relative_to(source).as_posix()
    person = image.relative_to(source).parts[0]
    session = _session(image.relative_to(source))
    cells = {
        **_sidecar(source, image, _parts(image)[1]),
        **tables.participants.get(person, {}),
        **tables.sessions.get((person, session), {}),
        **tables.scans.get(name, {}),
    }
    return Scan(
        source=name,
        path=image,
        identity="",
        subject=f"{source.resolve().name}/{person}",
        session=f"{source.resolve().name}/{person}/{session}" if session else "",
        columns=tuple(cells.items()),
        masks=tuple(masks.items()),
    )


def _masks(source: Path) -> _Masks:
    found = _Masks()
    folder = source / "derivatives"
    unknown: Counter[str] = Counter()
    for path in find_images(folder) if folder.is_dir() else ():
        entities, suffix = _parts(path)
        own = {part.partition("-")[0]: part.partition("-")[2] for part in entities}
        column = SEGMENTATION if suffix == "dseg" else _MASKS.get(own.get("desc", "").lower(), "")
        if suffix not in ("dseg", "mask"):
            continue
        name = path.relative_to(source).as_posix()
        classes = _classes(path, folder) if suffix == "dseg" else {}
        of = found.of_image.setdefault(frozenset(p for p in entities if p.partition("-")[0] not in _OF_THE_MASK), {})
        if not column:
            unknown[f"desc-{own['desc']}" if "desc" in own else "no desc"] += 1
        elif column in of:
            told = of[column].relative_to(source).as_posix()
            found.remarks.append(f"A second {column} of one image is left out: {name}; {told} stays.")
        elif max(classes.values(), default=0) > _HIGHEST:
            found.remarks.append(f"{name} is left out: it has values above {_HIGHEST}.")
        else:
            of[column] = path
            _add_classes(found.classes, classes, name)
    found.remarks += [f"{n} masks with {what} are left out: their meaning is not known." for what, n in unknown.items()]
    return found


def _add_classes(known: dict[str, int], new: Mapping[str, int], name: str) -> None:
    """Add the classes of one segmentation; one value means one thing in a dataset."""
    by_value = {value: class_name for class_name, value in known.items()}
    for class_name, value in new.items():
        if known.get(class_name, value) != value or by_value.get(value, class_name) != class_name:
            raise DataError(
                f"{name} names the values of its segmentation otherwise than another one.",
                got=f"{value} = {class_name}",
                expected=", ".join(f"{v} = {n}" for n, v in known.items()),
                do="Keep the derivatives of one kind of segmentation under derivatives/ while you convert.",
            )
    known.update(new)


def _classes(path: Path, folder: Path) -> dict[str, int]:
    """Class names of a segmentation, from the nearest `*dseg.tsv` with the columns index and name."""
    parent = path.parent
    while True:
        for table in (parent / f"{stem(path)}.tsv", *sorted(parent.glob("*dseg.tsv"))):
            if table.is_file():
                rows = lines_of(table, ("index", "name"), delimiter="\t")
                numbers = ((row["name"], int(row["index"])) for row in rows if row["index"].isdecimal())
                return {name: number for name, number in numbers if number}
        if parent == folder:
            return {}
        parent = parent.parent
