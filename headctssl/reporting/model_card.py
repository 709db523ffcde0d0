"""Model card: what a checkpoint is, what it was made of, what it is for, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headctssl.contract import Contract
from headctssl.metrics.metrics_file import Metrics
from headctssl.reporting.page import Section, as_table
from headctssl.reporting.run_parts import interval_text
from headctssl.settings import JsonValue

__all__ = ["model_card"]

_USE = (
    "Intended use: research on learning from head CT. It takes CT of the adult head in Hounsfield units, straightened "
    "and stored as headctssl stores it; the checkpoint's contract holds every detail and is enforced.",
    "Not intended: diagnosis, triage, or any decision about a patient; other modalities or other parts of the body; "
    "scans whose values are not Hounsfield units. It is not a medical device and was reviewed by no authority.",
)


def model_card(
    contract: Contract | None,
    settings: Mapping[str, JsonValue],
    metrics: Metrics | None = None,
    *,
    synthetic: bool | None = None,
) -> Section:
    """The card of an encoder or classifier.

    Args:
        contract: of the checkpoint; None before there is one.
        settings: config.json of the run.
        metrics: of a classifier.
        synthetic: whether the scans it was trained on are phantoms, asked where the contract does not note it.
    """
    if contract is None:
        why = "There is no contract.json, so the checkpoint cannot be described."
        return Section("Model card", _USE, warnings=(why,))
    dataset = str(settings.get("dataset_name") or ", ".join(map(str, _list(settings.get("dataset_ids")))) or "-")
    spec = contract.input
    rows: list[tuple[str, str]] = [
        (
            "kind",
            "probabilities per label" if contract.kind == "classifier" else "feature vectors",
        ),
        ("encoder", f"{contract.preset} ({contract.encoder.family})"),
        ("pretraining", _pretraining(contract, settings)),
        ("trained on", f"{contract.num_scans:,} scans of dataset {dataset}"),
        ("input", f"{_by(spec.shape)} voxels (z, y, x) at {_by(spec.spacing_mm)} mm, {spec.rule}"),
        ("windows (level, width in HU)", "; ".join(f"{w.level:g}, {w.width:g}" for w in spec.windows)),
        (
            "stored scans",
            f"{_by(contract.storage.spacing_mm)} mm, {contract.storage.hu_clip[0]} to "
            f"{contract.storage.hu_clip[1]} HU, axes (z, y, x) to superior, posterior, left",
        ),
    ]
    if contract.labels:
        rows.append(("labels", ", ".join(f"{s.name} ({s.type})" for s in contract.labels[:40])))
    if metrics is not None:
        value = interval_text(metrics.mean_auroc, metrics.mean_auroc_ci)
        rows.append(("mean AUROC", f"{value} on {metrics.num_cases} {metrics.evaluated_on} cases"))
    if contract.kind == "classifier":
        rows.append(("temperature of the logits", f"{contract.temperature:.4g}"))
    rows += [
        ("weights hash", contract.weights_hash[:16] or "-"),
        ("written by", f"headctssl {contract.package_version}"),
    ]
    limits = "Limits: " + " ".join(_limits(contract, settings, metrics, synthetic))
    return Section("Model card", (*_USE, limits), (as_table(("item", "value"), rows),))


def _limits(
    contract: Contract, settings: Mapping[str, JsonValue], metrics: Metrics | None, synthetic: bool | None
) -> list[str]:
    found = []
    if contract.synthetic == "some":
        found.append("Some of the datasets it was trained on are synthetic: these tell nothing of patients.")
    elif contract.synthetic == "all" or (contract.synthetic is None and synthetic):
        found.append("It was trained on synthetic scans: nothing is known of what it does on patients.")
    if contract.kind == "encoder":
        found.append("How useful its features are is not known from this run: fine-tune or embed to find out.")
    else:
        found.append(
            "It was judged on the dataset named here only; other hospitals, scanners, protocols and patients "
            "may give other results."
        )
        found.append("Labels count as true as cases.csv has them; their errors are in the numbers.")
    if metrics is not None and metrics.evaluated_on != "test":
        found.append(f"The numbers are of {metrics.evaluated_on} cases, not of a held-out test set.")
    if settings.get("few_shots"):
        found.append(
            f"It learnt from {settings['few_shots']} positive and negative patients per label: another draw "
            "may give another classifier."
        )
    found.append(f"Training used {contract.num_scans:,} scans; findings rarer than that allows were hardly seen.")
    return found


def _pretraining(contract: Contract, settings: Mapping[str, JsonValue]) -> str:
    if contract.kind == "encoder":
        begun = str(settings.get("init", "scratch"))
        return contract.method + (
            " from random weights" if begun == "scratch" else f", begun from weights {begun[:16]}"
        )
    if contract.method == "scratch":
        return "none: the encoder started from random weights"
    return f"{contract.method}, weights {str(settings.get('init', ''))[:16]}, adapted: {settings.get('adapt', '-')}"


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
