"""Kernels: whether a reconstruction kernel is a soft-tissue or a bone one, by its name."""

from __future__ import annotations

import ast
import re
from typing import Literal

__all__ = ["KernelClass", "is_kernel_name", "is_kernel_word", "kernel_class", "kernel_names"]

KernelClass = Literal["soft", "bone", "unknown"]

_SIEMENS_SHARP_FROM = 50
"""Siemens: letters for the part of the body, a number for sharpness. Head scans: 30-45 brain, 59-70 bone and ear."""

_WORDS: tuple[tuple[str, KernelClass], ...] = (
    # GE: SOFT STANDARD DETAIL against BONE BONEPLUS EDGE LUNG ULTRA; United Imaging: H_SOFT_C, H_SHARP_C.
    (r"BONE(?!LESS)|EDGE|SHARP|ULTRA|(?<![A-Z])(?:LUNG|EAR|DENTAL|TEMPORAL)(?![A-Z])", "bone"),
    (r"SOFT|STANDARD|STND|(?<![A-Z])STD|SMOOTH|BRAIN|CEREB|DETAIL|PARENCH", "soft"),
)
_SIEMENS = re.compile(r"([A-Z]{1,2})(\d{2})[A-Z]{0,2}(?:_\d|\d)?")
_CANON = re.compile(r"FC(\d{1,2})")
# Canon/Toshiba: 01-19 body, 20-29 and 60-69 head, 40-49 head without beam-hardening correction, 30-39 and 80-89 bone
# and inner ear, 50-59 lung.
_CANON_CLASS: dict[int, KernelClass] = {
    0: "soft", 1: "soft", 2: "soft", 3: "bone", 4: "soft", 5: "bone", 6: "soft", 8: "bone",
}  # fmt: skip
# Philips: A, B, C and the brain filters UA, UB, UC, EB, EC are smooth; D, E, L, YB to YE enhance edges.
_PHILIPS: dict[str, KernelClass] = {
    **dict.fromkeys(("A", "B", "C", "UA", "UB", "UC", "EA", "EB", "EC"), "soft"),
    **dict.fromkeys(("D", "E", "L", "YB", "YC", "YD", "YE"), "bone"),
}
_PLAIN = re.compile(
    r"BODY|BONE(PLUS)?|BRAIN|CEREBELLUM|CEREBRUM|CHEST|DENTAL|DETAIL|EAR|EDGE|HEAD|LUNG|PARENCHYMA|PLUS|SHARP|SMOOTH|SOFT"
    r"|STANDARD|STN?D|TEMPORAL|ULTRA"
)
"""Kernels that are plain words, which may be somebody's name too."""


def is_kernel_name(value: str) -> bool:
    """Whether a value of ConvolutionKernel is one that kernels have: `BONE`, `Hr40s`, `FC26`, `UB`; not `Boneham`."""
    name = value.upper()
    return is_kernel_word(name) or name in _PHILIPS or bool(_SIEMENS.fullmatch(name) or _CANON.fullmatch(name))


def is_kernel_word(word: str) -> bool:
    """Whether a word is one that kernels are called by, though somebody may be called so too: `Bone`, `Sharp`."""
    return bool(_PLAIN.fullmatch(word.upper()))


def kernel_names(text: str) -> tuple[str, ...]:
    r"""The values of a ConvolutionKernel as converters write it: `Hr40s`, `Hr40s\3` or `['Hr40s', '3']`.

    Args:
        text: the cell.
    """
    stripped = text.strip()
    if stripped.startswith("["):
        try:
            parts = ast.literal_eval(stripped)
        except (ValueError, SyntaxError):
            parts = stripped.strip("[]").split(",")
        return tuple(str(part).strip().strip("'\"") for part in parts if str(part).strip())
    return tuple(part.strip() for part in stripped.split("\\") if part.strip())


def kernel_class(kernel: str, description: str = "") -> KernelClass:
    """Soft tissue or bone, from the names that vendors give kernels, else from the series description.

    Args:
        kernel: ConvolutionKernel, one value or the text of several.
        description: SeriesDescription, asked when the kernel tells nothing.
    """
    for name in kernel_names(kernel):
        found = _of_name(name.upper())
        if found != "unknown":
            return found
    return _of_words(description.upper())


def _of_name(name: str) -> KernelClass:
    if canon := _CANON.match(name):
        return _CANON_CLASS.get(int(canon[1]) // 10, "unknown")
    if siemens := _SIEMENS.fullmatch(name):
        return "bone" if int(siemens[2]) >= _SIEMENS_SHARP_FROM else "soft"
    return _PHILIPS.get(name) or _of_words(name)


def _of_words(text: str) -> KernelClass:
    return next((kind for words, kind in _WORDS if re.search(words, text)), "unknown")
