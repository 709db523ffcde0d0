"""Metrics file: the schema of metrics.json, one entry per label."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from headctssl.settings import Settings

__all__ = ["LabelMetrics", "Metrics", "StudyMetrics"]

Interval = tuple[float, float]


class LabelMetrics(Settings):
    """Metrics of one label; None where they do not apply or are undefined (`reason` says why)."""

    name: str = Field(description="The label.")
    type: Literal["binary", "multiclass", "ordinal", "continuous"] = "binary"
    n_known: int = Field(0, ge=0, description="Cases with a known label.")
    n_unknown: int = Field(0, ge=0, description="Cases left out because the label is unknown.")
    n_positive: int | None = Field(None, description="Positive cases, binary only.")
    n_negative: int | None = Field(None, description="Negative cases, binary only.")
    auroc: float | None = Field(None, description="Area under the ROC curve; multiclass: mean of one versus rest.")
    auroc_ci: Interval | None = Field(
        None, description="95 % interval over patients; binary: score interval with a moderated DeLong variance."
    )
    auroc_bca_ci: Interval | None = Field(None, description="95 % BCa bootstrap interval over patients, binary.")
    auroc_delong_ci: Interval | None = Field(None, description="95 % DeLong interval on the logit scale, by patient.")
    auroc_p_value: float | None = Field(
        None,
        description="Two-sided p value of an AUROC of .5, binary: labels exchanged among patients; DeLong from 2,000 "
        "cases on.",
    )
    auprc: float | None = Field(None, description="Average precision.")
    auprc_ci: Interval | None = Field(None, description="95 % interval over patients.")
    brier: float | None = Field(None, description="Brier score, binary only: mean squared error of the probability.")
    brier_ci: Interval | None = Field(None, description="95 % interval over patients.")
    ece: float | None = Field(None, description="Expected calibration error in 10 bins of equally many cases.")
    log_loss: float | None = Field(None, description="Mean negative logarithm of the probability of the truth, binary.")
    brier_uncalibrated: float | None = Field(None, description="Brier score before the temperature.")
    ece_uncalibrated: float | None = Field(None, description="Calibration error before the temperature.")
    log_loss_uncalibrated: float | None = Field(None, description="Log loss before the temperature.")
    reliability: tuple[tuple[float, float, int], ...] = Field(
        (), description="Per bin: mean probability, share of positives, cases."
    )
    threshold: float | None = Field(None, description="Least probability that the next four call positive.")
    balanced_accuracy: float | None = Field(
        None, description="Mean of sensitivity and specificity at the threshold; of the recall of all classes."
    )
    balanced_accuracy_ci: Interval | None = Field(None, description="95 % interval over patients.")
    f1: float | None = Field(None, description="Harmonic mean of precision and recall at the threshold.")
    f1_ci: Interval | None = Field(None, description="95 % interval over patients.")
    sensitivity: float | None = Field(None, description="Share of positives called positive at the threshold.")
    sensitivity_ci: Interval | None = Field(None, description="95 % interval over patients.")
    specificity: float | None = Field(None, description="Share of negatives called negative at the threshold.")
    specificity_ci: Interval | None = Field(None, description="95 % interval over patients.")
    sensitivity_at_90_specificity: float | None = Field(
        None, description="Largest sensitivity of a threshold with a specificity of at least .9 on these cases."
    )
    sensitivity_at_90_specificity_ci: Interval | None = Field(None, description="95 % interval over patients.")
    specificity_at_90_sensitivity: float | None = Field(
        None, description="Largest specificity of a threshold with a sensitivity of at least .9 on these cases."
    )
    specificity_at_90_sensitivity_ci: Interval | None = Field(None, description="95 % interval over patients.")
    classes: tuple[str, ...] = Field((), description="Names of the classes, multiclass and ordinal.")
    confusion: tuple[tuple[int, ...], ...] = Field(
        (), description="Cases per true class (row) and called class (column), multiclass and ordinal."
    )
    accuracy: float | None = Field(None, description="Share of cases whose class is called, multiclass and ordinal.")
    accuracy_ci: Interval | None = Field(None, description="95 % interval over patients.")
    macro_f1: float | None = Field(None, description="Mean F1 of the classes, multiclass and ordinal.")
    macro_f1_ci: Interval | None = Field(None, description="95 % interval over patients.")
    quadratic_kappa: float | None = Field(None, description="Cohen's kappa with quadratic weights, ordinal only.")
    quadratic_kappa_ci: Interval | None = Field(None, description="95 % interval over patients.")
    pearson: float | None = Field(None, description="Pearson's correlation, continuous only.")
    pearson_ci: Interval | None = Field(None, description="95 % interval over patients.")
    rmse: float | None = Field(None, description="Root of the mean squared error, in the label's unit.")
    rmse_ci: Interval | None = Field(None, description="95 % interval over patients.")
    spearman: float | None = Field(
        None, description="Spearman's rank correlation; ordinal: of the class and the mean predicted class."
    )
    spearman_ci: Interval | None = Field(None, description="95 % interval over patients.")
    mae: float | None = Field(None, description="Mean absolute error in the label's unit; ordinal: in classes.")
    mae_ci: Interval | None = Field(None, description="95 % interval over patients.")
    r2: float | None = Field(None, description="Coefficient of determination, continuous only.")
    r2_ci: Interval | None = Field(None, description="95 % interval over patients.")
    resamples: int = Field(0, ge=0, description="Bootstrap resamples that went into the intervals.")
    redrawn: int = Field(0, ge=0, description="Resamples drawn again because they lost a class.")
    reason: str | None = Field(None, description="Why a metric or an interval is missing.")


def _to_names(labels: tuple[LabelMetrics, ...]) -> dict[str, dict[str, Any]]:
    return {m.name: m.model_dump(mode="json", exclude={"name"}) for m in labels}


def _from_names(value: object) -> object:
    if isinstance(value, dict):
        return tuple({"name": name, **fields} for name, fields in value.items())
    return value


ByName = Annotated[tuple[LabelMetrics, ...], BeforeValidator(_from_names), PlainSerializer(_to_names)]
"""In the file an object keyed by the label's name."""


