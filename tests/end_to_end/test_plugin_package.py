"""Plug-in package: the example of the documentation is installed by pip, listed, planned, trained and fine-tuned."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.evidence

DOCUMENTATION = Path(__file__).parents[2] / "documentation"
EXAMPLE = DOCUMENTATION / "examples" / "headctssl-example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example, without a network."""
    base = tmp_path_factory.mktemp("plugin")
    source, target = base / "source", base / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", target, source], check=True)
    return target


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with data roots of its own."""
    base = tmp_path_factory.mktemp("roots")
    names = ("raw", "preprocessed", "results")
    for name in names:
        (base / name).mkdir()
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, **{f"headctssl_{name}": str(base / name) for name in names}, "OMP_NUM_THREADS": "1"}


def headct(world: dict[str, str], *words: object, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = world if site is None else {**world, "PYTHONPATH": str(site)}
    call = [sys.executable, "-m", "headctssl", *(str(word) for word in words)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, check=False, timeout=600)


def documented() -> list[list[str]]:
    """The commands of the page without pip, as words after `headct_`."""
    page = (DOCUMENTATION / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = [shlex.split(line) for line in block.splitlines()]
    return [[words[0].removeprefix("headct_"), *words[1:]] for words in lines if words[0].startswith("headct_")]


def test_the_example_is_installed_trained_and_fine_tuned(site: Path, world: dict[str, str]) -> None:
    for words in (("make_phantom", "-d", 1, "-n", 12, "--seed", 1), ("plan_and_preprocess", "-d", 1)):
        done = headct(world, *words, site=site)
        assert done.returncode == 0, done.stdout + done.stderr
    listing, *runs = documented()
    listed = headct(world, *listing, site=site)
    assert re.search(r"^ denoise +│ from the package headctssl-example", listed.stdout, re.M), listed.stderr
    assert re.search(r"^ strided_s +│ strided +│ three strided convolutions", listed.stdout, re.M)

    def short(steps: int) -> list[str]:
        small = (f"training.num_steps={steps}", "training.batch_size=4", "training.num_workers=0")
        return ["--device", "cpu", *(word for text in small for word in ("--set", text))]

    results = Path(world["headctssl_results"])
    for words, steps in zip(runs, (20, 2), strict=True):
        done = headct(world, *words, *short(steps), site=site)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = next(results.glob("Dataset001_*/pretrain/denoise__strided_s__plans"))
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    again = headct(world, *runs[0], *short(20), "--continue", site=site)
    assert again.returncode == 0, again.stderr
    tune = ("finetune", "-d", 1, "-w", folder, "--set", "training.num_epochs=1", "--device", "cpu", "--num_workers", 0)
    done = headct(world, *tune, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    # The weights are a built-in method's too: mae trains the package's encoder.
    mae = headct(world, "pretrain", "-d", 1, "-m", "mae", "-c", "strided_s", *short(2), site=site)
    assert mae.returncode == 0, mae.stdout + mae.stderr
    gone = headct(world, *tune, "--overwrite")
    assert gone.returncode == 2
    assert "Unknown encoder family 'strided'" in gone.stderr
    unlisted = headct(world, "pretrain", "--list")
    assert unlisted.returncode == 0
    assert "denoise" not in unlisted.stdout
