"""Report: one HTML page about a pretraining or fine-tuning run, or about the scans of a converted dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from headctssl.console import name_files
from headctssl.errors import UsageError
from headctssl.ingest.report import REPORT_FILE
from headctssl.metrics.metrics_file import LabelMetrics, Metrics
from headctssl.reporting.ingest_page import ingest_page
from headctssl.reporting.page import Page, Section, Table, as_table, picture, write_page
from headctssl.reporting.pictures import interval_figure, metric_lines, run_figure
from headctssl.settings import JsonValue, read_json

__all__ = ["collapse_note", "decision_table", "interval_text", "metrics_table", "report", "run_config", "setting_rows"]


COLLAPSE_SHARE = 1 / 3
"""Share of the first spread of features below which a run is suspected of having collapsed."""


def report(run: Path, *, output: Path | None = None, quiet: bool = False) -> Path:
    """Write a page about a run or a converted dataset; it opens without a network.

    Args:
        run: folder of a pretraining run, of one fold of a fine-tuning run, or of a raw dataset that
            headct_convert made.
        output: the HTML file, or a folder for report.html (ingest_report.html of a dataset); the run's or
            dataset's own folder when None.
        quiet: print nothing.

    Returns:
        The HTML file.

    Raises:
        UsageError: the folder is not a run, or a fine-tuning run that has not finished.
        DataError: a file of the run is damaged.
    """
    run = Path(run)
    if (run / REPORT_FILE).is_file():
        path = write_page(_target(run, output, "ingest_report.html"), ingest_page(run))
        name_files([path], quiet=quiet)
        return path
    settings = run_config(run)
    if settings.get("stage") == "finetune" and not (run / "metrics.json").is_file():
        raise UsageError(
            "The fine-tuning run has not finished.",
            got="no metrics.json",
            expected="a finished run",
            do="Finish it with headct_finetune --continue.",
        )
    page = _finetune_page(run, settings) if (run / "metrics.json").is_file() else _pretrain_page(run, settings)
    path = write_page(_target(run, output, "report.html"), page)
    name_files([path], quiet=quiet)
    return path


def _target(run: Path, output: Path | None, name: str) -> Path:
    """The file to write: what was asked for, in it where that is a folder, else in the run's folder."""
    target = run if output is None else Path(output)
    return target / name if output is None or target.is_dir() or not target.suffix else target


def run_config(run: Path) -> dict[str, JsonValue]:
    """The settings of a run as its config.json has them.

    Raises:
        UsageError: the folder is not a run.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UsageError(
            "This is not a run.",
            got=run,
            expected="a folder with config.json, e.g. .../pretrain/dino__vit_s__plans or .../finetune/.../fold_0, "
            "or a converted raw dataset with ingest_report.json",
            do="Name the folder that headct_pretrain, headct_finetune or headct_convert printed.",
        )
    settings: dict[str, JsonValue] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def interval_text(value: float | None, interval: Sequence[float] | None) -> str:
    """A value with its interval, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def metrics_table(labels: Sequence[LabelMetrics]) -> Table:
    """AUROC and AUPRC per label with intervals and counts."""
    rows = [
        (
            label.name,
            interval_text(label.auroc, label.auroc_ci),
            interval_text(label.auprc, label.auprc_ci),
            "-" if label.n_positive is None else label.n_positive,
            "-" if label.n_negative is None else label.n_negative,
            label.reason or "",
        )
        for label in labels
    ]
    return as_table(("label", "AUROC (95 % interval)", "AUPRC (95 % interval)", "positive", "negative", "note"), rows)


def decision_table(settings: Mapping[str, JsonValue]) -> Table | None:
    """The decisions of a config.json as a table, when it has them."""
    decisions = settings.get("decisions")
    if not isinstance(decisions, list) or not decisions:
        return None
    rows = [
        [str(d.get(k, "")) for k in ("what", "value", "because", "source")] for d in decisions if isinstance(d, dict)
    ]
    return as_table(("decision", "value", "because", "source"), rows)


def setting_rows(settings: Mapping[str, JsonValue], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting as (dotted name, value), decisions left out."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if key == "decisions":
            continue
        if isinstance(value, dict):
            rows += setting_rows(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, json.dumps(value)))
    return rows


