"""Make: cases and whole raw datasets of synthetic head CTs."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headctssl.console import name_files, progress, say
from headctssl.errors import HeadCTSSLError, UsageError
from headctssl.ingest.phantom.acquisition import Acquisition, acquire
from headctssl.ingest.phantom.base_head import BaseHead, load_base
from headctssl.ingest.phantom.draw_acquisition import draw_acquisition
from headctssl.ingest.phantom.draw_scene import draw_scene
from headctssl.ingest.phantom.findings import FINDING_IDS
from headctssl.ingest.phantom.labels import labels_of, mass_effect_mm
from headctssl.ingest.phantom.profiles import find_profile
from headctssl.ingest.phantom.scene import Scene
from headctssl.paths import data_root, dataset_folder_name, find_dataset
from headctssl.seeding import derive_seed
from headctssl.types import Volume, VolumeInfo

__all__ = ["PhantomCase", "make_case", "make_phantom", "subject_of"]

_GROUP = 5  # of five cases in a row, the last is a second scan of one of the first four


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic scan and everything that is known about it."""

    volume: Volume  # as a reader gives it; only with `allow_shear` may its affine be sheared
    masks: dict[str, NDArray[np.bool_]]  # one per finding present, (z, y, x)
    segmentation: NDArray[np.uint8]  # (z, y, x), ids of `findings.FINDING_IDS`
    labels: dict[str, int]  # all labels of the phantom, 0 or 1
    scene: Scene  # the geometry that made it
    acquisition: Acquisition
    outside: NDArray[np.bool_] | None  # (y, x), not reconstructed; the file has `acquisition.padding_hu` there
    tissues: NDArray[np.uint8] | None  # (z, y, x), ids of `shapes.TISSUES`


def subject_of(seed: int, case: int) -> tuple[int, int]:
    """Subject number and session of a case, both from 1; every fifth case is a second scan.

    Args:
        seed: seed of the dataset.
        case: number of the case, from 1.
    """
    group, position = divmod(case - 1, _GROUP)
    first = group * (_GROUP - 1) + 1
    if position < _GROUP - 1:
        return first + position, 1
    return first + derive_seed(seed, group, "phantom rescan") % (_GROUP - 1), 2


def make_case(
    seed: int,
    profile: str = "clinical",
    *,
    case: int = 1,
    scene: Scene | None = None,
    acquisition: Acquisition | None = None,
    allow_shear: bool = False,
    tissues: bool = False,
    base: BaseHead | None = None,
) -> PhantomCase:
    """Make one synthetic scan: a function of the arguments alone.

    Args:
        seed: seed of the dataset.
        profile: `clinical` or `laptop`.
        case: number of the case, from 1; every fifth is a second scan of a subject before it.
        scene: this head and these findings instead of drawn ones.
        acquisition: this scan instead of a drawn one.
        allow_shear: keep the slices of a tilted gantry stacked along the table, with a sheared affine;
            without it such a scan is made on the straight grid of the gantry.
        tissues: also give the tissue of every voxel; not known of a real head.
        base: a real head (`base_head.load_base`) that every subject is a variation of.

    Raises:
        UsageError: there is no such profile, or tissues of a real head are asked for.
    """
    if tissues and base is not None:
        raise UsageError(
            "The tissues of a real head are not known.", got="tissues=True with a base", expected="one of the two",
            do="Leave one out.",
        )  # fmt: skip
    chosen = find_profile(profile)
    subject, _ = subject_of(seed, case)
    if scene is None:
        scene = draw_scene(_generator(seed, subject, f"phantom subject {profile}"), chosen, base)
    if acquisition is None:
        rng = _generator(seed, case, f"phantom scan {profile}")
        acquisition = draw_acquisition(rng, chosen, scene.anatomy)
    if acquisition.sheared and not allow_shear:
        acquisition = replace(acquisition, sheared=False)
    scan = acquire(scene, acquisition, tissues=tissues)
    masks = {f.kind: scan.segmentation == FINDING_IDS[f.kind] for f in scene.findings}
    spacing = (acquisition.thickness_mm, acquisition.pixel_mm, acquisition.pixel_mm)
    info = VolumeInfo("phantom", _shape(scan.hu), spacing, tilt_deg=acquisition.tilt_deg if acquisition.sheared else 0)
    volume = Volume(scan.hu, scan.affine, info)
    return PhantomCase(
        volume, masks, scan.segmentation, labels_of(scene), scene, acquisition, scan.outside, scan.tissues
    )


def _generator(seed: int, number: int, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(int(seed), int(number), purpose)))


