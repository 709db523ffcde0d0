"""Fine-tuning page: how good a classifier is, how sure that is, on which cases it errs, and what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from headctssl.contract import Contract
from headctssl.errors import HeadCTSSLError
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome
from headctssl.reporting.cases_part import CASES, cases_section
from headctssl.reporting.curves import CUT_SHORT, RunLines, finetune_charts, metric_lines
from headctssl.reporting.data_parts import finetune_data, is_synthetic, noted_synthetic
from headctssl.reporting.evidence_parts import evidence_sections
from headctssl.reporting.judged import read_judged
from headctssl.reporting.metrics_parts import (
    calibration_section,
    judged_facts,
    number_charts,
    quality_section,
    threshold_section,
)
from headctssl.reporting.model_card import model_card
from headctssl.reporting.page import Page, Section, attempted
from headctssl.reporting.run_parts import (
    BANNER,
    environment_section,
    optional,
    settings_section,
    why_section,
)
from headctssl.reporting.type_parts import other_types_section, studies_section
from headctssl.settings import JsonValue

__all__ = ["classifier_sections", "finetune_page", "judged_or_why", "leakage_section"]


def finetune_page(run: Path, settings: Mapping[str, JsonValue]) -> Page:
    """The page of one fold of a fine-tuning run, also of one that is not finished.

    Args:
        run: folder of the fold.
        settings: its config.json.

    Raises:
        DataError: metrics.json or contract.json is damaged.
    """
    metrics = optional(run / "metrics.json", Metrics)
    contract = optional(run / "contract.json", Contract)
    status: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = (("labels", str(len(_labels(settings)))),)
    sections: list[Section] = []
    judged: Outcome | None = None
    if metrics is None:
        status = (
            "The run has not finished: there is no metrics.json, so nothing is known of how good the classifier "
            "is. Go on with headct_finetune --continue.",
        )
    else:
        judged, why = judged_or_why(run, metrics)
        facts = (*judged_facts(metrics), ("epoch kept", str(metrics.best_epoch or "last")))
        sections += classifier_sections(run, metrics, judged, why, contract)
    case_ids = judged.case_ids if judged is not None else ()
    sections += [
        attempted("Data", lambda: finetune_data(run, settings, case_ids, noted_synthetic(contract))),
        attempted("Learning curves", lambda: _curves(run, settings, metrics)),
        model_card(contract, settings, metrics, synthetic=is_synthetic(str(settings.get("dataset_name", "")))),
        why_section("What was decided, and why", settings, "In the order it was decided."),
        settings_section(settings),
        attempted("Software and machine", lambda: environment_section(run)),
    ]
    subtitle = f"{settings.get('dataset_name', '')}, {run.parent.name}, {run.name}"
    return Page("Fine-tuned classifier", subtitle, tuple(sections), facts, BANNER, status)


def judged_or_why(folder: Path, metrics: Metrics) -> tuple[Outcome | None, str]:
    """The judged cases, or None and the sentence that says why they cannot be read."""
    try:
        return read_judged(folder, metrics), ""
    except HeadCTSSLError as error:
        return None, " ".join(
            part for part in (error.what, f"Found: {error.got}." if error.got else "", error.do) if part
        )


def classifier_sections(
    folder: Path, metrics: Metrics, judged: Outcome | None, why: str, contract: Contract | None
) -> list[Section]:
    """Everything that is known of how good a classifier is; leakage first.

    Args:
        folder: of the run or evaluation.
        metrics: what was measured.
        judged: the cases; None where they cannot be read.
        why: the sentence that says why not.
        contract: of the classifier.

    Raises:
        DataError: evaluation.json or distances.csv is damaged.
    """
    temperature = metrics.temperature if contract is None else contract.temperature
    found = [
        _other_types(metrics, judged),
        studies_section(metrics.studies),
        threshold_section(metrics.labels),
        calibration_section(metrics.labels, temperature),
        *evidence_sections(folder),
    ]
    sections = [leakage_section(metrics), quality_section(metrics, judged)]
    sections += [section for section in found if section is not None]
    if judged is None:
        sections.append(Section(CASES, warnings=(why,)))
    else:
        cases = judged
        sections.append(attempted(CASES, lambda: cases_section(cases, metrics, contract)))
    return sections


def _other_types(metrics: Metrics, judged: Outcome | None) -> Section | None:
    """Labels that are not binary, numbers with what was predicted against the truth."""
    section = other_types_section(metrics.labels)
    return section if section is None or judged is None else replace(section, charts=number_charts(judged))


def leakage_section(metrics: Metrics) -> Section:
    """Whether judged cases were used before, and what else a reader of the numbers must know."""
    known = metrics.leakage or "nothing is noted of whether the judged cases were used before"
    title = "What to know before reading the numbers"
    doubtful = any(word in known for word in ("optimistic", "cannot be checked", "may have been seen", "nothing is"))
    sentence = f"Leakage. {known[0].upper()}{known[1:]}."
    notes = tuple(f"{note[0].upper()}{note[1:]}." if note else note for note in metrics.notes)
    if doubtful:
        return Section(title, points=notes, warnings=(sentence,))
    return Section(title, points=(sentence, *notes))


def _curves(run: Path, settings: Mapping[str, JsonValue], metrics: Metrics | None) -> Section:
    logged = metric_lines(run / "metrics.jsonl")
    if not logged.lines:
        return Section("Learning curves", warnings=("metrics.jsonl has no line yet: nothing was learnt.",))
    cut = (CUT_SHORT,) if logged.cut_short else ()
    charts = finetune_charts(logged, _step_kept(logged, metrics))
    text = f"{len(logged.lines):,} lines up to step {logged.last.get('step', 0):,.0f} of {_steps(settings)}."
    return Section("Learning curves", (text,), charts=charts, warnings=cut)


def _step_kept(logged: RunLines, metrics: Metrics | None) -> float | None:
    """The step at the end of the epoch that was kept."""
    if metrics is None or metrics.best_epoch is None:
        return None
    at = [
        line["step"]
        for line in logged.lines
        if "validation_auroc" in line and line.get("epoch", -1) + 1 == metrics.best_epoch
    ]
    return at[0] if at else None


def _steps(settings: Mapping[str, JsonValue]) -> str:
    training = settings.get("training")
    steps = training.get("num_steps") if isinstance(training, dict) else None
    return f"{steps:,}" if isinstance(steps, int) else "an unknown number"


def _labels(settings: Mapping[str, JsonValue]) -> list[JsonValue]:
    labels = settings.get("labels")
    return labels if isinstance(labels, list) else []
