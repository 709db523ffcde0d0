"""Comparison: the table and pictures of documentation/comparing.md, from one headct_compare run on the phantom.

``python -m benchmarks.comparison FOLDER`` makes the data in FOLDER (kept, so that a stopped run goes on), compares, and
renews the page; ``--page_only`` renews the page from documentation/evidence alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from headctssl.evaluation.comparison import Comparison, Ranked
from headctssl.settings import read_json

__all__ = ["main", "table", "write_page"]

DOCUMENTATION = Path(__file__).parents[1] / "documentation"
PAGE = DOCUMENTATION / "comparing.md"
EVIDENCE = DOCUMENTATION / "evidence"
BEGIN, END = "<!-- table: made of evidence/compare.json -->", "<!-- end of table -->"

DATASET = 1
SEED = 5201
"""Of the phantom: none that the profile was calibrated on."""

SCANS = 240
CALL = (
    "-d", str(DATASET), "--encoders", "vit_tiny", "resenc_s", "--methods", "dino", "mae", "lejepa",
    "--adapt", "linear", "full", "--few_shots", "8", "all", "--seeds", "3", "--num_jobs", "2", "--device", "cpu",
)  # fmt: skip
"""Flags of headct_compare."""


def main(argv: list[str] | None = None) -> int:
    """Make the data where they are missing, compare, and renew the page."""
    parser = argparse.ArgumentParser(description="The table of documentation/comparing.md.")
    parser.add_argument("folder", type=Path, nargs="?", help="for the data roots; kept")
    parser.add_argument("--page_only", action="store_true", help="only renew the page from documentation/evidence")
    args = parser.parse_args(argv)
    if not args.page_only:
        if args.folder is None:
            parser.error("a folder for the data is needed")
        code = _compare(args.folder.absolute())
        if code:
            return code
    write_page()
    return 0


def _compare(folder: Path) -> int:
    from headctssl.cli.main import main as headct

    for kind in ("raw", "preprocessed", "results"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        os.environ[f"headctssl_{kind}"] = str(folder / kind)
    name = f"Dataset{DATASET:03d}_Phantom"
    if not (folder / "raw" / name / "dataset.json").is_file():
        make = ["make_phantom", "-d", str(DATASET), "-n", str(SCANS), "--seed", str(SEED), "--profile", "laptop"]
        headct(make) and sys.exit("the phantom could not be made")
    headct(["plan_and_preprocess", "-d", str(DATASET)]) and sys.exit("the phantom could not be preprocessed")
    began = time.monotonic()
    code = headct(["compare", *CALL])
    print(f"headct_compare took {(time.monotonic() - began) / 60:.1f} minutes")
    made = folder / "results" / name / "compare" / "comparison"
    EVIDENCE.mkdir(exist_ok=True)
    for source, target in (("comparison.json", "compare.json"), ("learning_curves.png", "compare-curves.png"),
                           ("radar.png", "compare-radar.png")):  # fmt: skip
        shutil.copyfile(made / source, EVIDENCE / target)
    return code


def write_page(page: Path = PAGE, evidence: Path = EVIDENCE) -> None:
    """Put the table between its marks.

    Args:
        page: the Markdown file, with the marks.
        evidence: folder of compare.json.
    """
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = table(read_json(evidence / "compare.json", Comparison))
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def table(comparison: Comparison) -> str:
    """The rankings as Markdown.

    Args:
        comparison: the content of comparison.json.
    """
    lines: list[str] = []
    for test in comparison.tests:
        for budget in comparison.grid.label_budgets:
            count = "all labels" if budget is None else f"{budget} patients per class and label"
            lines += [f"**{count}**, {test.num_cases} test cases of {test.num_subjects} patients", ""]
            lines += [
                "| rank (95 %) | arm | mean AUROC (95 %) | over seeds | minus from scratch (95 %) | p (Holm) | "
                "pretraining h | adaptation h |",
                "|---|---|---|---|---|---|---|---|",
            ]
            lines += [*_rows(comparison.ranked(test.dataset_name, budget)), ""]
    return "\n".join(lines)


def _rows(ranked: tuple[Ranked, ...]) -> Iterator[str]:
    for entry in ranked:
        cells = (
            str(entry.rank) + ("" if entry.rank_ci is None else f" ({entry.rank_ci[0]} to {entry.rank_ci[1]})"),
            entry.arm + (f" ({entry.overlap})" if entry.overlap else ""),
            _value(entry.mean_auroc, entry.mean_auroc_ci),
            "" if entry.seed_spread is None else f"±{entry.seed_spread:.3f}",
            _value(entry.difference, entry.difference_ci, sign="+"),
            "" if entry.p_holm is None else f"{entry.p_holm:.3f}",
            "" if entry.cost.pretraining_hours is None else f"{entry.cost.pretraining_hours:.3f}",
            "" if entry.cost.finetuning_hours is None else f"{entry.cost.finetuning_hours:.4f}",
        )
        yield "| " + " | ".join(cells) + " |"


def _value(value: float | None, interval: tuple[float, float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    ends = "" if interval is None else f" ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"
    return f"{value:{sign}.3f}{ends}"


if __name__ == "__main__":
    sys.exit(main())
