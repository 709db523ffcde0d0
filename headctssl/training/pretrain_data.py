"""Pretrain data: the plans and stored cases of one or several datasets that are for training or validation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from headctssl.contract import StorageRule, Synthetic
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.dataset.where import Where, parse_where
from headctssl.errors import DataError, UsageError
from headctssl.paths import preprocessed_dataset
from headctssl.planning.plans import Plans, load_plans
from headctssl.planning.run_settings import ChosenCases
from headctssl.preprocessing.index import CaseIndex, sources_digest
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.training.probe_cases import Labelled, find_labelled

__all__ = ["PretrainData", "open_pretrain_data"]


@dataclass(frozen=True)
class PretrainData:
    """What a run trains on. Case indices count through all datasets in their order."""

    plans: tuple[Plans, ...]
    indexes: tuple[CaseIndex, ...]
    left_out: tuple[str, ...] = ()  # sentences on stored cases that cannot be trained on
    where: ChosenCases | None = None  # what an expression over the columns of cases.csv picked
    classes: tuple[str, ...] = ()  # of the segmentations, where a method learns from them

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return sum(len(index) for index in self.indexes)

    @property
    def max_shape(self) -> tuple[int, int, int]:
        """Largest stored extent (z, y, x) in voxels, per axis."""
        z, y, x = (max(int(index.shapes[:, axis].max()) for index in self.indexes if len(index)) for axis in range(3))
        return (z, y, x)

    @property
    def max_head_shape(self) -> tuple[int, int, int]:
        """Largest stored head box (z, y, x) in voxels, per axis."""
        sides = (np.diff(index.head_boxes, axis=2)[..., 0].max(axis=0) for index in self.indexes if len(index))
        z, y, x = np.max(list(sides), axis=0).tolist()
        return (z, y, x)

    @property
    def synthetic(self) -> Synthetic:
        """How many of the datasets are synthetic, as dataset.json said when they were planned."""
        kinds = {plans.profile != "real" for plans in self.plans}
        return "some" if len(kinds) > 1 else ("all" if True in kinds else "no")

    @cached_property
    def labelled(self) -> Labelled:
        """The cases by which probes may watch a run on these data; reads the raw datasets' labels."""
        return find_labelled(self.plans, self.indexes)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted SHA-256 sums of all sources, first 16 hex digits; as `CaseIndex.digest`."""
        return sources_digest(self.indexes)


def open_pretrain_data(
    dataset_ids: tuple[int, ...], plans_name: str, pretrain_on: Literal["train", "all"], where: str | None = None
) -> PretrainData:
    """Open the stored cases that a run may train on.

    Args:
        dataset_ids: one or several datasets; the storage rule of the first holds for all, and a dataset that was
            planned with another one is stored once more under it, with the cases that were added since, which is said.
        plans_name: which plans.
        pretrain_on: ``train`` takes the training and validation cases of splits.json: a case that it does not
            know may be another scan of a test subject. ``all`` takes every stored case.
        where: an expression over the columns of the raw cases.csv; only cases it is true of are taken.

    Raises:
        UsageError: a dataset is named twice or unknown; the expression cannot be read, names a column that no
            dataset has, or is true of no case.
        DataError: a dataset was not planned or preprocessed, or no case is left.
    """
    if not dataset_ids or len(set(dataset_ids)) != len(dataset_ids):
        raise UsageError(
            "The list of datasets does not fit.",
            got="-d " + " ".join(str(i) for i in dataset_ids),
            expected="one or several different numbers",
            do="Name every dataset once.",
        )
    plans = tuple(load_plans(dataset_id, plans_name) for dataset_id in dataset_ids)
    # Masks are the dataset's own: what the first one does not have must not be lost in the others.
    stored = tuple(_open(plan, plans[0].storage.with_masks(plan.storage.masks)) for plan in plans)
    indexes, left_out = stored, list[str]()
    if pretrain_on == "train":
        indexes = tuple(_for_training(plan, index, left_out) for plan, index in zip(plans, stored, strict=True))
    if not any(len(index) for index in indexes):
        raise DataError(
            "There is no case to train on.",
            got="; ".join(left_out) or "no stored case outside the test set",
            expected="at least one training or validation case of splits.json",
            do="See preprocessing_report.json and splits.json, or use --pretrain_on all.",
        )
    chosen = None
    if where is not None:
        indexes, chosen = _choose(plans, indexes, parse_where(where))
    return PretrainData(plans, indexes, tuple(left_out), chosen)


def _choose(
    plans: tuple[Plans, ...], indexes: tuple[CaseIndex, ...], where: Where
) -> tuple[tuple[CaseIndex, ...], ChosenCases]:
    """The cases that an expression is true of; a stored case that left the raw dataset has no known cell."""
    tables = [load_raw_dataset(plan.dataset_id).cases for plan in plans]
    where.check(dict.fromkeys(str(name) for table in tables for name in table.columns))
    picked: list[CaseIndex] = []
    for table, index in zip(tables, indexes, strict=True):
        rows = zip(table["case_id"], table.to_dict("records"), strict=True)
        wanted = {str(case_id) for case_id, row in rows if where.matches({str(k): str(v) for k, v in row.items()})}
        picked.append(index.subset(wanted))
    before, after = (sum(len(index) for index in some) for some in (indexes, picked))
    if not after:
        raise UsageError(
            "--where is true of no case.",
            got=where.text,
            expected=f"at least 1 of the {before} cases that this run could train on",
            do="Loosen the expression; an empty cell is unknown, and no comparison is true of it.",
        )
    names = (f"{p.dataset_id}\x1f{name}" for p, index in zip(plans, picked, strict=True) for name in index.case_ids)
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
    return tuple(picked), ChosenCases(expression=where.text, num_cases=after, of_cases=before, digest=digest)


def _open(plans: Plans, rule: StorageRule) -> CaseIndex:
    if plans.storage != rule:
        # One encoder has one storage rule, so the dataset is stored once more, under the first one's. No command of
        # the user's does that, so what was added since, or was not finished, is stored here.
        return ensure_preprocessed(plans.dataset_id, rule)
    dataset = preprocessed_dataset(plans.dataset_id)
    storage = dataset / rule.storage_id
    if not storage.is_dir():
        raise DataError(
            f"Dataset {plans.dataset_id} has plans but was not preprocessed.",
            got=f"no folder {rule.storage_id} in {dataset.name}",
            expected="its stored cases",
            do=f"Run headct_plan_and_preprocess -d {plans.dataset_id}.",
        )
    return CaseIndex.open(storage)


def _for_training(plans: Plans, index: CaseIndex, left_out: list[str]) -> CaseIndex:
    """The training and validation cases of a dataset; a sentence is added on stored cases that no split knows."""
    splits = load_splits(preprocessed_dataset(plans.dataset_id))
    usable = {case_id for fold in splits.folds for case_id in (*fold.train, *fold.val)}
    unknown = len(set(index.case_ids) - usable - set(splits.test))
    if unknown:
        left_out.append(
            f"{unknown} stored cases of {plans.dataset_name} are not in splits.json: "
            f"headct_preprocess -d {plans.dataset_id} gives them a place"
        )
    return index.subset(usable)