def _shape(array: NDArray[np.int16]) -> tuple[int, int, int]:
    return (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    case: int
    profile: str
    base: Path | None = None


@functools.lru_cache(maxsize=1)
def _base(path: Path) -> BaseHead:
    """The base head of this process."""
    return load_base(path)


def _write_case(job: _Job) -> dict[str, str]:
    """Make and write one case; returns its line of cases.csv."""
    from headctssl.dataset.image_io import write_nifti

    base = None if job.base is None else _base(job.base)
    case = make_case(job.seed, job.profile, case=job.case, allow_shear=True, base=base)
    case_id = f"phantom_{job.case:04d}"
    hu = case.volume.hu
    if case.outside is not None:
        hu[:, case.outside] = case.acquisition.padding_hu
    write_nifti(job.folder / "images" / f"{case_id}.nii.gz", case.volume)
    marks = replace(case.volume, hu=case.segmentation.astype(np.int16))
    write_nifti(job.folder / "segmentations" / f"{case_id}.nii.gz", marks)
    subject, session = subject_of(job.seed, job.case)
    row = {
        "case_id": case_id,
        "image": f"images/{case_id}.nii.gz",
        "subject_id": f"subject_{subject:04d}",
        "session_id": str(session),
        "modality": "CT",
        "segmentation": f"segmentations/{case_id}.nii.gz",
        "kvp": str(case.acquisition.kvp),
        "contrast": str(int(case.scene.anatomy.contrast)),
        "convolution_kernel": "bone" if case.acquisition.sharp else "soft",
        "slice_thickness_mm": f"{case.acquisition.thickness_mm:g}",
        "gantry_tilt_deg": f"{case.acquisition.tilt_deg:g}",
    }
    row.update({spec.name: str(case.labels[spec.name]) for spec in find_profile(job.profile).labels})
    volumes = {f.kind: f.volume_ml for f in case.scene.findings}
    for kind in find_profile(job.profile).findings:
        if kind != "Fracture":
            row[f"{kind.lower()}_ml"] = f"{volumes.get(kind, 0.0):.2f}"
    row["midline_shift_mm"] = f"{case.scene.midline_mm:.1f}"
    row["midline_shift_grade"] = ("none", "below_5mm", "from_5mm")[
        sum(abs(case.scene.midline_mm) >= t for t in (0.5, 5))
    ]
    row["mass_effect_mm"] = f"{mass_effect_mm(case.scene):.1f}"
    return row


def make_phantom(
    dataset_id: int,
    n: int = 60,
    seed: int = 0,
    profile: str = "clinical",
    name: str | None = None,
    num_workers: int | None = None,
    quiet: bool = False,
    overwrite: bool = False,
    base: Path | None = None,
) -> Path:
    """Write a raw dataset of synthetic labelled head CTs.

    Case i is a function of (seed, i, profile): neither `n` nor `num_workers` changes it.

    Args:
        dataset_id: number of the dataset.
        n: number of scans.
        seed: seed of everything.
        profile: `clinical` (sizes and slice thickness of practice) or `laptop` (coarse, small, quick).
        name: name of the dataset; `Phantom` when None.
        num_workers: processes; one per core when None.
        quiet: print nothing.
        overwrite: replace an existing dataset of this number.
        base: a real head CT that every subject is a variation of, instead of a parametric head. The scans then show
            that patient: they are as confidential as the image.

    Returns:
        The dataset's folder.

    Raises:
        UsageError: the number is taken, the profile unknown, `n` below 1, or the data root unset.
        DataError: the base cannot be read, or is no head with a closed skull.
    """
    import pandas as pd

    from headctssl.contract import SegmentationClass
    from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
    from headctssl.dataset.parallel import map_items

    chosen = find_profile(profile)
    if n < 1:
        raise UsageError("A phantom dataset needs cases.", got=f"n = {n}", expected="1 or more", do="Give -n.")
    if base is not None:
        base = Path(base).absolute()
        _base(base)  # before an existing dataset is removed
    folder = _claim(dataset_id, name or "Phantom", overwrite)
    jobs = [_Job(folder, seed, case, profile, base) for case in range(1, n + 1)]
    say(f"Making {n} synthetic scans, profile {profile}, seed {seed}", quiet=quiet)
    rows: dict[int, dict[str, str]] = {}
    for position, result in progress(map_items(_write_case, jobs, num_workers), "scans", n, quiet=quiet):
        if isinstance(result, HeadCTSSLError):
            raise result
        rows[position] = result
    info = DatasetInfo(
        name=name or "Phantom",
        description=f"{n} synthetic head CTs made by headct_make_phantom, seed {seed}. "
        + ("No patient is in it." if base is None else "All are variations of one real head."),
        licence="CC0-1.0" if base is None else "that of the image they were made from",
        profile="laptop" if profile == "laptop" else "clinical",
        labels=chosen.labels,
        segmentation_classes=tuple(SegmentationClass(name=kind, value=FINDING_IDS[kind]) for kind in chosen.findings),
    )
    table = pd.DataFrame([rows[i] for i in range(n)], dtype=str)
    files = write_raw_dataset(folder, info, table)
    counts = ", ".join(f"{spec.name} {(table[spec.name] == '1').sum()}" for spec in chosen.labels)
    say(f"{n} scans of {table['subject_id'].nunique()} subjects; positive: {counts}", quiet=quiet)
    name_files([*files, folder / "images", folder / "segmentations"], quiet=quiet)
    return folder


def _claim(dataset_id: int, name: str, overwrite: bool) -> Path:
    """The folder to write to, empty."""
    root = data_root("raw")
    folder = root / dataset_folder_name(dataset_id, name)
    existing = find_dataset(dataset_id, ("raw",))
    if existing is not None and not overwrite:
        raise UsageError(
            f"Dataset {dataset_id} exists already.",
            got=root / existing,
            expected="a number that no raw dataset has",
            do="Choose another number, or give --overwrite to replace it.",
        )
    if existing is not None:
        foreign = [
            p.name for p in (root / existing).glob("images/*") if not p.name.startswith(("phantom_", ".phantom_"))
        ]
        if foreign or not (root / existing / "images").is_dir():
            raise UsageError(
                f"Dataset {dataset_id} was not made by this command and is not replaced.",
                got=f"{existing} with {foreign[0] if foreign else 'no images'}",
                expected="a dataset of images/phantom_NNNN.nii.gz",
                do="Choose another number, or remove the dataset yourself.",
            )
        shutil.rmtree(root / existing)
    (folder / "images").mkdir(parents=True)
    (folder / "segmentations").mkdir()
    return folder
