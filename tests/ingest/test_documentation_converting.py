"""Documentation of converting: its commands run, one after the other, on a small export, and do what the page says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from converter_sources import series

from headctssl.dataset.table import read_table
from headctssl.ingest.selection import Selection

PAGE = Path(__file__).parents[2] / "documentation" / "converting.md"
Command = Callable[..., tuple[int, str, str]]
COMMON = {
    "KVP": "120",
    "StudyDescription": "CT HEAD WITHOUT IV CONTRAST",
    "SliceThickness": "8",
    "ContrastBolusAgent": "",
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    source = tmp_path / "export"
    for number, kernel in enumerate(("Hr40s", "Hr64h"), start=1):
        tags = {**COMMON, "ConvolutionKernel": kernel}
        series(source / kernel, number, head=True, study_uid="1.2.3", series_number=number, tags=tags)
    return source


def test_the_commands_of_the_page_run(
    export: Path, roots: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The page of the report costs a second for each command; it has tests of its own.
    monkeypatch.setattr("headctssl.reporting.report.report", lambda *_, **__: None)
    blocks = re.findall(r"<!-- test: run -->\n```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    kept = {}
    for line in "".join(blocks).splitlines():
        words = [str(export) if word == "/data/export" else word for word in shlex.split(line, comments=True)]
        name = words[0].removeprefix("headct_")
        code, out, err = command(name, *words[1:], "--num_workers", 1)
        assert code == 0, f"{line}\n{out}\n{err}"
        dataset = words[words.index("-d") + 1]
        table = next(roots.glob(f"Dataset{int(dataset):03d}_*/cases.csv"), None) if roots.exists() else None
        kept[line.split("#")[0].strip()] = 0 if table is None else len(read_table(table))
    # By rules, of a soft and a bone series: thickness and voltage, no bone kernel, contrast not known; one; soft.
    assert list(kept.values()) == [0, 2, 2, 2, 2, 1, 2, 1, 1]


def test_the_page_names_every_setting_of_the_selection() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in Selection.model_fields:
        assert f"| `{name}` |" in text
