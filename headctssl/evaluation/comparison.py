"""Comparison: the content of comparison.json, what was compared, what came out, how sure it is and what it cost."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from headctssl.errors import unknown_name
from headctssl.finetuning.settings import Adaptation
from headctssl.settings import Settings

__all__ = [
    "REGRESSION",
    "TIDY_COLUMNS",
    "Arm",
    "ArmKind",
    "CellOutcome",
    "Comparison",
    "Cost",
    "Grid",
    "LabelScore",
    "Overlap",
    "Ranked",
    "TestSet",
]

Interval = tuple[float, float]

REGRESSION: Final = "logistic regression"
"""How an arm learns whose features are no encoder's of ours."""

ArmKind = Literal["pretrained", "given", "scratch", "random", "histogram", "embeddings"]
"""Where the features of an arm come from: pretrained here, weights or vectors given by the user, or a baseline."""

TIDY_COLUMNS = (
    "dataset", "kind", "method", "encoder", "adapt", "label_budget", "seed", "draw", "label", "metric", "value", "low",
    "high", "n_positive", "n_negative", "scans_seen", "pretraining_hours", "finetuning_hours", "parameters_trained",
    "overlap",
)  # fmt: skip
"""Columns of comparison.csv, one line per run, label and metric; an empty cell is unknown or does not apply."""


class Arm(Settings):
    """One way to get a classifier; its runs differ in data set, label budget, seed and draw only."""

    name: str = Field(description="How tables call it, unique in the comparison.")
    kind: ArmKind = Field(description="Where its features come from.")
    method: str = Field(description="Objective, name of given weights or vectors, or the name of the baseline.")
    encoder: str = Field("", description="Encoder preset; '' where there is no encoder of ours.")
    adapt: Adaptation | Literal["logistic regression"] = Field(
        description="full, linear, ...; 'logistic regression' where scikit-learn learns."
    )


class Grid(Settings):
    """What was asked for; with the data it decides every run."""

    dataset_ids: tuple[int, ...] = Field(description="Datasets that classifiers learn from and are tested on.")
    pretrain_ids: tuple[int, ...] = Field(description="Datasets that encoders are pretrained on.")
    encoders: tuple[str, ...] = Field(description="Encoder presets.")
    methods: tuple[str, ...] = Field((), description="Objectives pretrained with; baselines are not among them.")
    weights: tuple[str, ...] = Field((), description="Names of given weights.")
    embeddings: tuple[str, ...] = Field((), description="Names of given vectors.")
    adapt: tuple[str, ...] = Field(description="Ways of adaptation.")
    label_budgets: tuple[int | None, ...] = Field(
        description="Positive and negative patients per label to learn from; none: all labelled training cases."
    )
    seeds: int = Field(ge=1, description="Seeds 0, 1, ... of pretraining and of adaptation.")
    draws: int = Field(ge=1, description="Few-shot draws per seed.")
    fold: str = Field("0", description="Fold of splits.json.")
    labels: tuple[str, ...] | None = Field(None, description="Labels by name; none: all binary ones.")
    pretrain_overrides: tuple[str, ...] = Field((), description="--set pretrain.KEY=VALUE, without the prefix.")
    finetune_overrides: tuple[str, ...] = Field((), description="--set finetune.KEY=VALUE, without the prefix.")


class TestSet(Settings):
    """The cases of one dataset that every run is judged by."""

    __test__ = False  # pytest: no class of tests

    dataset_id: int = Field(ge=1)
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    synthetic: bool | None = Field(
        None, description="Whether its scans are synthetic, as its dataset.json says; none: not noted."
    )
    num_cases: int = Field(ge=1, description="Test cases that every run predicts.")
    num_subjects: int = Field(ge=1)
    num_left_out: int = Field(0, ge=0, description="Test cases that one of the runs cannot see; left out for all.")
    digest: str = Field(description="SHA-256 over ids and labels of the cases, first 16 hex digits.")
    labels: tuple[str, ...] = Field(description="Binary labels, in the order of the dataset.")
    positives: tuple[int, ...] = Field(description="Positive test cases per label.")
    negatives: tuple[int, ...] = Field(description="Negative test cases per label.")


class Overlap(Settings):
    """Whether the test cases were in the data that an encoder was pretrained on."""

    num_shared: int | None = Field(description="Test cases that were; none: cannot be checked.")
    sentence: str = Field(description="What is known, in words.")

    @property
    def mark(self) -> str:
        """'' without overlap, else 'overlap' or 'unchecked'."""
        return "unchecked" if self.num_shared is None else ("overlap" if self.num_shared else "")


