"""CT-ICH: 75 head CTs of PhysioNet with the bleeds of every slice and their masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from headctssl.contract import LabelSpec
from headctssl.dataset.image_io import find_images, stem
from headctssl.ingest.converters.cells import age_cell, any_of, binary_cell, sex_cell
from headctssl.ingest.converters.source_files import find_named, identified, layout_error, lines_of
from headctssl.ingest.scan import Found, Scan

__all__ = ["LABELS", "find_scans"]

_BLEEDS = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")
LABELS = tuple(LabelSpec(name=name, mirror="self") for name in (*_BLEEDS, "Hemorrhage", "Fracture"))
"""The five kinds of bleed, any of them, and a fracture of the skull."""

_FRACTURE = "Fracture_Yes_No"
_MASK_CLASS = "hemorrhage"


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every scan of `ct_scans/`, with its mask and the labels of its patient.

    A label is 1 when any slice of `hemorrhage_diagnosis_raw_ct.csv` has it and 0 when all are known
    not to; `Hemorrhage` is any of the five kinds. The masks (0 and 255) become the class `hemorrhage`.

    Args:
        source: the folder with `ct_scans/049.nii`, `masks/049.nii`, the table of slices and
            `Patient_demographics.csv`. Each but `ct_scans` may be missing.
        num_workers: processes that read the files; None = one per core.
        quiet: print no progress.

    Raises:
        DataError: there is no `ct_scans`, or a table has another layout or an unknown value.
    """
    folder = source / "ct_scans"
    if not folder.is_dir():
        raise layout_error(
            source, "ct_ich", "ct_scans/, masks/, hemorrhage_diagnosis_raw_ct.csv, Patient_demographics.csv"
        )
    slices = find_named(source, "hemorrhage_diagnosis_raw_ct.csv", depth=0)
    people = find_named(source, "Patient_demographics.csv", depth=0)
    labels = _labels(slices) if slices else {}
    facts = _demographics(people) if people else {}
    masks = {stem(path): path for path in find_images(source / "masks")} if (source / "masks").is_dir() else {}
    images = find_images(folder)
    scans = [_scan(source, image, masks, labels, facts) for image in images]
    result = identified(scans, num_workers, quiet=quiet)
    numbers = {_number(stem(image)) for image in images}
    remarks = ["A scan has a label when any of its slices has it."] if slices else ["The scans have no labels."]
    if without := len(labels.keys() - numbers):
        remarks.append(f"{without} patients of the table of slices have no scan: the data of some are not public.")
    return Found(
        result.scans,
        rejected=result.rejected,
        labels=LABELS if slices else (),
        segmentation_classes=((_MASK_CLASS, 1),) if masks else (),
        licence="PhysioNet Restricted Health Data License 1.5.0",
        reference="Hssayeni et al., Data 2020; 5(1): 14, doi:10.3390/data5010014; PhysioNet, doi:10.13026/4nae-zg36",
        remarks=(*remarks, *result.remarks),
    )


def _scan(
    source: Path,
    image: Path,
    masks: Mapping[str, Path],
    labels: Mapping[str, Mapping[str, str]],
    facts: Mapping[str, Mapping[str, str]],
) -> Scan:
    name = stem(image)
    number = _number(name)
    mask = masks.get(name)
    columns = {**facts.get(number, {}), **labels.get(number, {})}
    return Scan(
        source=image.relative_to(source).as_posix(),
        path=image,
        identity="",
        subject=f"ct-ich-{number}",
        columns=tuple((key, value) for key, value in columns.items() if value),
        masks=(("segmentation", mask),) if mask else (),
        mask_rules=(("segmentation", "nonzero"),) if mask else (),
    )


def _number(text: str) -> str:
    """`049`, `49`, `49.0` as `49`; '' when it is no number."""
    whole = text.strip().removesuffix(".0")
    return str(int(whole)) if whole.isdecimal() else ""


def _labels(table: Path) -> dict[str, dict[str, str]]:
    slices: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in lines_of(table, ("PatientNumber", "SliceNumber", *_BLEEDS, _FRACTURE)):
        number = _number(row["PatientNumber"])
        if not number:  # trailing lines of commas
            continue
        where = f"patient {number} slice {row['SliceNumber']} of {table.name}"
        cells = {name: binary_cell(row[name], f"{name} of {where}") for name in _BLEEDS}
        for name, cell in cells.items():
            slices[number][name].append(cell)
        slices[number]["Hemorrhage"].append(any_of(cells.values()))
        slices[number]["Fracture"].append(binary_cell(row[_FRACTURE], f"{_FRACTURE} of {where}"))
    return {number: {name: any_of(cells) for name, cells in of.items()} for number, of in slices.items()}


def _demographics(table: Path) -> dict[str, dict[str, str]]:
    """Age and sex by patient. The header has two lines, and a name may have a line break in it: `Age\\n(years)`."""
    found: dict[str, dict[str, str]] = {}
    for row in lines_of(table):
        cells = {" ".join(name.lower().split()): text for name, text in row.items()}
        number = _number(cells.get("patient number", ""))
        if number:  # the second line of the header has none
            age = next((text for name, text in cells.items() if name.startswith("age")), "")
            found[number] = {"age": age_cell(age), "sex": sex_cell(cells.get("gender", ""))}
    return found
