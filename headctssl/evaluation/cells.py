"""Cells: the kept result of one run of a comparison, cell.json and predictions.csv in a folder named by its key."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headctssl.errors import DataError
from headctssl.evaluation.comparison import Arm
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.metrics.outcome import Outcome, write_predictions
from headctssl.paths import atomic_path
from headctssl.settings import Settings, read_json, write_json

__all__ = ["CellResult", "Predictions", "is_kept", "read_cell", "read_predictions", "write_cell"]

Interval = tuple[float, float]


class CellResult(Settings):
    """cell.json. Holds no case ids; predictions.csv beside it does."""

    format: Literal[1] = 1
    key: str = Field(description="Digest of everything that decides the run; the name of the folder.")
    dataset_name: str
    arm: Arm
    label_budget: int | None
    seed: int = Field(ge=0)
    draw: int = Field(ge=0)
    run: str = Field("", description="Fine-tuning folder under headctssl_results; '' where there is none.")
    num_train: int = Field(ge=0, description="Labelled training cases.")
    finetuning_hours: float = Field(ge=0, description="Wall-clock hours of adaptation and prediction.")
    parameters_trained: int = Field(ge=0, description="Numbers that adaptation learnt.")
    mean_auroc: float | None = None
    mean_auroc_ci: Interval | None = None
    labels: tuple[LabelMetrics, ...] = Field(description="Metrics of the cases in predictions.csv.")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """What a predictions.csv holds."""

    case_ids: tuple[str, ...]
    labels: tuple[str, ...]
    probability: NDArray[np.float64]  # (n, L)

    def of(self, case_ids: Sequence[str], labels: Sequence[str]) -> NDArray[np.float64]:
        """(n, L) in the order of the cases and labels given, all of them known here."""
        row = {case_id: k for k, case_id in enumerate(self.case_ids)}
        columns = [self.labels.index(name) for name in labels]
        return self.probability[[row[case_id] for case_id in case_ids]][:, columns]


def read_predictions(path: Path) -> Predictions:
    """Read a predictions.csv.

    Raises:
        DataError: it is missing or not what `write_predictions` writes.
    """
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            head, *rows = list(csv.reader(handle))
        if head[:2] != ["case_id", "subject_id"] or not rows:
            raise ValueError("other columns, or no case")
        probability = np.array([[float(cell) for cell in row[2:]] for row in rows], dtype=np.float64)
        if probability.shape != (len(rows), len(head) - 2) or len({row[0] for row in rows}) < len(rows):
            raise ValueError("lines of another length, or a case twice")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read.",
            got=error,
            expected="case_id, subject_id and one column per label",
            do="Remove its folder and start the comparison again.",
        ) from None
    return Predictions(tuple(row[0] for row in rows), tuple(head[2:]), probability)


def is_kept(folder: Path) -> bool:
    """Whether a folder holds a whole result."""
    return (folder / "cell.json").is_file() and (folder / "predictions.csv").is_file()


def write_cell(folder: Path, result: CellResult, predictions: Path | Outcome) -> None:
    """Write a result; the folder appears with all of it or not at all.

    Args:
        folder: of this result; replaced when it exists.
        result: the content of cell.json.
        predictions: a predictions.csv to copy, or what to write.
    """
    if folder.exists():
        shutil.rmtree(folder)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if isinstance(predictions, Path):
            shutil.copyfile(predictions, temporary / "predictions.csv")
        else:
            write_predictions(temporary / "predictions.csv", predictions)
        write_json(temporary / "cell.json", result)


def read_cell(folder: Path) -> tuple[CellResult, Predictions]:
    """Read a kept result.

    Raises:
        DataError: it is damaged, or lies under another name than its key.
    """
    again = "Remove the folder and start the comparison again."
    result = read_json(folder / "cell.json", CellResult, do=again)
    if result.key != folder.name:
        raise DataError(f"{folder} holds the result of another run.", got=result.key, expected=folder.name, do=again)
    return result, read_predictions(folder / "predictions.csv")
