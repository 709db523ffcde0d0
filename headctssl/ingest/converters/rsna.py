"""RSNA: slices of the 2019 challenge on intracranial hemorrhage become volumes with the labels of their slices."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path

from headctssl.contract import LabelSpec
from headctssl.errors import DataError
from headctssl.ingest.converters.cells import any_of, binary_cell
from headctssl.ingest.converters.source_files import find_named, layout_error, lines_of
from headctssl.ingest.dicom import find_scans as find_dicom
from headctssl.ingest.scan import Found, Scan

__all__ = ["LABELS", "find_scans"]

_NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
LABELS = tuple(LabelSpec(name=name, mirror="self") for name in _NAMES)
"""The six labels of the challenge; `any` is any kind of bleed."""

_TABLES = ("stage_2_train.csv", "stage_1_train.csv")
_CODES = {"": 0, "0": 1, "1": 2}
_CELLS = ("", "0", "1")


@dataclass
class _Slices:
    """Labels of slices: a number per slice and one byte per label, for there are 750,000 slices."""

    rows: dict[str, int] = field(default_factory=dict)  # slice -> row
    codes: array[int] = field(default_factory=lambda: array("B"))  # rows x labels, position in _CELLS
    contradictions: int = 0

    def add(self, name: str, label: int, cell: str) -> None:
        """Enter one line. Lines of one slice and label that differ count as positive, and are counted."""
        row = self.rows.setdefault(name, len(self.rows))
        if len(self.codes) < (row + 1) * len(_NAMES):
            self.codes.extend([0] * len(_NAMES))
        place, code = row * len(_NAMES) + label, _CODES[cell]
        self.contradictions += {self.codes[place], code} == {1, 2}
        self.codes[place] = max(self.codes[place], code)

    def cells(self, name: str) -> list[str]:
        """The labels of a slice, '' = unknown."""
        row = self.rows.get(name)
        if row is None:
            return [""] * len(_NAMES)
        return [_CELLS[code] for code in self.codes[row * len(_NAMES) : (row + 1) * len(_NAMES)]]


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every series of the challenge as a scan; slices are grouped by SeriesInstanceUID.

    A series has a label when any of its slices has it, has not when all its slices are known not to,
    and is unknown otherwise, as are the series of the test set, whose labels are not public.

    Args:
        source: the folder of the challenge with `stage_2_train.csv` and the folders of `ID_*.dcm`, or one of
            these folders with the table beside it. Without the table the scans have no labels.
        num_workers: processes that read headers; None = one per core where there are files enough.
        quiet: print no progress.

    Raises:
        DataError: `source` is a file, or the table has another layout or an unknown value.
    """
    if not source.is_dir():
        raise layout_error(source, "rsna", "the folder with stage_2_train.csv and the folders of ID_*.dcm")
    table = _table(source)
    slices = _read(table) if table else _Slices()
    found = find_dicom(source, num_workers, quiet=quiet)
    return replace(
        found,
        scans=tuple(_labelled(scan, slices, labelled=table is not None) for scan in found.scans),
        labels=LABELS if table else (),
        licence="RSNA terms: non-commercial use, academic research and education",
        reference="Flanders et al., Radiology: Artificial Intelligence 2020; 2: e190211, doi:10.1148/ryai.2020190211",
        remarks=(*found.remarks, *_remarks(table, slices, found)),
    )


def _table(source: Path) -> Path | None:
    beside = [source.absolute().parent / name for name in _TABLES]
    inside = (find_named(source, name, depth=0) for name in _TABLES)
    return next((path for path in inside if path), next((path for path in beside if path.is_file()), None))


def _read(table: Path) -> _Slices:
    """Lines `ID_<slice>_<label>,<0 or 1>`."""
    slices = _Slices()
    labels = {name: position for position, name in enumerate(_NAMES)}
    for line in lines_of(table, ("ID", "Label")):
        name, _, label = line["ID"].rpartition("_")
        if label not in labels:
            raise DataError(
                f"{table.name}: '{line['ID']}' names no label of the challenge.",
                got=repr(label),
                expected=", ".join(_NAMES),
                do="Use the table as it is published.",
            )
        slices.add(name, labels[label], binary_cell(line["Label"], line["ID"]))
    return slices


def _labelled(scan: Scan, slices: _Slices, *, labelled: bool) -> Scan:
    folder = scan.path.absolute().name  # also where the source is `.`
    cells = [("rsna_folder", folder)] if folder.startswith("stage_") else []
    if labelled:
        parts = [slices.cells(file.stem) for file in scan.files]
        cells += [(name, any_of(part[k] for part in parts)) for k, name in enumerate(_NAMES)]
    return replace(scan, columns=(*scan.columns, *cells))


def _remarks(table: Path | None, slices: _Slices, found: Found) -> list[str]:
    if table is None:
        return ["There is no stage_2_train.csv: the scans have no labels."]
    used = sum(file.stem in slices.rows for scan in found.scans for file in scan.files)
    remarks = ["A series has a label when any of its slices has it."]
    if slices.contradictions:
        remarks.append(f"{slices.contradictions} lines of {table.name} contradict each other; they count as positive.")
    if used < len(slices.rows):
        remarks.append(f"{len(slices.rows) - used} slices of {table.name} are in no series.")
    return remarks
