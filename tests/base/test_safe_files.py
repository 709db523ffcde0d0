"""Safe files: no file that a user may have got from someone else can run code when it is opened."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import headctssl

SOURCES = sorted(Path(headctssl.__file__).parent.rglob("*.py"))
UNPICKLERS = {
    "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve",
    "read_pickle", "load_module", "unsafe_load", "full_load",
}  # fmt: skip


def dangers(text: str) -> Iterator[str]:
    """Calls and imports by which reading a file could run code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"import of {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {k.arg: k.value for k in node.keywords}
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if node.func.attr in UNPICKLERS:
            yield f"call of {node.func.attr}"
        if node.func.attr in ("load", "load_file") and owner in ("torch", "np", "numpy", "yaml"):
            wanted = {"torch": "weights_only", "np": "allow_pickle", "numpy": "allow_pickle"}.get(owner)
            value = given.get(wanted)
            right = isinstance(value, ast.Constant) and value.value is (owner == "torch")
            if not (right or (owner in ("np", "numpy") and value is None)):
                yield f"{owner}.{node.func.attr} without {wanted}"
        if node.func.attr == "trust_remote_code" or "trust_remote_code" in given:
            yield "trust_remote_code"


@pytest.mark.parametrize("text", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)",
    "np.load(p, allow_pickle=True)", "import pickle", "from joblib import load", "pd.read_pickle(p)", "yaml.load(p)",
])  # fmt: skip
def test_what_is_not_safe_is_found(text: str) -> None:
    assert list(dangers(text))


def test_every_artefact_is_loaded_safely() -> None:
    assert len(SOURCES) > 100
    found = {path.name: list(dangers(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {name: what for name, what in found.items() if what} == {}
    loads = [path.name for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert loads, "the test would say nothing if checkpoints were loaded by another function"
    assert not list(dangers("torch.load(p, weights_only=True)\nnp.load(p)"))
