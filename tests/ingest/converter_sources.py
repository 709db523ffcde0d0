"""Converter sources: tiny image files, masks and tables from which tests build published layouts."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from crude_heads import crude_head
from dicom_writer import write_dicom

from headctssl.cli.main import run_command
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.ingest.scan import Found, Scan

__all__ = ["by_source", "convert_as_documented", "image", "mask", "series", "stub", "told", "write_csv"]

COUNT = 12  # slices of a series

PAGES = Path(__file__).parents[2] / "documentation" / "sources"


def convert_as_documented(
    name: str, source: Path, *, labels: Path | None = None, which: int = 0
) -> tuple[int, RawDataset]:
    """Run a command of a source's page on a source; its exit code and the dataset."""
    lines = re.findall(r"^(headct_convert .*)$", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = shlex.split(lines[which])
    words[1] = str(source)
    if "--labels" in words:
        words[words.index("--labels") + 1] = str(labels)
    assert words[words.index("--from") + 1] == name
    code = run_command("convert", [*words[1:], "--num_workers", "1", "--quiet"])
    return code, load_raw_dataset(int(words[words.index("-d") + 1]))


def image(path: Path, seed: int = 1) -> Path:
    """A head that is accepted, as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, crude_head(seed, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0)))
    return path


def stub(path: Path, number: int = 0) -> Path:
    """A readable NIfTI of 2 x 2 x 2 voxels with its own content: enough to be found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), number, np.int16), np.eye(4)), path)
    return path


def mask(path: Path, of: Path, values: Mapping[int, slice], *, background: int = 0, slope: float = 1.0) -> Path:
    """A label map on the voxels of an image: value -> slices along the last stored axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    like = nib.load(of)
    stored = np.full(like.shape, background, np.uint8)
    for value, where in values.items():
        stored[..., where] = value
    picture = nib.Nifti1Image(stored, like.affine)
    picture.header.set_slope_inter(slope, 0.0)
    nib.save(picture, path)
    return path


def series(folder: Path, seed: int = 1, *, head: bool = False, **options: object) -> list[Path]:
    """A DICOM series: a head that is accepted, or slices of 8 x 8 pixels that are only found."""
    if head:
        volume = crude_head(seed, shape=(24, 40, 40), spacing=(8.0, 6.0, 6.0))
        hu = volume.hu[:, ::1, ::1]
        return write_dicom(folder, hu, spacing_mm=(8.0, 6.0, 6.0), **options)
    hu = np.random.default_rng(seed).integers(-1000, 1000, (COUNT, 8, 8)).astype(np.int16)
    return write_dicom(folder, hu, **options)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], *, delimiter: str = ",") -> Path:
    """A table as its source publishes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def by_source(found: Found) -> dict[str, Scan]:
    """Scans by the part of their source that tests name: without the number of slices."""
    return {scan.source.split(" (")[0]: scan for scan in found.scans}


def told(found: Found) -> str:
    """Everything that is told about what is not converted, as one text."""
    reasons = [entry.reason for entry in found.ignored]
    reasons += [reason for verdict in found.rejected for reason in verdict.reasons]
    return "\n".join((*reasons, *found.remarks))
