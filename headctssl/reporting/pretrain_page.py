"""Pretraining page: what an encoder was trained on, how the run went, whether it collapsed, and what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headctssl.contract import Contract
from headctssl.errors import DataError
from headctssl.planning.plans import load_plans
from headctssl.reporting.curves import CUT_SHORT, RunLines, collapse_note, collapse_table, metric_lines, pretrain_charts
from headctssl.reporting.data_parts import dataset_names, is_synthetic, noted_synthetic, pretrain_data
from headctssl.reporting.model_card import model_card
from headctssl.reporting.page import Page, Section, attempted
from headctssl.reporting.run_parts import BANNER, environment_section, optional, settings_section, why_section
from headctssl.settings import JsonValue

__all__ = ["pretrain_page"]


def pretrain_page(run: Path, settings: Mapping[str, JsonValue]) -> Page:
    """The page of a pretraining run, also of one that is not finished.

    Args:
        run: the run folder.
        settings: its config.json.

    Raises:
        DataError: metrics.jsonl or contract.json is damaged.
    """
    logged = metric_lines(run / "metrics.jsonl")
    contract = optional(run / "contract.json", Contract)
    steps = _wanted_steps(settings)
    done = logged.last.get("step", 0.0)
    status = []
    if not logged.lines:
        status.append("metrics.jsonl has no line yet: the run has not reached its first step.")
    elif steps is not None and done < steps:
        status.append(
            f"The run has not finished: {done:,.0f} of {steps:,} steps. Go on with headct_pretrain --continue."
        )
    if contract is None and (steps is None or done >= steps):
        status.append("contract.json is missing: the encoder was not exported.")
    if logged.cut_short:
        status.append(CUT_SHORT)
    names = dataset_names(_ids(settings))
    synthetic = any(is_synthetic(name) for name in names.values()) if names else None
    sections = (
        _training(logged),
        attempted("Data", lambda: pretrain_data(run, settings, noted_synthetic(contract))),
        model_card(contract, settings, synthetic=synthetic),
        attempted("What the plans decided, and why", lambda: _plans(settings)),
        why_section("What the run decided, and why", settings, "In the order it was decided."),
        settings_section(settings),
        attempted("Software and machine", lambda: environment_section(run)),
    )
    facts = _facts(logged, settings, steps)
    return Page("Self-supervised pretraining", run.name, sections, facts, BANNER, tuple(status))


def _facts(logged: RunLines, settings: Mapping[str, JsonValue], steps: int | None) -> tuple[tuple[str, str], ...]:
    last = logged.last
    waits = sorted(logged.line("data_wait").y)
    seconds = last.get("seconds")
    return (
        ("method", str(settings.get("method_name"))),
        ("encoder", str(settings.get("config"))),
        ("steps", f"{last.get('step', 0):,.0f}" + ("" if steps is None else f" of {steps:,}")),
        ("last loss", f"{last['loss']:.4f}" if "loss" in last else "-"),
        ("scans per second", f"{last['scans_per_second']:.1f}" if "scans_per_second" in last else "-"),
        ("time waiting for data (median)", f"{waits[len(waits) // 2]:.1%}" if waits else "-"),
        ("training time", "-" if seconds is None else _duration(seconds)),
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _training(logged: RunLines) -> Section:
    table = collapse_table(logged)
    texts = [
        "A falling loss shows that the objective is being optimised, not that the features are useful: fine-tune or "
        "embed to find that out. Thin lines are what was logged, thick ones running medians."
    ]
    if table is None:
        texts.append("This method logs no spread of features, so nothing is said of collapse.")
    charts = pretrain_charts(logged)
    if not charts:
        return Section("Training", warnings=("Nothing was logged, so there is no curve.",))
    return Section("Training", tuple(texts), (table,) if table else (), charts=charts, warnings=collapse_note(logged))


def _plans(settings: Mapping[str, JsonValue]) -> Section:
    ids = _ids(settings)
    if not ids:
        raise DataError("config.json names no dataset, so its plans cannot be looked up.")
    plans = load_plans(ids[0], str(settings.get("plans_name", "plans")))
    lead = f"Plans '{plans.plans_name}' of {plans.dataset_name}, as they are now."
    return why_section("What the plans decided, and why", plans.model_dump(mode="json"), lead)


def _ids(settings: Mapping[str, JsonValue]) -> list[int]:
    given = settings.get("dataset_ids")
    return [number for number in given if isinstance(number, int)] if isinstance(given, list) else []


def _wanted_steps(settings: Mapping[str, JsonValue]) -> int | None:
    training = settings.get("training")
    steps = training.get("num_steps") if isinstance(training, dict) else None
    return steps if isinstance(steps, int) else None
