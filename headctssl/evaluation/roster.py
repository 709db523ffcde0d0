"""Roster: the cases of one dataset that classifiers of a comparison learn from and are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headctssl.contract import LabelSpec, StorageRule
from headctssl.dataset.manifest import RawDataset, load_raw_dataset
from headctssl.dataset.splits import Splits, load_splits
from headctssl.errors import DataError
from headctssl.evaluation.comparison import Grid
from headctssl.finetuning.cohort import Cohort, choose_labels, make_cohort
from headctssl.finetuning.few_shot import FewShots
from headctssl.paths import preprocessed_dataset
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed

__all__ = ["Roster", "open_rosters"]


class Roster:
    """A labelled dataset; what is found out about it is kept.

    Args:
        raw: the dataset.
        specs: binary labels that are learnt.
        fold: fold of splits.json.
        left_out: sentences on labels that are not learnt.
    """

    def __init__(self, raw: RawDataset, specs: tuple[LabelSpec, ...], fold: str, left_out: Sequence[str] = ()) -> None:
        self.raw, self.specs, self.fold, self.left_out = raw, specs, fold, tuple(left_out)
        self._indexes: dict[str, CaseIndex] = {}
        self._cohorts: dict[tuple[str, int | None, int], Cohort] = {}

    @classmethod
    def open(cls, dataset_id: int, labels: Sequence[str] | None, fold: str) -> Roster:
        """Open a raw dataset.

        Args:
            dataset_id: its number.
            labels: names; all binary ones when None.
            fold: a number, or 'none' for no validation cases.

        Raises:
            HeadCTSSLError: there is no such dataset or label, or a label is not binary.
        """
        raw = load_raw_dataset(dataset_id)
        binary = [spec.name for spec in raw.info.labels if spec.type == "binary"]
        specs = choose_labels(raw.info.labels, binary if labels is None else labels)
        other = [f"{spec.name} ({spec.type})" for spec in specs if spec.type != "binary"]
        if other:
            raise DataError(
                "A comparison ranks by AUROC, which only binary labels have.",
                got=", ".join(other),
                expected="binary labels",
                do=f"Name some of {', '.join(binary)} with --labels, or fine-tune and evaluate the others one by one.",
            )
        left_out = [
            f"{raw.folder.name}: label '{spec.name}' is {spec.type}: left out, since a comparison ranks by AUROC"
            for spec in raw.info.labels
            if labels is None and spec.type != "binary"
        ]
        return cls(raw, specs, fold, left_out)

    @property
    def dataset_id(self) -> int:
        """The number of the dataset."""
        return self.raw.dataset_id

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(spec.name for spec in self.specs)

    @property
    def labels_asked(self) -> tuple[str, ...] | None:
        """What `labels` of a fine-tuning run is: None where the labels are all of the dataset."""
        return None if self.specs == self.raw.info.labels else self.labels

    def is_stored(self, rule: StorageRule) -> bool:
        """Whether stored cases of the rule are there, or of the same voxels with other masks."""
        folder = preprocessed_dataset(self.dataset_id)
        start = rule.storage_id.rpartition("_")[0]
        return folder.is_dir() and any((path / "cases.csv").is_file() for path in folder.glob(f"{start}_*"))

    def index(self, rule: StorageRule, *, num_workers: int | None = None, quiet: bool = True) -> CaseIndex:
        """The stored cases under a rule; what is missing is preprocessed.

        Raises:
            HeadCTSSLError: it cannot be preprocessed.
        """
        if rule.storage_id not in self._indexes:
            index = ensure_preprocessed(self.dataset_id, rule, quiet=quiet, num_workers=num_workers)
            self._indexes[rule.storage_id] = index
        return self._indexes[rule.storage_id]

    def splits(self) -> Splits:
        """splits.json, which preprocessing makes.

        Raises:
            DataError: it is missing or has no test case.
        """
        splits = load_splits(preprocessed_dataset(self.dataset_id))
        if not splits.test:
            raise DataError(
                f"{self.raw.folder.name} has no test cases.",
                got="an empty test set in splits.json",
                expected="at least one case",
                do="Mark test cases in the column 'split' of cases.csv, or leave the dataset out of -d.",
            )
        return splits

    def cohort(self, index: CaseIndex, label_budget: int | None, draw: int) -> Cohort:
        """Training, validation and test cases of a run.

        Args:
            index: the stored cases.
            label_budget: patients per class and label, all when None.
            draw: number of the few-shot draw.

        Raises:
            HeadCTSSLError: see `make_cohort`.
        """
        name = (index.folder.name, label_budget, draw)
        if name not in self._cohorts:
            few = None if label_budget is None else FewShots(label_budget, draw)
            self._cohorts[name] = make_cohort(
                self.raw, self.splits(), index.case_ids, self.specs, fold=self.fold, few_shots=few
            )
        return self._cohorts[name]

    @staticmethod
    def needed(cohorts: Iterable[Cohort]) -> list[str]:
        """Every case that one of the cohorts has, sorted."""
        return sorted({case for c in cohorts for case in (*c.train, *c.validation, *c.test)})


def open_rosters(grid: Grid) -> tuple[dict[int, Roster], list[str]]:
    """The labelled datasets of a comparison by number, and sentences on datasets and labels that are left out.

    Args:
        grid: what was asked for.

    Raises:
        HeadCTSSLError: as `Roster.open`.
    """
    rosters, notes = {}, []
    for dataset_id in grid.dataset_ids:
        raw = load_raw_dataset(dataset_id)
        if grid.labels is None and not any(spec.type == "binary" for spec in raw.info.labels):
            notes.append(f"{raw.folder.name} has no binary label: it is pretrained on only")
            continue
        roster = Roster.open(dataset_id, grid.labels, grid.fold)
        rosters[dataset_id] = roster
        notes += roster.left_out
    return rosters, notes