def _finetune_page(run: Path, settings: Mapping[str, JsonValue]) -> Page:
    metrics = read_json(run / "metrics.json", Metrics)
    drawn = {
        label.name: (label.auroc, *label.auroc_ci)
        for label in metrics.labels
        if label.auroc is not None and label.auroc_ci
    }
    pictures = []
    if drawn:
        pictures.append(
            picture(interval_figure({"this model": drawn}, "AUROC", chance=0.5), "Each label with its 95 % interval.")
        )
    sections = [
        Section(
            "How good it is",
            (
                f"Measured on {metrics.num_cases} {metrics.evaluated_on} cases of {metrics.num_subjects} subjects. "
                f"Intervals: {metrics.interval}. An interval that contains 0.5 means that chance explains the AUROC.",
                *((metrics.leakage,) if metrics.leakage else ()),
                *metrics.notes,
            ),
            (metrics_table(metrics.labels),),
            tuple(pictures),
        ),
        *_run_sections(run, settings),
    ]
    facts = (
        ("mean AUROC", interval_text(metrics.mean_auroc, metrics.mean_auroc_ci)),
        ("evaluated on", metrics.evaluated_on),
        ("cases", str(metrics.num_cases)),
        ("epoch kept", str(metrics.best_epoch) if metrics.best_epoch is not None else "last"),
    )
    return Page(
        "Fine-tuned classifier", f"{metrics.dataset_name}, {run.parent.name}, {run.name}", tuple(sections), facts
    )


def _pretrain_page(run: Path, settings: Mapping[str, JsonValue]) -> Page:
    lines = [line for line in metric_lines(run / "metrics.jsonl") if "loss" in line]
    last = lines[-1] if lines else {}
    waits = sorted(line["data_wait"] for line in lines if "data_wait" in line)
    facts = (
        ("method", str(settings.get("method_name"))),
        ("encoder", str(settings.get("config"))),
        ("steps", f"{last.get('step', 0):.0f}"),
        ("last loss", f"{last['loss']:.4f}" if "loss" in last else "-"),
        ("scans/s", f"{last['scans_per_second']:.1f}" if "scans_per_second" in last else "-"),
        ("time spent waiting for data (median)", f"{waits[len(waits) // 2]:.1%}" if waits else "-"),
    )
    note = (
        "A falling loss shows that the objective is being optimised, not that the features are useful: "
        "fine-tune or embed to find that out."
    )
    sections = (Section("Training", (note, *collapse_note(lines))), *_run_sections(run, settings))
    return Page("Self-supervised pretraining", run.name, sections, facts)


def collapse_note(lines: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """A sentence when the features of different scans have become nearly the same."""
    spread = [line["feature_std"] for line in lines if "feature_std" in line]
    if len(spread) < 20:
        return ()
    first, last = median(spread[:3]), median(spread[-10:])
    if last >= COLLAPSE_SHARE * first:
        return ()
    return (
        f"Warning: the features of different scans became more alike: their spread fell from {first:.3g} to "
        f"{last:.3g}. The encoder may have collapsed; more steps, a larger batch or another method (mae does not "
        "collapse this way) are what to try.",
    )


def _run_sections(run: Path, settings: Mapping[str, JsonValue]) -> list[Section]:
    sections = []
    if (run / "metrics.jsonl").is_file():
        lines = metric_lines(run / "metrics.jsonl")
        if any("loss" in line for line in lines):
            sections.append(
                Section("Learning curve", pictures=(picture(run_figure(lines), "Loss and learning rate over steps."),))
            )
    table = decision_table(settings)
    if table is not None:
        sections.append(Section("What was decided, and why", tables=(table,), folded=True))
    sections.append(
        Section("All settings", tables=(as_table(("setting", "value"), setting_rows(settings)),), folded=True)
    )
    environment = run / "environment.json"
    if environment.is_file():
        rows = setting_rows(json.loads(environment.read_text(encoding="utf-8")))
        sections.append(Section("Software and machine", tables=(as_table(("item", "value"), rows),), folded=True))
    return sections
