"""Methods page: the table of methods and encoders is what the code has, in the documentation and under --list."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headctssl.methods import METHODS, method_class
from headctssl.planning.relative_cost import YARDSTICKS, relative_cost, yardstick
from headctssl.presets import ENCODER_PRESETS, METHOD_FACTS, pair_refusal
from headctssl.reporting.methods_page import methods_markdown

PAGE = Path(__file__).parents[2] / "documentation" / "methods" / "README.md"
FAMILIES = list(dict.fromkeys(p.settings.family for p in ENCODER_PRESETS.values()))


def test_the_page_is_generated_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == methods_markdown(), "run: make docs"


def test_the_pairs_of_the_page_are_those_of_the_code() -> None:
    table = methods_markdown().split("## Pairs")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    columns, rows = lines[0][1:], lines[2:]
    assert sorted(columns) == sorted(FAMILIES)
    assert [re.findall(r"\[(\w+)\]", row[0]) for row in rows] == [[name] for name in METHODS]
    for name, row in zip(METHODS, rows, strict=True):
        for family, cell in zip(columns, row[1:], strict=True):
            allowed = {
                pair_refusal(name, p.name) is None for p in ENCODER_PRESETS.values() if p.settings.family == family
            }
            assert allowed == {cell == "yes"}, (name, family)


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_relative_to_mae(method: str) -> None:
    mae = method_class("mae").Settings
    assert relative_cost("mae", mae, mae) == 1.0
    cost = relative_cost(method, method_class(method).Settings, mae)
    assert 0.3 < cost < 30
    facts = METHOD_FACTS[method]
    whole = all(share == 1.0 for _, share in facts.student_views)
    if whole and facts.teacher_views and yardstick(method) == YARDSTICKS[0]:
        assert cost > 1.5, "a student on whole views and a teacher cost more than a quarter of the tokens of one view"


def test_list_needs_no_other_flag(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("pretrain", "--list")
    assert code == 0, err
    for name in METHODS:
        assert re.search(rf"^ {name} +│.*│ +\d+\.\d+ +│ +\d+", out, re.M), name
        assert METHOD_FACTS[name].paper.split(",")[0] in out
    for preset in ENCODER_PRESETS.values():
        assert (re.search(rf"^ {preset.name} ", out, re.M) is None) == preset.name.endswith("_test")
    for name in METHODS:
        if METHOD_FACTS[name].families is not None:
            assert f"{name} does not work with" in out
            assert METHOD_FACTS[name].why_families in out
    code, listed, _ = command("estimate", "--list")
    assert (code, listed) == (0, out)


def test_the_command_line_is_read_before_anything_heavy_is_imported() -> None:
    code = "import sys; from headctssl.cli import pretrain; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
