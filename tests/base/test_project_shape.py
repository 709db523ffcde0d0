"""Project shape: layering, public names, console scripts, docstrings, JSON format numbers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import headctssl
from headctssl.cli.main import COMMANDS

ROOT = Path(headctssl.__file__).parent
PROJECT = ROOT.parent
STAGES = [
    "volume",
    "dataset",
    "ingest",
    "planning",
    "preprocessing",
    "loading",
    "networks",
    "methods",
    "metrics",
    "training",
    "finetuning",
    "inference",
    "evaluation",
    "zoo",
    "reporting",
    "cli",
]
BASE = {
    "errors",
    "paths",
    "settings",
    "seeding",
    "types",
    "contract",
    "presets",
    "console",
    "families",
    "plugins",
    "locks",
}
HEAVY = {"torch", "SimpleITK", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "pydantic", "nibabel", "blosc2"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_lower_stages_or_the_base(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in {"__init__", "__main__"}:
        return
    own = -1 if len(parts) == 1 else STAGES.index(parts[0])
    for name in imported(path):
        if not name.startswith("headctssl."):
            continue
        target = name.split(".")[1]
        if target in BASE or name == "headctssl.__version__":
            continue
        assert target in STAGES, f"{path} imports {name}: not a stage and not in the base"
        assert STAGES.index(target) <= own, f"{path} imports the later stage {name}"


def test_base_and_command_modules_import_nothing_heavy() -> None:
    code = "import sys, importlib\n"
    code += "".join(f"importlib.import_module('headctssl.cli.{name}')\n" for name in COMMANDS)
    code += "import headctssl, headctssl.cli.main\n"
    code += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_starts_with_its_name() -> None:
    for path in modules():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert doc, f"{path} has no docstring"
        assert ":" in doc.splitlines()[0], f"{path}: first line should read 'Name: what it does.'"


def test_public_names_resolve_and_no_subpackage_shadows_them() -> None:
    assert sorted(headctssl.__all__) == list(headctssl.__all__)
    first = {name: getattr(headctssl, name) for name in headctssl.__all__}
    for info in pkgutil.walk_packages([str(ROOT)], "headctssl."):
        if info.name != "headctssl.__main__":
            importlib.import_module(info.name)
    for name, value in first.items():
        assert getattr(headctssl, name) is value
        assert callable(value), name


def test_console_scripts_are_the_table_of_commands() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    scripts = project["project"]["scripts"]
    assert scripts.pop("headct") == "headctssl.cli.main:main"
    assert scripts == {f"headct_{name}": f"headctssl.cli.{name}:main" for name in COMMANDS}
    for target in scripts.values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module(f"headctssl.cli.{name}").main
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    assert stop.value.code == 0
    assert f"headct_{name}" in capsys.readouterr().out


REQUIRED = {
    "compare": ["-d", "1", "--encoders", "vit_s"],
    "convert": ["SOURCE", "-d", "1", "--from", "folder"],
    "demo": [],
    "embed": ["-i", "x", "-w", "y", "-o", "z"],
    "estimate": ["-d", "1", "-m", "mae"],
    "evaluate": ["-d", "1", "-w", "x"],
    "finetune": ["-d", "1", "-w", "x"],
    "predict": ["-i", "x", "-w", "y", "-o", "z"],
    "pretrain": ["-d", "1", "-m", "mae"],
    "report": ["RUN"],
    "reproduce": ["RUN"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flag_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module(f"headctssl.cli.{name}").main
    with pytest.raises(SystemExit) as stop:
        command([*REQUIRED.get(name, ["-d", "1"]), "--linear_probing_please"])
    assert stop.value.code == 2
    assert "--linear_probing_please" in capsys.readouterr().err


def test_no_main_blocks_outside_main_module() -> None:
    for path in modules():
        if path.name != "__main__.py":
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not any(line.startswith("if __name__ ==") for line in lines), path