class Cost(Settings):
    """What a run took. Hours are wall-clock hours on the machine of the run."""

    scans_seen: int = Field(0, ge=0, description="Scans that pretraining drew, counted as often as they were drawn.")
    pretraining_hours: float | None = Field(None, ge=0, description="None: no pretraining, or not known.")
    finetuning_hours: float | None = Field(None, ge=0, description="Adaptation and prediction.")
    parameters_trained: int | None = Field(None, ge=0, description="Numbers that adaptation learnt.")


class CellOutcome(Settings):
    """One run of the comparison."""

    dataset_name: str
    arm: str = Field(description="Name of its arm.")
    label_budget: int | None = Field(description="None: all labelled training cases.")
    seed: int = Field(ge=0)
    draw: int = Field(ge=0, description="Number of the few-shot draw; 0 with all labels.")
    key: str = Field("", description="Digest of everything that decides the run; '' when it was never begun.")
    status: Literal["done", "reused", "failed"]
    error: str = Field("", description="Why it failed.")
    run: str = Field("", description="Fine-tuning folder under headctssl_results; '' where there is none.")
    pretraining_run: str = Field("", description="Pretraining folder under headctssl_results; '' where there is none.")
    num_train: int | None = Field(None, description="Labelled training cases it learnt from.")
    mean_auroc: float | None = Field(None, description="Mean over the labels.")
    mean_auroc_ci: Interval | None = Field(None, description="95 % interval over patients, of this run alone.")
    overlap: Overlap | None = None
    cost: Cost = Cost()


class LabelScore(Settings):
    """AUROC of one label, the mean over seeds and draws."""

    label: str
    auroc: float
    auroc_ci: Interval | None = Field(None, description="95 % interval over patients, seeds and draws.")


class Ranked(Settings):
    """One line of a ranking: an arm on one dataset at one label budget."""

    dataset_name: str
    label_budget: int | None = Field(description="None: all labelled training cases.")
    arm: str
    num_seeds: int = Field(ge=1, description="Seeds that were run to the end.")
    num_runs: int = Field(ge=1, description="Seeds times draws that were run to the end.")
    mean_auroc: float = Field(description="Mean over labels, draws and seeds.")
    mean_auroc_ci: Interval | None = Field(None, description="95 % interval over patients, seeds and draws.")
    seed_spread: float | None = Field(None, description="Standard deviation of the mean AUROC over seeds; 2 or more.")
    rank: int = Field(ge=1, description="1 = highest mean AUROC of this dataset and budget.")
    rank_ci: tuple[int, int] | None = Field(None, description="95 % of the bootstrap resamples rank it within.")
    reference: str | None = Field(None, description="Arm trained from scratch that it is compared with.")
    difference: float | None = Field(None, description="Mean AUROC minus that of the reference.")
    difference_ci: Interval | None = Field(None, description="95 % interval, paired by patient, seed and draw.")
    p_value: float | None = Field(None, description="Two-sided, permutation within patients, of these trained models.")
    p_holm: float | None = Field(None, description="The same, corrected (Holm) for all comparisons of the file.")
    overlap: Literal["", "overlap", "unchecked"] = Field("", description="Mark of a result that may be optimistic.")
    labels: tuple[LabelScore, ...] = ()
    cost: Cost = Field(description="Mean over its runs.")


class Comparison(Settings):
    """comparison.json."""

    format: Literal[1] = 1
    package_version: str
    name: str = Field(description="Name of the folder.")
    grid: Grid
    arms: tuple[Arm, ...]
    tests: tuple[TestSet, ...] = Field(description="One per dataset.")
    cells: tuple[CellOutcome, ...] = Field(description="Every run that was planned, also one that failed.")
    ranking: tuple[Ranked, ...] = Field(description="By dataset, label budget and rank.")
    num_resamples: int = Field(ge=1, description="Bootstrap resamples, and permutations.")
    interval: str = Field("bootstrap over patients, seeds within it and draws within seeds", description="Of ranking.")
    notes: tuple[str, ...] = Field((), description="What a reader of the numbers must know.")

    def arm(self, name: str) -> Arm:
        """The arm of a name.

        Raises:
            UsageError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise unknown_name("arm", name, [arm.name for arm in self.arms])

    def ranked(self, dataset_name: str, label_budget: int | None) -> tuple[Ranked, ...]:
        """The ranking of one dataset and label budget, best first."""
        return tuple(r for r in self.ranking if r.dataset_name == dataset_name and r.label_budget == label_budget)
