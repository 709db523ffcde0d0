"""Detached: the data files that MetaImage and NRRD headers name."""

from __future__ import annotations

from pathlib import Path

from headctssl.dataset.raw_image import unreadable

__all__ = ["data_files"]

_KEYS = {
    ".mhd": ("=", ("elementdatafile",)),
    ".mha": ("=", ("elementdatafile",)),
    ".nhdr": (":", ("data file", "datafile")),
    ".nrrd": (":", ("data file", "datafile")),
}
_HEADER_BYTES = 1 << 16  # of a file that may hold its voxels too; real headers have some hundred bytes


def data_files(path: Path) -> list[Path]:
    """The data file that a MetaImage or NRRD header names, [] for every other file.

    Args:
        path: an image file. A data file that does not exist is left out; reading the image tells.

    Raises:
        ImageReadError: the voxels are spread over a list or a numbered pattern of files.
    """
    sign, keys = _KEYS.get(path.suffix.lower(), ("", ()))
    if not sign or not path.is_file():
        return []
    with open(path, "rb") as handle:
        lines = handle.read(_HEADER_BYTES).decode("latin-1").split("\n")
    for line in lines:
        if sign == ":" and not line.strip():
            return []  # the end of an NRRD header; the voxels follow
        key, found, value = line.partition(sign)
        if not found or key.strip().lower() not in keys:
            continue
        name = value.strip()
        if name.split()[:1] == ["LIST"] or "%" in name:
            raise unreadable(
                path,
                f"voxels in several files ('{name[:80]}')",
                "one data file beside the header",
                "Save it as one file: .nii.gz, .nrrd or .mha.",
            )
        # MetaImage's last key: what follows may be voxels. LOCAL means that they do.
        data = path.parent / name
        return [data] if name and name.upper() != "LOCAL" and data.is_file() else []
    return []
