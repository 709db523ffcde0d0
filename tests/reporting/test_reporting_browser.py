"""Reports in a browser: at the width of a phone and of a desk, light and dark, nothing sticks out or is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_browser import Browser, find_browser
from report_folders import make_comparison, make_curve, make_evaluation, make_evidence, make_typed

from headctssl.cli.main import main
from headctssl.paths import ROOT_KINDS
from headctssl.reporting.report import report

pytestmark = pytest.mark.evidence

LONG = ("x" * 120, "<script>alert(1)</script>", "subdural haemorrhage, chronic and acute, either side")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A page of every kind."""
    root = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            (root / kind).mkdir()
            patch.setenv(f"headctssl_{kind}", str(root / kind))
        assert main(["make_phantom", "-d", "1", "-n", "30", "--profile", "laptop", "--quiet"]) == 0
        assert main(["plan_and_preprocess", "-d", "1", "--quiet"]) == 0
        few = ["--set", "training.num_steps=40", "--set", "training.batch_size=4", "--num_workers", "0", "--quiet"]
        results = root / "results" / "Dataset001_Phantom"
        found = []
        for method, config in (("dino", "vit_test"), ("mae", "resenc_test")):
            assert main(["pretrain", "-d", "1", "-m", method, "-c", config, *few]) == 0
            found.append(results / "pretrain" / f"{method}__{config}__plans" / "report.html")
        head = ["--set", "training.num_epochs=3", "--num_workers", "0", "--quiet"]
        assert main(["finetune", "-d", "1", "-w", str(found[0].parent), *head]) == 0
        found += results.glob("finetune/*/fold_0/report.html")
        assert main(["evaluate", "-d", "1", "-w", str(found[-1].parent), "--split", "all", "--quiet"]) == 0
        found += results.glob("evaluate/*/report.html")
        found.append(report(root / "raw" / "Dataset001_Phantom", quiet=True))
        make_comparison(root / "comparison")
        make_comparison(root / "odd", methods=tuple(f"m{k}" for k in range(9)), labels=LONG, failing=5)
        make_evaluation(root / "evaluation", labels=LONG)
        make_evidence(root / "evaluation", labels=LONG)
        make_typed(root / "raw", root / "typed")
        make_curve(root / "curve", labels=LONG)
        made = ("comparison", "odd", "evaluation", "typed", "curve")
        found += [report(root / name, quiet=True) for name in made]
        assert len(found) == 10
    return found


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_sticks_out_and_nothing_is_asked_for(pages: list[Path], tmp_path: Path, width: int, dark: bool) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    with Browser(program, tmp_path / "profile") as browser:
        for page in pages:
            seen = browser.show(page, width, dark=dark)
            assert seen.sideways <= 0, f"{page}: {seen.outside}"
            assert seen.outside == [], page
            assert seen.clipped == [], page
            assert seen.complaints == [], page
            assert seen.requests == [], page
            back, front = browser.evaluate(
                "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
            )
            light = [sum(map(int, colour[4:-1].split(","))) for colour in (back, front)]
            assert (light[0] < light[1]) == dark, "the page follows the scheme of the system"


def test_the_browser_test_can_fail(tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body><div style='width:2000px'>wide</div><img src='missing.png'><script>console.error('no')"
        "</script><div class='charts'><svg viewBox='0 0 100 50' width='300'><text x='90' y='20'>cut off here</text>"
        "<text x='10' y='20'>one</text><text x='12' y='20'>two</text></svg></div></body>"
    )
    with Browser(program, tmp_path / "profile") as browser:
        seen = browser.show(page, 390, dark=False)
    assert seen.sideways > 1000
    assert seen.outside
    assert [text.partition(":")[0] for text in seen.clipped] == ["outside", "overlap"]
    assert seen.complaints
    assert any(url.endswith("missing.png") for url in seen.requests)
