"""Settings page: documentation/settings.md, generated from the settings so that it cannot lie."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from headctssl.contract import Contract, HeadSettings, InputSpec, StorageRule
from headctssl.dataset.manifest import DatasetInfo
from headctssl.evaluation.cells import CellResult
from headctssl.evaluation.comparison import Arm, CellOutcome, Comparison, Cost, Grid, Ranked, TestSet
from headctssl.evaluation.evaluation_file import AbstentionCurve, Distances, Evaluation, Subgroup
from headctssl.families import FAMILIES
from headctssl.finetuning.series_file import Draws, OverDraws
from headctssl.finetuning.settings import FinetuneSettings, LoraSettings, TaskSettings
from headctssl.ingest.report import IngestReport, ScanRecord
from headctssl.ingest.selection import Selection
from headctssl.methods import METHODS, method_class
from headctssl.metrics.metrics_file import LabelMetrics, Metrics
from headctssl.planning.plans import Plans, SplitRule
from headctssl.planning.run_settings import MonitorSettings, TrainingSettings, ViewSettings
from headctssl.training.environment import Environment
from headctssl.training.estimate_report import EstimateReport, Suggestion
from headctssl.training.slurm import SlurmOptions

__all__ = ["settings_markdown", "write_settings_page"]


def settings_markdown() -> str:
    """The page: one table per section of `--set`, then the files."""
    sections: list[tuple[str, str, type[BaseModel]]] = [
        (
            "`training.*` of `headct_pretrain`",
            "Defaults are before the planner; a run's own values are in its config.json.",
            TrainingSettings,
        ),
        ("`views.*`", "How views are drawn.", ViewSettings),
        ("`monitor.*`", "What is watched while training.", MonitorSettings),
    ]
    sections += [
        (f"`encoder.*` of the family `{name}`", "A preset fixes these.", kind) for name, kind in FAMILIES.items()
    ]
    for name in METHODS:
        sections.append(
            (
                f"`method.*` of `{name}`",
                "The published values; the planner adapts some to the data.",
                method_class(name).Settings,
            )
        )
    sections += [
        ("`headct_finetune --set`", "Settings of fine-tuning.", FinetuneSettings),
        ("`task.*` of `headct_finetune`", "The steps of the log derive some of them.", TaskSettings),
        ("`head.*` of `headct_finetune`", "", HeadSettings),
        ("`lora.*` of `headct_finetune`", "", LoraSettings),
        ("metrics.json", "", Metrics),
        ("Labels in metrics.json", "In the file an object keyed by the label's name.", LabelMetrics),
        ("evaluation.json", "Of `headct_evaluate`.", Evaluation),
        ("Subgroups in evaluation.json", "", Subgroup),
        ("Distances in evaluation.json", "", Distances),
        ("Abstention in evaluation.json", "", AbstentionCurve),
        ("draws.json", "Of several few-shot draws; learning_curve.json has one for each number of shots.", Draws),
        ("AUROC in draws.json", "", OverDraws),
        ("plans.json", "", Plans),
        ("Split rule in plans.json", "", SplitRule),
        ("Storage rule", "Its digest names the folder of stored cases.", StorageRule),
        ("Input of an encoder", "", InputSpec),
        ("contract.json", "Travels in every checkpoint.", Contract),
        ("`headct_pretrain --slurm`", "`KEY=VALUE` pairs separated by commas.", SlurmOptions),
        ("environment.json", "", Environment),
        ("estimate.json", "Of `headct_estimate -o`.", EstimateReport),
        ("Changes in estimate.json", "", Suggestion),
        ("comparison.json", "Of `headct_compare`.", Comparison),
        ("Grid in comparison.json", "What was asked for.", Grid),
        ("Arms in comparison.json", "", Arm),
        ("Test cases in comparison.json", "", TestSet),
        ("Runs in comparison.json", "", CellOutcome),
        ("Ranking in comparison.json", "", Ranked),
        ("Cost in comparison.json", "", Cost),
        ("cell.json", "The kept result of one run of a comparison.", CellResult),
        ("dataset.json", "", DatasetInfo),
        ("`headct_convert --select`", "`--select one` is `per_study=1`.", Selection),
        ("ingest_report.json", "", IngestReport),
        ("Scans in ingest_report.json", "Nothing in it names a patient, a file or a date.", ScanRecord),
    ]
    text = ["# Settings", "", "Generated from the code by `make docs`; a test compares."]
    for title, note, model in sections:
        text += ["", f"## {title}", "", *([note, ""] if note else []), *_rows(model)]
    return "\n".join(text) + "\n"


def write_settings_page(path: Path) -> None:
    """Write the page.

    Args:
        path: documentation/settings.md of a checkout.
    """
    path.write_text(settings_markdown(), encoding="utf-8")


def _rows(model: type[BaseModel]) -> list[str]:
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if field.is_required():
            default = "required"
        else:
            value = field.get_default(call_default_factory=True)
            default = f"`{value.model_dump_json()}`" if isinstance(value, BaseModel) else f"`{value!r}`"
        description = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {default} | {description} |")
    return rows
