"""Evaluation file: the schema of evaluation.json, how a classifier does elsewhere, by group, distance and sureness."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.settings import Settings

__all__ = ["AbstentionCurve", "Distances", "Evaluation", "Subgroup"]

Interval = tuple[float, float]


class Subgroup(Settings):
    """One group of cases."""

    column: str = Field(description="Column of cases.csv that the group is of.")
    group: str = Field(description="Its value or range; 'unknown' for an empty cell.")
    rule: str = Field(description="How values of the column become groups.")
    num_cases: int = Field(ge=0)
    num_subjects: int = Field(ge=0)
    labels: tuple[LabelMetrics, ...] = Field(description="One entry per binary label; `reason`: why it is not scored.")


class Distances(Settings):
    """How far the cases are from those the classifier was trained on, in its feature space."""

    num_reference: int = Field(description="Training cases behind the mean and covariance.")
    median: float = Field(description="Median distance over the 95th percentile of the reference's own; 1 is that far.")
    share_beyond: float = Field(description="Share of cases beyond the 95th percentile; about .05 is expected.")
    share_beyond_ci: Interval | None = Field(None, description="95 % BCa bootstrap interval over patients.")
    error_auroc: dict[str, float] = Field(
        default_factory=dict, description="Per label: how well the distance tells wrong answers from right ones."
    )


class AbstentionCurve(Settings):
    """What leaving out the least sure cases gains, for one label."""

    label: str
    order: Literal["probability", "distance"] = Field(
        description="Least sure first: probability nearest to the threshold, or farthest from the training cases."
    )
    curve: tuple[tuple[float, float], ...] = Field(description="Share of cases answered, share of wrong answers.")
    aurc: float = Field(description="Area under that curve: mean risk over all coverages, lower is better.")
    aurc_ci: Interval | None = Field(None, description="95 % BCa bootstrap interval over patients.")
    error_rate: float = Field(description="Risk when all are answered; the area of an order that says nothing.")
    best_aurc: float = Field(description="Area when every wrong answer is left out first.")


class Evaluation(Settings):
    """evaluation.json."""

    format: Literal[1] = 1
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    weights_hash: str = Field(description="Hash of the classifier.")
    subgroups: tuple[Subgroup, ...] = Field((), description="Groups by scanner, kernel, thickness, age and sex.")
    distances: Distances | None = Field(None, description="None when no reference lies beside the classifier.")
    abstention: tuple[AbstentionCurve, ...] = ()
    notes: tuple[str, ...] = Field((), description="What a reader of the numbers must know.")
