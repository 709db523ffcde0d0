"""Ids: a distinct, safe name for every image that was found."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from headctssl.dataset.image_io import stem

__all__ = ["distinct_ids", "own_names"]


def distinct_ids(images: Sequence[Path], root: Path) -> list[str]:
    """A distinct, safe id per image: its own name, or that with a number where an earlier one has it.

    A number never makes the own name of another image, so that a name that occurs once is always that image's.

    Args:
        images: files or DICOM folders.
        root: the folder they were found under, or the image itself.
    """
    plain, own = _plain_names(images), own_names(images, root)
    ids = [""] * len(own)
    used, given = set(own), set()
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    # Names as they are come before those made with folders, which may spell the same.
    for place in sorted(range(len(own)), key=lambda k: own[k] != plain[k]):
        name = case_id = own[place]
        if name in given:
            case_id = next(free for number in numbers[name] if (free := f"{name}_{number}") not in used)
        given.add(name)
        used.add(case_id)
        ids[place] = case_id
    return ids


def own_names(images: Sequence[Path], root: Path) -> list[str]:
    """The safe name of each image, with the folders above it where it occurs twice; several may still share one.

    Args:
        images: files or DICOM folders.
        root: the folder they were found under, or the image itself.
    """
    plain = _plain_names(images)
    times = Counter(plain)
    return [
        "__".join([*map(_safe, image.relative_to(root).parts[:-1]), name])
        if times[name] > 1 and image != root
        else name
        for image, name in zip(images, plain, strict=True)
    ]


def _plain_names(images: Sequence[Path]) -> list[str]:
    # '.' and '..' are folders whose name stands elsewhere.
    return [_safe(stem(image if image.name.strip(".") else image.resolve())) for image in images]


def _safe(name: str) -> str:
    """Letters of any script, digits, '_', '.' and '-': no path, no space or control character, no spreadsheet formula.

    Letters with accents are composed: some file systems take them apart.
    """
    kept = "".join(c if c in "_.-" or _is_word(c) else " " for c in unicodedata.normalize("NFC", name))
    return re.sub(" +", "_", kept).lstrip("._-").rstrip("._") or "image"


def _is_word(character: str) -> bool:
    """Whether it is a letter, a mark that belongs to one, or a digit."""
    return unicodedata.category(character)[0] in "LMN"
