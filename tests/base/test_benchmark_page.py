"""The page of benchmarks: its tables are those of the JSON files, with every miss and its cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import page

    return page


def test_the_page_holds_what_the_files_hold(page) -> None:  # type: ignore[no-untyped-def]
    text = page.PAGE.read_text(encoding="utf-8")
    between = text.split(page.BEGIN)[1].split(page.END)[0]
    assert between.strip() == page.tables().strip(), "run: python -m benchmarks.page"


def test_every_miss_of_the_kept_files_names_its_cause() -> None:
    for file in (ROOT / "benchmarks").glob("*.json"):
        for row in json.loads(file.read_text())["rows"]:
            if row.get("verdict") == "MISSED":
                assert row["cause"], f"{file.name}: {row['what']}"


def test_rows_become_lines_and_misses_get_a_list(page, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from benchmarks.rows import faster, value, within, write_json

    rows = [
        faster("fast work", [1.0], [20.0], "MONAI", 12.0),
        within("slow work", [3.0], [1.0], "floor", 1.6, cause="the disk"),
        value("speed", [12300.0], "cases/s"),
    ]
    write_json(tmp_path / "store.json", rows, ["numpy"], 1.0)
    document = tmp_path / "page.md"
    document.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write_page(document, tmp_path)
    text = document.read_text()
    assert "| store | fast work | 1 s | 20 s (MONAI) | 20 | at least 12x | reached |" in text
    assert "| store | slow work | 3 s | 1 s (floor) | 3 | at most 1.6x | MISSED |" in text
    assert "- store, slow work, floor: the disk." in text
    assert "| store | speed | 12,300 cases/s |  |  |" in text
    assert "numpy" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
