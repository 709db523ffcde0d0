"""Folder: image files under a folder, or one file, with labels from a CSV where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import find_images, is_image, source_digest, stem
from headctssl.dataset.table import PATH_COLUMNS, STANDARD_COLUMNS, label_value, read_table
from headctssl.errors import DataError, ImageReadError
from headctssl.ingest.scan import Found, Ignored, Scan
from headctssl.ingest.verdict import ScanVerdict

__all__ = ["find_scans"]

_KEYS = ("image", "case_id")
_HASHED = ("subject_id", "session_id")


def find_scans(source: Path, labels: Path | None = None) -> Found:
    """Every image under a folder (or the one file) as a scan.

    Args:
        source: a folder, searched in depth, or one image file.
        labels: CSV with a column `image` (or `case_id`) that holds each image's path relative to the
            source, its file name, or its name without suffix. Its other columns go into cases.csv;
            a column of 0, 1 and empty cells that is no standard column is a binary label.

    Returns:
        The scans. A scan is recognised again by its content.

    Raises:
        DataError: the CSV has neither key column, a key is repeated or fits several images, or no
            line belongs to an image.
    """
    if source.is_file() or (source.is_dir() and is_image(source)):
        images, root = [source], source.parent
    else:
        images, root = find_images(source), source
    names = [image.relative_to(root).as_posix() for image in images]
    rows: list[dict[str, str]] = [{} for _ in images]
    specs: tuple[LabelSpec, ...] = ()
    remarks: list[str] = []
    if labels is not None:
        table = read_table(labels)
        rows = _match(table, labels, images, names, remarks)
        specs = tuple(LabelSpec(name=name) for name in _label_columns(table))
        remarks.append(f"Labels found in {labels.name}: {', '.join(s.name for s in specs) or 'none'}.")
        copied = [n for n in table.columns if n not in (*_KEYS, *_HASHED, *(spec.name for spec in specs))]
        if copied:
            remarks.append(
                f"Columns copied as they are: {', '.join(copied)}. Remove names, numbers and dates of patients."
            )
    scans: list[Scan] = []
    rejected: list[ScanVerdict] = []
    for image, name, row in zip(images, names, rows, strict=True):
        try:
            digest = source_digest(image)[0]
        except (ImageReadError, OSError) as error:
            told = (
                f"{error.what} Got: {error.got}." if isinstance(error, ImageReadError) else error.strerror or "OSError"
            )
            rejected.append(ScanVerdict(source=name, status="reject", reasons=(told.replace(str(image), name),)))
            continue
        scans.append(
            Scan(
                source=name,
                path=image,
                identity=f"content:{digest}",
                subject=row.get("subject_id", ""),
                session=row.get("session_id", ""),
                columns=tuple((key, value) for key, value in row.items() if key not in (*_KEYS, *_HASHED)),
            )
        )
    ignored = _not_images(root, source, images)
    return Found(tuple(scans), ignored, tuple(rejected), labels=specs, remarks=tuple(remarks))


def _not_images(root: Path, source: Path, images: Sequence[Path]) -> tuple[Ignored, ...]:
    if not source.is_dir() or source in images:
        return ()
    folders = [image for image in images if image.is_dir()]
    others = [
        file
        for file in sorted(root.rglob("*"))
        if file.is_file() and file not in images and not any(folder in file.parents for folder in folders)
    ]
    suffixes = sorted({file.suffix or "none" for file in others})
    return (Ignored("", f"{len(others)} files that are no images (suffixes: {', '.join(suffixes)})"),) if others else ()


def _match(
    table: pd.DataFrame, path: Path, images: Sequence[Path], names: Sequence[str], remarks: list[str]
) -> list[dict[str, str]]:
    """The line of the CSV that belongs to each image; {} for an image without one."""
    key = next((name for name in _KEYS if name in table.columns), None)
    if key is None:
        raise DataError(
            f"{path} has no column that names the images.",
            got=", ".join(table.columns),
            expected="a column 'image' (file name) or 'case_id' (file name without suffix)",
            do="Add the column.",
        )
    masks = [name for name in PATH_COLUMNS if name in table.columns and name not in _KEYS]
    if masks:
        raise DataError(
            f"{path} names masks, which are not converted.",
            got=", ".join(masks),
            expected="labels and metadata only",
            do="Remove the columns, and add masks to the dataset's folder and its cases.csv afterwards.",
        )
    owners: dict[str, set[int]] = {}
    for position, (image, name) in enumerate(zip(images, names, strict=True)):
        for text in (name, image.name, stem(image)):
            owners.setdefault(text, set()).add(position)
    rows: list[dict[str, str]] = [{} for _ in images]
    unmatched = 0
    for record in table.to_dict("records"):
        text = str(record[key])
        found = owners.get(text, set())
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
        rows[found.pop()] = {str(name): str(value) for name, value in record.items()}
    if not any(rows):
        raise DataError(
            f"No line of {path} belongs to an image.",
            got=f"'{key}' of its first lines: " + (", ".join(repr(str(v)) for v in table[key][:3]) or "no lines"),
            expected="such as " + ", ".join(repr(name) for name in names[:3]),
            do=f"Write each image's path relative to the source, its name, or its name without suffix into '{key}'.",
        )
    without = sum(not row for row in rows)
    if unmatched or without:
        remarks.append(f"{path.name}: {unmatched} lines without an image, {without} images without a line.")
    return rows


def _label_columns(table: pd.DataFrame) -> list[str]:
    """Columns that can only be binary labels: 0, 1 (or 0.0, 1.0) and empty cells, at least one not empty."""
    found = []
    for name in table.columns:
        values = set(table[name]) - {""}
        spec = LabelSpec(name=str(name))
        if name not in STANDARD_COLUMNS and values and all(label_value(spec, text) is not None for text in values):
            found.append(str(name))
    return found
