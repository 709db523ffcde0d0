"""nnssl: the CT images of a `pretrain_data.json`, with masks by name and metadata of every level."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from headctssl.dataset.masks import MASK_COLUMNS
from headctssl.errors import DataError, UsageError
from headctssl.ingest.converters.cells import copied_remark, info_columns, is_ct, split_cell
from headctssl.ingest.converters.source_files import identified, layout_error, left_out, read_object
from headctssl.ingest.scan import Found, Scan
from headctssl.settings import JsonValue

__all__ = ["find_scans"]

_FILE = "pretrain_data.json"
_INFOS = ("dataset_info", "subject_info", "session_info", "image_info")
_QUALITY = "image_quality_score"
Object = Mapping[str, JsonValue]


@dataclass
class _Told:
    """What is left out, counted while the file is walked."""

    modalities: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Level:
    """Where in the hierarchy an image is."""

    names: tuple[str, ...]  # dataset, subject, session
    infos: tuple[Object, ...]


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every CT image of nnssl's hierarchy collection, dataset, subject, session, image.

    Paths may begin with `$NAME`, an environment variable; other relative ones are relative to the file.
    Masks are taken by their names (`anatomy_mask`, `anonymization_mask`, `segmentation`). Scalars of
    dataset_info, subject_info, session_info and image_info become columns, an inner level before an
    outer one; a quality score that dataset_info gives by modality becomes `image_quality_score`.

    Args:
        source: `pretrain_data.json`, or the folder that holds it.
        num_workers: processes that read the files; None = one per core.
        quiet: print no progress.

    Raises:
        DataError: there is no such file, or it does not fit; the place is named.
        UsageError: a path begins with an environment variable that is not set.
    """
    path = source / _FILE if source.is_dir() else source
    if not path.is_file():
        raise layout_error(source, "nnssl", _FILE)
    told = _Told()
    scans = list(_scans(path, read_object(path), told))
    result = identified(scans, num_workers, quiet=quiet)
    return Found(
        result.scans,
        ignored=(
            *left_out(told.modalities, "images of modality"),
            *left_out(told.masks, "masks of a name that has no column:"),
        ),
        rejected=result.rejected,
        remarks=(*copied_remark(result.scans), *result.remarks),
    )


def _scans(path: Path, collection: Object, told: _Told) -> Iterator[Scan]:
    top = f"{path.name}"
    for dataset_name, dataset in _children(collection, "datasets", top):
        for subject_name, subject in _children(dataset, "subjects", f"{top}, dataset {dataset_name}"):
            where = f"{top}, subject {subject_name} of dataset {dataset_name}"
            for session_name, session in _children(subject, "sessions", where):
                level = _Level((dataset_name, subject_name, session_name), (dataset, subject, session))
                images = session.get("images")
                if not isinstance(images, list):
                    raise _misfit(f"{where}, session {session_name}", "images", "a list")
                for image in images:
                    if not isinstance(image, dict):
                        raise _misfit(f"{where}, session {session_name}", "images", "objects")
                    scan = _scan(path, level, image, told)
                    if scan is not None:
                        yield scan


def _children(parent: Object, key: str, where: str) -> Iterator[tuple[str, Object]]:
    children = parent.get(key)
    if not isinstance(children, dict):
        raise _misfit(where, key, "an object")
    for name, child in children.items():
        if not isinstance(child, dict):
            raise _misfit(where, f"{key}.{name}", "an object")
        yield name, cast("Object", child)


def _misfit(where: str, key: str, expected: str) -> DataError:
    return DataError(
        f"{where}: '{key}' does not fit.",
        got="nothing, or something else",
        expected=expected,
        do="Write the file with nnssl's Collection.to_dict(), or correct it.",
    )


def _scan(path: Path, level: _Level, image: Object, told: _Told) -> Scan | None:
    """The scan of one image; None, and counted, for an image that is no CT."""
    modality = str(image.get("modality") or "")
    if not is_ct(modality):
        told.modalities[modality] += 1
        return None
    name = "/".join((*level.names, str(image.get("name") or "")))
    file = image.get("image_path")
    if not isinstance(file, str) or not file:
        raise _misfit(f"{path.name}, image {name}", "image_path", "a path")
    masks = image.get("associated_masks")
    found: list[tuple[str, Path]] = []
    for column, mask in masks.items() if isinstance(masks, dict) else ():
        if column not in MASK_COLUMNS:
            told.masks[column] += 1
        elif isinstance(mask, str) and mask:
            found.append((column, _resolved(mask, path)))
    dataset, subject, session = level.names
    return Scan(
        source=name,
        path=_resolved(file, path),
        identity="",
        subject=f"{dataset}/{subject}",
        session=f"{dataset}/{subject}/{session}",
        columns=_columns(level, image, modality),
        masks=tuple(found),
    )


def _resolved(text: str, path: Path) -> Path:
    """A path of the file with its environment variable in place."""
    first, slash, rest = text.partition("/")
    if first.startswith("$"):
        variable = first[1:].strip("{}")
        root = os.environ.get(variable)
        if not root:
            raise UsageError(
                f"{path.name} has paths that begin with ${variable}, which is not set.",
                got=text,
                expected=f"the environment variable {variable}",
                do=f"export {variable}=/folder/that/holds/{rest.partition('/')[0] if slash else 'them'}",
            )
        return Path(root).expanduser() / rest
    return path.parent / text  # an absolute path stays itself


def _columns(level: _Level, image: Object, modality: str) -> tuple[tuple[str, str], ...]:
    cells: dict[str, str] = {}
    for holder, key in zip((*level.infos, image), _INFOS, strict=True):
        info = holder.get(key)
        if isinstance(info, dict):
            cells.update(info_columns(info))
            if split := split_cell(info.get("split")):
                cells["split"] = split
    score = _quality(level.infos[0], image, modality)
    if score and _QUALITY not in cells:
        cells[_QUALITY] = score
    return tuple(cells.items())


def _quality(dataset: Object, image: Object, modality: str) -> str:
    """The quality score that dataset_info lists for images of this modality and derivation."""
    dataset_info, image_info = dataset.get("dataset_info"), image.get("image_info")
    listed = dataset_info.get(_QUALITY) if isinstance(dataset_info, dict) else None
    derived = image_info.get("derived_from") if isinstance(image_info, dict) else None
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and (entry.get("modality"), entry.get("derived_from")) == (modality, derived):
            score = entry.get(_QUALITY)
            return "" if score is None else str(score)
    return ""