class StudyMetrics(Settings):
    """Metrics with one prediction per study, all scans of one session of a subject, beside those of scans."""

    aggregate: Literal["mean", "max", "attention"] = Field(
        description="How scans become the study's prediction; attention: as the classifier has learnt to weigh them."
    )
    num_studies: int = Field(ge=0, description="Studies; a scan of unknown session is its own.")
    num_with_several: int = Field(ge=0, description="Studies of more than one scan.")
    notes: tuple[str, ...] = Field((), description="What a reader of the numbers must know.")
    mean_auroc: float | None = Field(None, description="Mean over the binary labels where AUROC is defined.")
    mean_auroc_ci: Interval | None = Field(None, description="95 % interval over patients.")
    labels: ByName = Field(description="One entry per label; its counts are of studies.")


class Metrics(Settings):
    """metrics.json. In the file `labels` is an object keyed by the label's name."""

    format: Literal[1] = 1
    dataset_name: str = Field(description="Folder name, DatasetNNN_Name.")
    synthetic: bool | None = Field(
        None, description="Whether its scans are synthetic, as its dataset.json says; none: not noted."
    )
    evaluated_on: Literal["test", "validation", "training", "all", "out_of_fold"] = Field(
        description="Which cases the metrics are of."
    )
    fold: str | None = Field(None, description="The fold, fine-tuning only.")
    num_cases: int = Field(ge=0)
    num_subjects: int = Field(ge=0)
    num_failed: int = Field(0, ge=0, description="Cases that could not be preprocessed; they are not in the metrics.")
    confidence: float = Field(0.95, description="Level of the intervals.")
    interval: str = Field(
        "AUROC of binary labels: score interval with a moderated DeLong variance by patient; all others: BCa bootstrap"
        " over patients",
        description="How the intervals are made.",
    )
    temperature: float | None = Field(None, description="What the logits were divided by; of an ensemble the mean.")
    bootstrap_seed: int = Field(0, ge=0)
    weights_hash: str = Field("", description="Hash of the classifier.")
    leakage: str = Field("", description="What is known about cases that were also used in training or pretraining.")
    notes: tuple[str, ...] = Field((), description="What a reader of the numbers must know.")
    best_epoch: int | None = Field(None, description="Epoch kept, from 1, fine-tuning only.")
    validation_score: float | None = Field(
        None, description="What the epoch was chosen by: share of pairs ranked right, mean over the labels."
    )
    validation_auroc: float | None = Field(
        None, description="The same, where all labels are binary: mean validation AUROC of the kept epoch."
    )
    mean_auroc: float | None = Field(None, description="Mean over the binary labels where AUROC is defined.")
    mean_auroc_ci: Interval | None = Field(None, description="95 % interval over patients.")
    studies: StudyMetrics | None = Field(
        None, description="The same by study; none where no study has several of the scans."
    )
    labels: ByName = Field(description="One entry per label.")

    def label(self, name: str) -> LabelMetrics:
        """The entry of one label.

        Raises:
            KeyError: there is no such label.
        """
        for entry in self.labels:
            if entry.name == name:
                return entry
        raise KeyError(name)
