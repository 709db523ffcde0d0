"""Manifest: dataset.json and cases.csv, the two files that describe a raw dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, field_serializer, field_validator, model_validator

from headctssl.contract import LabelSpec, SegmentationClass
from headctssl.dataset.table import (
    STANDARD_COLUMNS,
    Fault,
    is_safe_case_id,
    label_value,
    read_table,
    write_table,
)
from headctssl.dataset.table_faults import label_faults, table_faults
from headctssl.errors import DataError, unknown_name
from headctssl.paths import atomic_path, raw_dataset
from headctssl.settings import JsonValue, Settings, read_json, write_json

__all__ = [
    "DatasetInfo",
    "RawDataset",
    "cases_from_images",
    "load_raw_dataset",
    "open_raw_dataset",
    "write_raw_dataset",
]

_NEEDS_CLASSES = ("multiclass", "ordinal")
_WHO_HAS_CLASSES = "only multiclass and ordinal labels have any"


class DatasetInfo(Settings):
    """dataset.json of a raw dataset."""

    format: Literal[1] = 1
    name: str = Field(description="Name in words.")
    description: str = Field("", description="What the scans are and where they come from.")
    licence: str = Field("", description="Licence of the data.")
    reference: str = Field("", description="Paper or address to cite.")
    modality: str = Field("CT", description="Modality; only CT is supported.")
    profile: Literal["real", "clinical", "laptop", "template"] = Field(
        "real", description="All but 'real' are phantoms and templates, whose runs are kept under 10 minutes."
    )
    labels: tuple[LabelSpec, ...] = Field((), description="Labels by name; columns of cases.csv.")
    segmentation_classes: tuple[SegmentationClass, ...] = Field(
        (), description="What the values of the label maps in the column `segmentation` mean, {name: value}."
    )

    @property
    def synthetic(self) -> bool:
        """Whether nobody was scanned for them: phantoms and templates say so by their profile, whatever their name."""
        return self.profile != "real"

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_from_mapping(cls, value: object) -> object:
        """Turn {name: {type, classes, laterality}} of the file into a tuple of specifications."""
        if not isinstance(value, Mapping):
            return value
        return tuple(_spec(str(name), entry) for name, entry in value.items())

    @field_serializer("labels")
    def _labels_to_mapping(self, labels: tuple[LabelSpec, ...]) -> dict[str, Any]:
        """Write labels as {name: {...}}."""
        return {spec.name: _entry(spec) for spec in labels}

    @field_validator("segmentation_classes", mode="before")
    @classmethod
    def _classes_from_mapping(cls, value: object) -> object:
        """Turn {name: value} of the file into a tuple of specifications."""
        if not isinstance(value, Mapping):
            return value
        return tuple({"name": str(name), "value": number} for name, number in value.items())

    @field_serializer("segmentation_classes")
    def _classes_to_mapping(self, classes: tuple[SegmentationClass, ...]) -> dict[str, int]:
        """Write classes as {name: value}."""
        return {spec.name: spec.value for spec in classes}

    @model_validator(mode="after")
    def _consistent(self) -> DatasetInfo:
        names = [spec.name for spec in self.labels]
        for what in ("name", "value"):
            used = [getattr(spec, what) for spec in self.segmentation_classes]
            if len(set(used)) < len(used):
                raise ValueError(f"two segmentation classes have one {what}: {used}")
        columns = [column for spec in self.labels for column in {spec.name, *spec.columns}]
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise ValueError(f"predictions of two labels or classes would have one column: {', '.join(twice)}")
        for spec in self.labels:
            if spec.name in STANDARD_COLUMNS:
                raise ValueError(f"the label '{spec.name}' has the name of a standard column")
            if spec.type in _NEEDS_CLASSES and len(spec.classes) < 2:
                raise ValueError(f"the {spec.type} label '{spec.name}' needs 'classes', at least two")
            if spec.type not in _NEEDS_CLASSES and spec.classes:
                raise ValueError(f"the {spec.type} label '{spec.name}' has 'classes': {_WHO_HAS_CLASSES}")
            if spec.mirror is not None and spec.mirror != "self" and spec.mirror not in names:
                raise ValueError(f"the label '{spec.name}' has the mirror '{spec.mirror}', which is not a label")
        return self


def _spec(name: str, entry: object) -> LabelSpec:
    if not isinstance(entry, Mapping):
        raise ValueError(f"the label '{name}' must be an object such as {{'type': 'binary'}}")
    unknown = set(entry) - {"type", "classes", "laterality"}
    if unknown:
        raise ValueError(f"the label '{name}' has unknown keys {sorted(unknown)}; known: type, classes, laterality")
    laterality = entry.get("laterality")
    mirror: object = laterality
    if isinstance(laterality, Mapping):
        if set(laterality) != {"mirror"}:
            raise ValueError(f"laterality of '{name}' must be 'self' or {{'mirror': OTHER_LABEL}}")
        mirror = laterality["mirror"]
    elif laterality not in (None, "self"):
        raise ValueError(f"laterality of '{name}' must be 'self' or {{'mirror': OTHER_LABEL}}")
    return LabelSpec.model_validate(
        {
            "name": name,
            "type": entry.get("type", "binary"),
            "classes": tuple(entry.get("classes", ())),
            "mirror": mirror,
        }
    )


def _entry(spec: LabelSpec) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {"type": spec.type}
    if spec.classes:
        entry["classes"] = list(spec.classes)
    if spec.mirror is not None:
        entry["laterality"] = "self" if spec.mirror == "self" else {"mirror": spec.mirror}
    return entry


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset: its description and its cases.

    `cases` is a frame of str with at least `case_id`, `image` and `subject_id`, '' = unknown. A case
    without a subject is its own: its `subject_id` is its `case_id`.
    """

    dataset_id: int
    folder: Path
    info: DatasetInfo
    cases: pd.DataFrame

    @property
    def case_ids(self) -> list[str]:
        """The case ids in the order of the file."""
        return [str(value) for value in self.cases["case_id"].tolist()]

    def image_path(self, case_id: str) -> Path:
        """The image of a case.

        Raises:
            UsageError: no case has this id.
        """
        row = self.cases.loc[self.cases["case_id"] == case_id, "image"]
        if row.empty:
            raise unknown_name("case", case_id, self.case_ids)
        return self.folder / str(row.iloc[0])

    def sessions(self) -> dict[str, str]:
        """Session id by case id, '' = unknown."""
        cells = self.cases["session_id"].tolist() if "session_id" in self.cases.columns else [""] * len(self.cases)
        return dict(zip(self.case_ids, map(str, cells), strict=True))

    def labels(self) -> pd.DataFrame:
        """Labels as numbers.

        Returns:
            float64, index case_id, one column per label in the order of dataset.json; NaN = unknown;
            multiclass and ordinal: the position of the class.

        Raises:
            DataError: a label has no column, or a cell is not one of its values; the case is named.
        """
        faults = list(label_faults(self.cases, self.info.labels))
        if faults:
            raise faults[0].to_error(len(faults) - 1)
        columns = {}
        for spec in self.info.labels:
            cells = self.cases[spec.name].tolist()
            values = {cell: label_value(spec, str(cell)) for cell in set(cells)}
            columns[spec.name] = [values[cell] for cell in cells]
        return pd.DataFrame(columns, index=pd.Index(self.case_ids, name="case_id"), dtype="float64")


