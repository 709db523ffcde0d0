"""Series files: the schemas of draws.json and learning_curve.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from headctssl.settings import Settings

__all__ = ["Draws", "LearningCurve", "OverDraws"]

Interval = tuple[float, float]


class OverDraws(Settings):
    """One number over several few-shot draws."""

    name: str = Field(description="A label, or 'mean' for the mean over the binary labels.")
    per_draw: tuple[float, ...] = Field(description="AUROC of each draw, in the order of `draws`.")
    mean: float = Field(description="Their mean.")
    deviation: float | None = Field(None, description="Standard deviation over draws, n - 1.")
    draws_ci: Interval | None = Field(
        None, description="95 % t interval of the mean over draws: what other few-shot patients would change."
    )
    ci: Interval | None = Field(
        None,
        description="95 % interval with the chance of the judged patients added, as independent variances; none where"
        " draws are judged by different cases.",
    )


class Draws(Settings):
    """draws.json: one task at one number of shots."""

    format: Literal[1] = 1
    few_shots: int | None = Field(description="Patients per class and label; none: every training case.")
    few_shot_negatives: Literal["same", "all"] = "same"
    draws: tuple[int, ...] = Field(description="Numbers of the draws.")
    folders: tuple[str, ...] = Field(
        description="Where their metrics.json lies, relative to the folder of the dataset."
    )
    evaluated_on: str = Field(description="Which cases the metrics are of.")
    num_train: tuple[int, ...] = Field(description="Training cases of each draw, of the first fold.")
    auroc: tuple[OverDraws, ...] = Field(description="One entry per binary label, and 'mean'.")


class LearningCurve(Settings):
    """learning_curve.json: one task at several numbers of shots."""

    format: Literal[1] = 1
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    points: tuple[Draws, ...] = Field(description="In the order of the call.")
