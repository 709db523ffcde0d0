"""Verify: every fault of a raw dataset at once, by case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from headctssl.console import progress, say
from headctssl.contract import LabelSpec, SegmentationClass
from headctssl.dataset.image_io import find_images, read
from headctssl.dataset.intensity import noted_fault
from headctssl.dataset.manifest import DatasetInfo, cases_from_images
from headctssl.dataset.masks import SEGMENTATION, read_mask
from headctssl.dataset.overlap import contradicting_labels, repeated_images, shared_with_others, voxel_digest
from headctssl.dataset.parallel import map_items
from headctssl.dataset.table import PATH_COLUMNS, STANDARD_COLUMNS, Fault, read_table
from headctssl.dataset.table_faults import table_faults
from headctssl.errors import HeadCTSSLError
from headctssl.paths import raw_dataset
from headctssl.settings import read_json

__all__ = ["Fault", "VerifyReport", "verify_dataset"]


@dataclass(frozen=True)
class VerifyReport:
    """What verification found."""

    dataset_name: str
    num_cases: int
    faults: tuple[Fault, ...]  # what must be corrected
    remarks: tuple[str, ...]  # what is worth knowing and no fault

    @property
    def exit_code(self) -> int:
        """0 without faults, 1 when some cases are good, 2 when the dataset itself or every case is faulty."""
        faulty = {fault.case_id for fault in self.faults}
        if not faulty:
            return 0
        return 2 if "" in faulty or len(faulty) >= self.num_cases else 1


def verify_dataset(dataset_id: int, *, num_workers: int | None = None, quiet: bool = False) -> VerifyReport:
    """Find every fault of a raw dataset: its two files, and every image, read in full.

    Also: images that are there twice, images and patients that another dataset of the raw data root has too,
    and labels that contradict each other within a session.

    Args:
        dataset_id: number of the dataset.
        num_workers: processes; None = one per core.
        quiet: print nothing.

    Returns:
        Faults by case, and remarks.

    Raises:
        UsageError: there is no such dataset.
    """
    folder = raw_dataset(dataset_id)
    faults: list[Fault] = []
    remarks: list[str] = []
    info = _info(folder, faults)
    cases = _cases(folder, faults)
    if info is not None and info.synthetic:
        remarks.append(
            f"dataset.json says profile '{info.profile}': reports call these scans synthetic, and runs on them are "
            "kept short. Take the line out if patients were scanned."
        )
    if cases is not None:
        labels = info.labels if info is not None else ()
        faults += table_faults(cases, labels)
        remarks += _column_remarks(cases, labels)
        if {"case_id", "image"} <= set(cases.columns):
            classes = info.segmentation_classes if info is not None else ()
            remarks += _segmentation_remarks(cases, classes)
            digests = _check_images(folder, cases, classes, faults, remarks, num_workers=num_workers, quiet=quiet)
            faults += [*contradicting_labels(cases, labels), *repeated_images(cases, digests)]
            leaks, shared = shared_with_others(folder, cases)
            faults, remarks = faults + leaks, remarks + shared
    number = 0 if cases is None else len(cases)
    report = VerifyReport(folder.name, number, tuple(_by_case(faults)), tuple(remarks))
    _print(report, quiet=quiet)
    return report


def _from_error(error: HeadCTSSLError, case_id: str = "") -> Fault:
    return Fault(case_id, error.what, error.got or "", error.expected or "", error.do or "")


def _info(folder: Path, faults: list[Fault]) -> DatasetInfo | None:
    try:
        info = read_json(folder / "dataset.json", DatasetInfo, do="headctssl_raw_template shows a complete one.")
    except HeadCTSSLError as error:
        faults.append(_from_error(error))
        return None
    if info.modality != "CT":
        faults.append(Fault("", "the modality is not supported.", info.modality, "CT", "Only CT is supported yet."))
    return info


def _cases(folder: Path, faults: list[Fault]) -> pd.DataFrame | None:
    try:
        table = folder / "cases.csv"
        cases = read_table(table) if table.exists() else cases_from_images(folder)
    except HeadCTSSLError as error:
        faults.append(_from_error(error))
        return None
    if cases.empty:
        faults.append(Fault("", "the dataset has no cases.", "none", "at least one", "Add cases with headct_convert."))
    return cases


def _column_remarks(cases: pd.DataFrame, labels: tuple[LabelSpec, ...]) -> list[str]:
    known = {*STANDARD_COLUMNS, *(spec.name for spec in labels)}
    free = [name for name in cases.columns if name not in known]
    remarks = [f"Columns kept as free metadata, used as neither label nor setting: {', '.join(free)}."] if free else []
    for spec in labels:
        if spec.name in cases.columns:
            known_cells = int((cases[spec.name] != "").sum())
            remarks.append(f"Label '{spec.name}': known for {known_cells} of {len(cases)} cases.")
    return remarks


def _segmentation_remarks(cases: pd.DataFrame, classes: tuple[SegmentationClass, ...]) -> list[str]:
    filled = int((cases[SEGMENTATION] != "").sum()) if SEGMENTATION in cases.columns else 0
    if not filled:
        return []
    if not classes:
        return [
            f"{filled} cases have a segmentation, but dataset.json has no segmentation_classes: nobody knows what its"
            " values mean, and the method 'supervised' cannot use it."
        ]
    names = ", ".join(f"{spec.value} = {spec.name}" for spec in classes)
    return [f"Segmentation: {filled} of {len(cases)} cases, classes {names}."]


@dataclass(frozen=True)
class _Item:
    """One case to read."""

    case_id: str
    image: Path
    masks: list[tuple[str, Path]]  # (column, file)
    classes: tuple[SegmentationClass, ...]


def _check_images(
    folder: Path,
    cases: pd.DataFrame,
    classes: tuple[SegmentationClass, ...],
    faults: list[Fault],
    remarks: list[str],
    *,
    num_workers: int | None,
    quiet: bool,
) -> dict[str, str]:
    """Read every image and mask; the digests of the voxels by case id."""
    items: list[_Item] = []
    digests: dict[str, str] = {}
    masks: dict[str, list[tuple[str, Path]]] = {}
    for column in PATH_COLUMNS:
        if column not in cases.columns:
            continue
        for case_id, text in zip(cases["case_id"], cases[column], strict=True):
            if text == "":
                continue
            if not (folder / text).exists():
                faults.append(
                    Fault(
                        str(case_id),
                        f"the file of '{column}' does not exist.",
                        got=str(text),
                        expected="a file or a DICOM folder at this path",
                        do="Put it there, or correct the path; upper and lower case matter.",
                    )
                )
            elif column == "image":
                items.append(_Item(str(case_id), folder / text, masks.setdefault(str(case_id), []), classes))
            else:
                masks.setdefault(str(case_id), []).append((column, folder / text))
    results = progress(map_items(_check_image, items, num_workers), "verified", len(items), quiet=quiet)
    for position, result in results:
        case_id = items[position].case_id
        if isinstance(result, HeadCTSSLError):
            faults.append(_from_error(result, case_id))
        else:
            faults += result.faults
            remarks += result.remarks
            digests[case_id] = result.digest
    listed = {(folder / str(text)).resolve() for text in cases["image"] if text}
    extra = [p for p in find_images(folder / "images") if p.resolve() not in listed]
    if extra:
        names = ", ".join(p.name for p in extra[:5]) + (" ..." if len(extra) > 5 else "")
        remarks.append(f"{len(extra)} images under images/ are in no line of cases.csv: {names}.")
    return digests


@dataclass(frozen=True)
class _Checked:
    """What reading one case found."""

    faults: list[Fault]
    remarks: list[str]
    digest: str  # of the voxels


def _check_image(item: _Item) -> _Checked:
    """Read one image and its masks in full."""
    case_id = item.case_id
    volume = read(item.image)
    fault = noted_fault(volume.info.notes)
    faults = []
    if fault is not None:
        faults.append(
            Fault(
                case_id,
                "its values are not, or may not be, Hounsfield units.",
                got=fault.text,
                expected="air near -1000 HU, water near 0",
                do="Export it with its rescaling applied; nothing is repaired silently.",
            )
        )
    for name, path in item.masks:
        try:
            read_mask(name, path, volume, item.classes)
        except HeadCTSSLError as error:
            faults.append(_from_error(error, case_id))
    told = [note for note in volume.info.notes if fault is None or note != fault.text]
    return _Checked(faults, [f"Case '{case_id}': {note}" for note in told], voxel_digest(volume))


def _by_case(faults: list[Fault]) -> list[Fault]:
    """Faults of the dataset first, then by case; the order within one is kept."""
    return sorted(faults, key=lambda fault: fault.case_id)


def _print(report: VerifyReport, *, quiet: bool) -> None:
    for fault in report.faults:
        where = f"case '{fault.case_id}'" if fault.case_id else report.dataset_name
        say(f"{where}: {fault.what}", quiet=quiet)
        for name, text in (("got", fault.got), ("expected", fault.expected), ("do", fault.do)):
            if text:
                say(f"    {name + ':':<10}{text}", quiet=quiet)
    for remark in report.remarks:
        say(f"note: {remark}", quiet=quiet)
    faulty = len({fault.case_id for fault in report.faults} - {""})
    say(f"{report.dataset_name}: {report.num_cases} cases, {len(report.faults)} faults in {faulty} cases.", quiet=quiet)
