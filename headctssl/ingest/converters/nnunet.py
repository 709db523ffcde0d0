"""nnU-Net: the CT channel of a raw nnU-Net dataset, with its segmentations and their class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headctssl.dataset.image_io import find_images, stem
from headctssl.errors import DataError
from headctssl.ingest.converters.cells import is_ct
from headctssl.ingest.converters.source_files import identified, layout_error, left_out, read_object
from headctssl.ingest.scan import Found, Scan
from headctssl.settings import JsonValue

__all__ = ["find_scans"]

_FOLDERS = (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_HIGHEST = 255  # of a value in a label map of a raw dataset


@dataclass(frozen=True)
class _Classes:
    """What the label maps hold."""

    named: tuple[tuple[str, int], ...]  # name -> value
    usable: bool  # whether the label maps can be masks of a raw dataset
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """One file of a case."""

    path: Path
    case: str
    channel: str  # number without leading zeros
    split: str
    label: Path | None


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every CT image of a raw nnU-Net dataset.

    Channels are CT when their name in `dataset.json` says so (`channel_names`, `modality` in version 1);
    the others are left out. Where there is an `imagesTs` folder, its cases are the test set and those of
    `imagesTr` never are. Label maps become masks of the column `segmentation`, their classes keep their
    names and values.

    Args:
        source: a folder `DatasetXXX_Name` with `dataset.json`, `imagesTr/CASE_0000.nii.gz` and
            `labelsTr/CASE.nii.gz`; also version 1 and Decathlon folders (files without a channel number), and
            version 2 with a list of files under `dataset` in `dataset.json`.
        num_workers: processes that read the files; None = one per core.
        quiet: print no progress.

    Raises:
        DataError: there is no `dataset.json`, or it does not fit.
    """
    path = source / "dataset.json"
    if not path.is_file():
        raise layout_error(source, "nnunet", "dataset.json, imagesTr/, labelsTr/")
    info = read_object(path)
    channels = _channels(path, info)
    classes = _classes(info)
    images = _listed(source, info) or _in_folders(source, channels)
    others: Counter[str] = Counter()
    scans: list[Scan] = []
    for image in images:
        name = channels.get(image.channel, "")
        if is_ct(name):
            scans.append(_scan(source, image, len(channels), masks=classes.usable))
        else:
            others[name or f"number {image.channel}"] += 1
    result = identified(scans, num_workers, quiet=quiet)
    return Found(
        result.scans,
        ignored=left_out(others, "images of the channel"),
        rejected=result.rejected,
        segmentation_classes=classes.named if any(scan.masks for scan in result.scans) else (),
        licence=str(info.get("licence", info.get("license", "")) or ""),
        reference=str(info.get("reference", "") or ""),
        remarks=(*classes.remarks, *result.remarks),
    )


def _channels(path: Path, info: Mapping[str, JsonValue]) -> dict[str, str]:
    """Name of each channel by its number."""
    names = info.get("channel_names", info.get("modality"))
    if not isinstance(names, dict) or not names:
        raise DataError(
            f"{path} names no channels.",
            got=", ".join(info) or "nothing",
            expected='"channel_names": {"0": "CT"}',
            do="Complete dataset.json as nnU-Net asks for it.",
        )
    return {str(int(number)) if number.isdecimal() else number: str(name) for number, name in names.items()}


def _classes(info: Mapping[str, JsonValue]) -> _Classes:
    labels = info.get("labels")
    values: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        # Version 1 has value -> name, version 2 name -> value, or the values of a region.
        old = isinstance(value, str) and key.isdecimal()
        name, numbers = (str(value), [key]) if old else (key, value if isinstance(value, list) else [value])
        if not all(str(number).isdecimal() for number in numbers):
            raise DataError(
                f"dataset.json: the label '{key}' does not fit.",
                got=value,
                expected="a whole number, or a list of them for a region",
                do="Complete dataset.json as nnU-Net asks for it.",
            )
        values[name] = tuple(int(str(number)) for number in numbers)
    every = {member for of in values.values() for member in of}
    if "ignore" in values or max(every, default=0) > _HIGHEST:
        told = "with voxels that nobody marked ('ignore')" if "ignore" in values else f"with values above {_HIGHEST}"
        return _Classes((), False, (f"Label maps {told} cannot be stored: they are left out.",))
    named = {name: of[0] for name, of in values.items() if len(of) == 1 and of[0] != 0}
    regions = {name: of for name, of in values.items() if len(of) > 1}
    # A region is a union; its parts stay apart in the label map, so that each of them needs a name.
    named.update({f"label_{value}": value for value in sorted(every - set(named.values()) - {0})})
    remarks = tuple(
        f"The region '{name}' is no class by itself: its values {', '.join(map(str, of))} are classes."
        for name, of in regions.items()
    )
    return _Classes(tuple(sorted(named.items(), key=lambda pair: pair[1])), True, remarks)


def _listed(source: Path, info: Mapping[str, JsonValue]) -> list[_Image]:
    """The images that version 2 lists under `dataset`."""
    listed = info.get("dataset")
    images: list[_Image] = []
    for case, entry in listed.items() if isinstance(listed, dict) else ():
        files = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        for channel, file in enumerate(files if isinstance(files, list) else []):
            mask = source / str(label) if label else None
            images.append(_Image(source / str(file), case, str(channel), "", mask))
    return images


def _in_folders(source: Path, channels: Mapping[str, str]) -> list[_Image]:
    """The images of imagesTr and imagesTs."""
    folders = [entry for entry in _FOLDERS if (source / entry[0]).is_dir()]
    if not folders:
        raise layout_error(source, "nnunet", "imagesTr/")
    fixed = any(split == "test" and find_images(source / name) for name, _, split in folders)
    labels = {name: _by_stem(source / name) for _, name, _ in folders}
    numbered = _numbered(
        (stem(image) for image in find_images(source / folders[0][0])), labels[folders[0][1]], channels
    )
    images: list[_Image] = []
    for image_folder, label_folder, split in folders:
        for path in find_images(source / image_folder):
            match = _CHANNEL.fullmatch(stem(path)) if numbered else None
            case, channel = (match.group(1), str(int(match.group(2)))) if match else (stem(path), "0")
            images.append(_Image(path, case, channel, split if fixed else "", labels[label_folder].get(case)))
    return images


def _by_stem(folder: Path) -> dict[str, Path]:
    return {stem(path): path for path in find_images(folder)} if folder.is_dir() else {}


def _numbered(stems: Iterable[str], labels: Mapping[str, Path], channels: Mapping[str, str]) -> bool:
    """Whether files end in a channel number (nnU-Net) or not (Decathlon, whose cases may end in four digits too)."""
    names: Sequence[str] = list(stems)
    if any(name in labels for name in names):
        return False
    matches = [_CHANNEL.fullmatch(name) for name in names]
    return all(match is not None and str(int(match.group(2))) in channels for match in matches)


def _scan(source: Path, image: _Image, channels: int, *, masks: bool) -> Scan:
    person = f"{source.resolve().name}/{image.case}"  # also where the source is `.`
    return Scan(
        source=image.path.relative_to(source).as_posix() if image.path.is_relative_to(source) else image.path.name,
        path=image.path,
        identity="",
        subject=person,
        session=person if channels > 1 else "",  # its channels were taken together
        columns=(("split", image.split),) if image.split else (),
        masks=(("segmentation", image.label),) if image.label and masks else (),
    )
