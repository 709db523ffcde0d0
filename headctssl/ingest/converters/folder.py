"""Folder: image files under a folder, or one file, with labels and masks from a CSV where there is one."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import find_images, is_image, stem
from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.dataset.table import read_table
from headctssl.errors import DataError
from headctssl.ingest.converters.cells import binary_columns, copied_remark
from headctssl.ingest.converters.source_files import identified
from headctssl.ingest.scan import Found, Ignored, Scan

__all__ = ["find_scans"]

_KEYS = ("image", "case_id")
_HASHED = ("subject_id", "session_id")
_Row = dict[str, str]


def find_scans(source: Path, labels: Path | None = None, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every image under a folder (or the one file) as a scan.

    Args:
        source: a folder, searched in depth, or one image file.
        labels: CSV with a column `image` (or `case_id`) that holds each image's path relative to the
            source, its file name, or its name without suffix. Its other columns go into cases.csv;
            a column of 0, 1 and empty cells that is no standard column is a binary label. The columns
            `anatomy_mask`, `anonymization_mask` and `segmentation` name mask files relative to the source,
            which are no scans themselves.
        num_workers: processes that read the files; None = one per core.
        quiet: print no progress.

    Returns:
        The scans. A scan is recognised again by its content.

    Raises:
        DataError: the CSV has neither key column, a key is repeated or fits several images, no line
            belongs to an image, or a mask does not exist or is an image of a line too.
    """
    if source.is_file() or (source.is_dir() and is_image(source)):
        images, root = [source], source.parent
    else:
        images, root = find_images(source), source
    rows: list[_Row] = []
    specs: tuple[LabelSpec, ...] = ()
    remarks: list[str] = []
    masks: set[Path] = set()
    if labels is not None:
        table = read_table(labels)
        rows = [{str(name): str(value) for name, value in record.items()} for record in table.to_dict("records")]
        masks = _mask_files(rows, labels, root)
        images = [image for image in images if image.resolve() not in masks]
    names = [image.relative_to(root).as_posix() for image in images]
    of_image: list[_Row] = [{} for _ in images]
    if labels is not None:
        of_image = _match(table, rows, labels, images, names, _names_of(rows), remarks)
        specs = tuple(LabelSpec(name=name) for name in binary_columns(rows) if name not in _KEYS)
        remarks.insert(0, f"Labels found in {labels.name}: {', '.join(s.name for s in specs) or 'none'}.")
    scans = [_scan(image, name, row, root) for image, name, row in zip(images, names, of_image, strict=True)]
    result = identified(scans, num_workers, quiet=quiet)
    return Found(
        result.scans,
        ignored=_not_images(root, source, images, masks),
        rejected=result.rejected,
        labels=specs,
        remarks=(*remarks, *copied_remark(result.scans, (spec.name for spec in specs)), *result.remarks),
    )


def _scan(image: Path, name: str, row: Mapping[str, str], root: Path) -> Scan:
    return Scan(
        source=name,
        path=image,
        identity="",
        subject=row.get("subject_id", ""),
        session=row.get("session_id", ""),
        columns=tuple((key, value) for key, value in row.items() if key not in (*_KEYS, *_HASHED, *MASK_COLUMNS)),
        masks=tuple((column, root / row[column]) for column in MASK_COLUMNS if row.get(column)),
    )


def _mask_files(rows: Sequence[Mapping[str, str]], path: Path, root: Path) -> set[Path]:
    """Every mask that the CSV names; they lie among the images, and are none."""
    masks: set[Path] = set()
    for row in rows:
        for column in MASK_COLUMNS:
            if not row.get(column):
                continue
            mask = root / row[column]
            if not is_image(mask):
                raise DataError(
                    f"{path}: the {column} '{row[column]}' cannot be read.",
                    got="no such file" if not mask.exists() else f"a file ending in '{mask.suffix}'",
                    expected="an image file, named by its path relative to the source",
                    do="Correct the cell, or leave it empty.",
                )
            masks.add(mask.resolve())
    return masks


def _names_of(rows: Sequence[Mapping[str, str]]) -> set[str]:
    """Every way to write a mask that the CSV names."""
    cells = [Path(row[column]) for row in rows for column in MASK_COLUMNS if row.get(column)]
    return {text for path in cells for text in (path.as_posix(), path.name, stem(path))}


def _not_images(root: Path, source: Path, images: Sequence[Path], masks: set[Path]) -> tuple[Ignored, ...]:
    if not source.is_dir() or source in images:
        return ()
    folders = [image for image in images if image.is_dir()]
    known = {*images, *masks}
    others: list[Path] = []
    broken = 0
    closed: list[OSError] = []
    for name, subfolders, files in os.walk(root, onerror=closed.append):
        subfolders[:] = [one for one in subfolders if Path(name, one) not in folders]
        for file in (Path(name, one) for one in files):
            if not file.is_file():
                broken += 1
            elif file not in known and file.resolve() not in masks:
                others.append(file)
    suffixes = sorted({file.suffix or "none" for file in others})
    told = (
        (len(others), f"files that are no images (suffixes: {', '.join(suffixes)})"),
        (broken, "links that lead nowhere, or special files"),
        (len(closed), "folders that cannot be opened"),
    )
    return tuple(Ignored("", f"{count} {what}") for count, what in told if count)


def _match(
    table: pd.DataFrame,
    lines: Sequence[_Row],
    path: Path,
    images: Sequence[Path],
    names: Sequence[str],
    masks: Collection[str],
    remarks: list[str],
) -> list[_Row]:
    """The line of the CSV that belongs to each image; {} for an image without one."""
    key = next((name for name in _KEYS if name in table.columns), None)
    if key is None:
        raise DataError(
            f"{path} has no column that names the images.",
            got=", ".join(table.columns),
            expected="a column 'image' (file name) or 'case_id' (file name without suffix)",
            do="Add the column.",
        )
    owners: dict[str, set[int]] = {}
    for position, (image, name) in enumerate(zip(images, names, strict=True)):
        for text in (name, image.name, stem(image)):
            owners.setdefault(text, set()).add(position)
    rows: list[_Row] = [{} for _ in images]
    unmatched = 0
    for line in lines:
        text = line[key]
        found = set(owners.get(text, ()))
        if not found and text in masks:
            raise DataError(
                f"{path}: '{text}' is an image and a mask.",
                got=f"a line with the {key} '{text}', and a line that names it as its mask",
                expected="a mask has no line of its own",
                do="Remove one of the two.",
            )
        if not found:
            unmatched += 1
            continue
        if len(found) > 1 or rows[next(iter(found))]:
            raise DataError(
                f"{path}: '{text}' does not name one image.",
                got=", ".join(names[k] for k in sorted(found)) if len(found) > 1 else "two lines for one image",
                expected="one line per image",
                do="Write the path relative to the source in the column 'image', once per image.",
            )
        rows[found.pop()] = line
    if not any(rows):
        raise DataError(
            f"No line of {path} belongs to an image.",
            got=f"'{key}' of its first lines: " + (", ".join(repr(line[key]) for line in lines[:3]) or "no lines"),
            expected="such as " + ", ".join(repr(name) for name in names[:3]),
            do=f"Write each image's path relative to the source, its name, or its name without suffix into '{key}'.",
        )
    without = sum(not row for row in rows)
    if unmatched or without:
        remarks.append(f"{path.name}: {unmatched} lines without an image, {without} images without a line.")
    return rows
