"""Documentation: commands parse or run, links lead somewhere, the tree and the settings are as the code has them."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from headctssl.cli.main import COMMANDS
from headctssl.methods import METHODS
from headctssl.presets import ENCODER_PRESETS
from headctssl.reporting.settings_page import settings_markdown

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "documentation").rglob("*.md"))]
PAGES += sorted((PROJECT / "headctssl_raw_template").rglob("*.md"))
Command = Callable[..., tuple[int, str, str]]


def blocks(page: Path, mark: str | None = None) -> list[list[str]]:
    """The bash blocks of a page as lists of commands; with a mark, only those after `<!-- test: MARK -->`."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    pattern = (rf"<!-- test: {mark} -->\n" if mark else "") + r"```(?:bash|sh|console)\n(.*?)```"
    return [[line.strip() for line in block.splitlines() if line.strip()] for block in re.findall(pattern, text, re.S)]


def headct_commands(page: Path) -> list[list[str]]:
    found = []
    for block in blocks(page):
        for line in block:
            words = shlex.split(line, comments=True)
            if words and (words[0].startswith("headct_") or words[0] == "headct"):
                found.append(words)
    return found


def parser_of(name: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"headct_{name}", allow_abbrev=False)
    import_module(f"headctssl.cli.{name}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_every_documented_command_parses(page: Path) -> None:
    for words in headct_commands(page):
        name, rest = (words[1], words[2:]) if words[0] == "headct" else (words[0].removeprefix("headct_"), words[1:])
        assert name in COMMANDS, f"{page.name}: {' '.join(words)}"
        if not {"--help", "--list"} & set(rest):
            parser_of(name).parse_args(rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_every_named_command_exists(page: Path) -> None:
    named = set(re.findall(r"`(headct_[a-z_]+)", page.read_text(encoding="utf-8"))) - set(ENCODER_PRESETS)
    assert named <= {f"headct_{name}" for name in COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_tree_is_the_top_level() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## The top level")[1].split("```")[1]
    for name in re.findall(r"^([\w.]+)/? ", tree, re.M):
        assert (PROJECT / name).exists(), name
    for folder in ("headctssl", "headctssl_raw_template", "documentation", "tests"):
        assert folder in tree


def test_settings_page_is_generated_from_the_code() -> None:
    page = (PROJECT / "documentation" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_markdown(), "run: make docs"


def test_every_method_has_a_page() -> None:
    for name in METHODS:
        assert (PROJECT / "documentation" / "methods" / f"{name}.md").is_file(), name


def test_the_five_minutes_of_the_readme_run(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands as printed, shortened only by fewer scans and steps, which the test adds at the end."""
    (block,) = blocks(PROJECT / "README.md", "run")
    monkeypatch.setenv("PWD", str(tmp_path))
    values = {"PWD": str(tmp_path)}
    shorter = {
        "make_phantom": ["-n", "12"],
        "pretrain": ["--set", "training.num_steps=2"],
        "finetune": ["--set", "training.num_epochs=1"],
    }
    ran = []
    for line in block:
        words = shlex.split(re.sub(r"\$(\w+)", lambda m: values[m.group(1)], line))
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            values[name] = value
            monkeypatch.setenv(name, value)
            continue
        name = words[0].removeprefix("headct_")
        code, out, err = command(name, *words[1:], *shorter.get(name, []))
        assert code == 0, f"{line}\n{out}\n{err}"
        ran.append(name)
    assert ran == ["make_phantom", "plan_and_preprocess", "pretrain", "finetune"]