def load_raw_dataset(dataset_id: int) -> RawDataset:
    """Load `$headctssl_raw/DatasetNNN_Name`.

    Args:
        dataset_id: the number of the dataset.

    Raises:
        UsageError: there is no such dataset.
        DataError: dataset.json or cases.csv cannot be used; the first fault is told and how many
            more there are. Missing label columns and wrong label values are told by `labels()`.
    """
    return open_raw_dataset(raw_dataset(dataset_id), dataset_id)


def open_raw_dataset(folder: Path, dataset_id: int) -> RawDataset:
    """Load a raw dataset from its folder; the same as `load_raw_dataset` otherwise.

    Args:
        folder: the folder that holds dataset.json.
        dataset_id: the number to give it.
    """
    info = read_json(
        folder / "dataset.json",
        DatasetInfo,
        do="headctssl_raw_template shows a complete one; its README explains every field.",
    )
    if info.modality != "CT":
        raise DataError(
            f"{folder.name} is not a CT dataset.",
            got=f"modality '{info.modality}'",
            expected="CT",
            do="Other modalities are not supported yet.",
        )
    table = folder / "cases.csv"
    cases = read_table(table) if table.exists() else cases_from_images(folder)
    faults = list(table_faults(cases, ()))
    if faults:
        raise faults[0].to_error(len(faults) - 1)
    if cases.empty:
        raise DataError(
            f"{folder.name} has no cases.",
            got="no line in cases.csv" if table.exists() else "no image under images/",
            expected="at least one case",
            do="Add cases with headct_convert, or put images under images/.",
        )
    cases = cases.copy()
    subjects = cases["subject_id"] if "subject_id" in cases.columns else pd.Series([""] * len(cases), dtype=str)
    cases["subject_id"] = subjects.where(subjects != "", cases["case_id"])
    return RawDataset(dataset_id, folder, info, cases)


def cases_from_images(folder: Path) -> pd.DataFrame:
    """Every image under images/ as a case and its own subject; the id is its path without suffix."""
    # Imported here: only datasets without cases.csv need the readers' module.
    from headctssl.dataset.image_io import find_images, stem

    rows = []
    for image in find_images(folder / "images"):
        relative = image.relative_to(folder / "images")
        case_id = "__".join((*relative.parts[:-1], stem(image)))
        if not is_safe_case_id(case_id):
            raise Fault(
                "",
                "A file name cannot be a case id.",
                got=str(relative),
                expected="letters, digits, '_', '.', '-'",
                do="Rename the file, or write cases.csv with a case_id for each image.",
            ).to_error()
        rows.append((case_id, f"images/{relative.as_posix()}"))
    return pd.DataFrame(rows, columns=["case_id", "image"], dtype=str)


def write_raw_dataset(folder: Path, info: DatasetInfo, cases: pd.DataFrame) -> tuple[Path, Path]:
    """Write dataset.json and cases.csv, each atomically.

    Args:
        folder: the dataset's folder, made when missing.
        info: the description.
        cases: frame of str with at least case_id and image; '' = unknown.

    Returns:
        The two files.

    Raises:
        DataError: the table has a fault (the first one is told).
    """
    faults = list(table_faults(cases, info.labels))
    if faults:
        raise faults[0].to_error(len(faults) - 1)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "cases.csv") as temporary:
        write_table(temporary, cases)
    # Last: a folder with dataset.json and no table would pass for one in which every image is a case.
    write_json(folder / "dataset.json", info)
    return folder / "dataset.json", folder / "cases.csv"
