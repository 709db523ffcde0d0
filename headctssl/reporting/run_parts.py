"""Run parts: what the pages of all runs share: settings, reasons, versions, and texts of values with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from headctssl.contract import Contract
from headctssl.errors import DataError
from headctssl.reporting.page import Section, Table, as_table
from headctssl.reporting.svg import shortened
from headctssl.settings import JsonValue, Settings, read_json

__all__ = [
    "BANNER",
    "CURVE_FILE",
    "decision_table",
    "environment_section",
    "interval_text",
    "is_series",
    "number",
    "optional",
    "read_object",
    "setting_rows",
    "settings_section",
    "why_section",
]

BANNER = (
    "Not for sharing: this page shows case ids and may show slices of scans. "
    "Research only: nothing on it may be used for the care of a patient."
)

CURVE_FILE = "learning_curve.json"

S = TypeVar("S", bound=Settings)

_MOST_ROWS = 400
_LONGEST_VALUE = 400


def is_series(folder: Path) -> bool:
    """Whether a folder holds the folds or draws of a fine-tuning run."""
    return any(folder.glob("fold_*/config.json")) or any(folder.glob("draw_*/fold_*/config.json"))


def read_object(path: Path, do: str = "Make the file again with the command that wrote it.") -> dict[str, JsonValue]:
    """The object in a JSON file, whatever version wrote it.

    Args:
        path: the file.
        do: what to do about a damaged one.

    Raises:
        DataError: the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"There is no {path.name}.", got=path.parent.name, expected=path.name, do=do) from None
    except ValueError as error:
        raise DataError(f"{path.name} is damaged.", got=str(error)[:120], expected="a JSON object", do=do) from None
    if not isinstance(content, dict):
        raise DataError(f"{path.name} is damaged.", got=type(content).__name__, expected="a JSON object", do=do)
    return content


def optional(path: Path, model: type[S]) -> S | None:
    """A JSON file in its model, or None where there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    return read_json(path, model) if path.is_file() else None


def interval_text(value: float | None, interval: Sequence[float] | None) -> str:
    """A value with its interval, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def decision_table(settings: Mapping[str, JsonValue]) -> Table | None:
    """The decisions of a config.json or plans.json as a table, when it has them."""
    decisions = settings.get("decisions")
    if not isinstance(decisions, list) or not decisions:
        return None
    rows = [
        [str(d.get(k, "")) for k in ("what", "value", "because", "rule", "source")]
        for d in decisions[:_MOST_ROWS]
        if isinstance(d, dict)
    ]
    return as_table(("decision", "value", "because", "rule", "source"), rows)


def why_section(title: str, settings: Mapping[str, JsonValue], lead: str = "") -> Section:
    """What was decided and why, as a folded table; says so where nothing is noted."""
    table = decision_table(settings)
    if table is None:
        return Section(title, ("No decisions are noted.",), folded=True)
    return Section(title, (lead,) if lead else (), (table,), folded=True)


def setting_rows(settings: Mapping[str, JsonValue], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting as (dotted name, value), decisions left out."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if key == "decisions":
            continue
        if isinstance(value, dict):
            rows += setting_rows(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, json.dumps(value, ensure_ascii=False)))
    return rows


def settings_section(settings: Mapping[str, JsonValue]) -> Section:
    """Every setting of a run, folded."""
    rows = [(name, shortened(value, _LONGEST_VALUE)) for name, value in setting_rows(settings)[:_MOST_ROWS]]
    return Section("All settings", ("As config.json has them.",), (as_table(("setting", "value"), rows),), folded=True)


def environment_section(run: Path) -> Section:
    """Versions and hardware, folded; says so where environment.json is missing.

    Args:
        run: folder of the run.

    Raises:
        DataError: environment.json is damaged.
    """
    title = "Software and machine"
    if not (run / "environment.json").is_file():
        return Section(title, warnings=("environment.json is missing: versions and hardware are not known.",))
    content = read_object(run / "environment.json")
    packages = content.pop("packages", [])
    rows = setting_rows(content)
    listed = packages if isinstance(packages, list) else []
    pairs = [(str(p[0]), str(p[1])) for p in listed if isinstance(p, list) and len(p) == 2]
    tables = (as_table(("item", "value"), rows, "Machine"), as_table(("package", "version"), pairs, "Packages"))
    return Section(title, tables=tables, folded=True)


def contract_of(run: Path) -> Contract | None:
    """The contract of a run, None where it has none yet.

    Raises:
        DataError: contract.json is damaged.
    """
    return optional(run / "contract.json", Contract)
