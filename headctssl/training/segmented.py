"""Segmented: the cases of a run that have a segmentation, and the classes of all its datasets by name."""

from __future__ import annotations

from dataclasses import replace

from headctssl.dataset.masks import SEGMENTATION
from headctssl.errors import DataError
from headctssl.preprocessing.index import CaseIndex, mask_path
from headctssl.training.pretrain_data import PretrainData
from headctssl.volume.mask_store import StoredLabels

__all__ = ["only_segmented"]


def only_segmented(data: PretrainData) -> PretrainData:
    """The cases with a segmentation, and the union of their datasets' classes.

    Classes are the same when their names are; a class that a dataset does not name is unknown there,
    whatever its voxels show. Other cases would add nothing to a loss on classes.

    Args:
        data: the cases a run may train on.

    Raises:
        DataError: no case has a stored segmentation, or a dataset does not say what its values mean.
    """
    indexes = tuple(
        index.subset([row.case_id for row in index.rows if SEGMENTATION in row.masks]) for index in data.indexes
    )
    left_out = list(data.left_out)
    classes: dict[str, None] = {}
    for plans, index, found in zip(data.plans, data.indexes, indexes, strict=True):
        if len(found) < len(index):
            left_out.append(f"{len(index) - len(found)} cases of {plans.dataset_name} have no stored segmentation")
        if len(found):
            classes.update(dict.fromkeys(_names(plans.dataset_name, plans.dataset_id, found)))
    if not classes:
        raise DataError(
            "No case has a segmentation to learn from.",
            got="; ".join(left_out),
            expected="a column 'segmentation' in cases.csv, and segmentation_classes in dataset.json",
            do="Add them and run headct_plan_and_preprocess with --replan, or choose a method that needs none.",
        )
    return replace(data, indexes=indexes, left_out=tuple(left_out), classes=tuple(classes))


def _names(dataset_name: str, dataset_id: int, index: CaseIndex) -> list[str]:
    """The classes of one dataset: all its label maps were stored with the same ones."""
    meta = StoredLabels(mask_path(index.folder, index.case_ids[0], SEGMENTATION)).meta
    if meta is None or not meta.classes:
        raise DataError(
            f"{dataset_name} does not say what the values of its segmentations mean.",
            got="dataset.json without segmentation_classes",
            expected="for example {'segmentation_classes': {'IPH': 1, 'SDH': 2}}",
            do=f"Add them to dataset.json and run headct_plan_and_preprocess -d {dataset_id}.",
        )
    return [spec.name for spec in meta.classes]
