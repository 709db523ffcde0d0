"""Comparison: the table and pictures of documentation/comparing.md, one headct_compare run on the phantom.

``python -m benchmarks.comparison`` has the task of ``benchmarks.learning``: its phantom, its test cases and its
pretraining runs, which are reused where they are in the data roots and made where they are not. It goes on where it was
stopped, and renews the page. ``--page_only`` renews the page from documentation/evidence alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import learning
from benchmarks.learning_task import overrides
from headctssl.evaluation.comparison import Comparison, Ranked
from headctssl.reporting.comparison_words import does_not_show, does_show, references
from headctssl.settings import read_json

__all__ = ["call", "content", "main", "part_of", "table", "write_page"]

DOCUMENTATION = Path(__file__).parents[1] / "documentation"
PAGE = DOCUMENTATION / "comparing.md"
EVIDENCE = DOCUMENTATION / "evidence"
BEGIN, END = "<!-- table: made of evidence/compare.json -->", "<!-- end of table -->"

METHODS = learning.THRICE
BUDGETS = ("8", "all")
NOT_YET = "Not run yet: `make compare` fills this in.\n"
SEEDS = 2


def main(argv: list[str] | None = None) -> int:
    """Make the data where they are missing, compare, and renew the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description="Renew comparing.md.")
    parser.add_argument("--page_only", action="store_true", help="only renew the page from documentation/evidence")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="objectives")
    parser.add_argument("--encoders", nargs="+", default=learning.ENCODERS, help="encoders")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds")
    parser.add_argument("--num_jobs", type=int, default=2, help="single-threaded processes side by side")
    args = parser.parse_args(argv)
    if not args.page_only:
        code = _compare(args)
        if code:
            return code
    write_page()
    return 0


def call(methods: Sequence[str], encoders: Sequence[str], seeds: int, num_jobs: int) -> list[str]:
    """The command line of headct_compare; fine-tuning has the planner's settings.

    Args:
        methods: objectives.
        encoders: presets.
        seeds: how many.
        num_jobs: processes at a time.
    """
    words = ["-d", str(learning.TASK.dataset), "--encoders", *encoders, "--methods", *methods, "--adapt", "linear"]
    words += ["--few_shots", *BUDGETS, "--seeds", str(seeds), "--num_jobs", str(num_jobs), "--device", "cpu"]
    # The settings of benchmarks.learning, so that its runs are this comparison's.
    return [
        *words,
        *(word for text in overrides(learning.SCANS, learning.BATCH) for word in ("--set", f"pretrain.{text}")),
    ]


def _compare(args: argparse.Namespace) -> int:
    from headctssl.cli.main import main as headct
    from headctssl.paths import results_dataset

    learning.TASK.ensure_data()
    began = time.monotonic()
    code = headct(["compare", *call(args.methods, args.encoders, args.seeds, args.num_jobs)])
    print(f"headct_compare took {(time.monotonic() - began) / 60:.1f} minutes")
    if code:
        return code
    made = results_dataset(learning.TASK.dataset) / "compare" / "comparison"
    EVIDENCE.mkdir(exist_ok=True)
    for source, target in (("comparison.json", "compare.json"), ("learning_curves.png", "compare-curves.png"),
                           ("radar.png", "compare-radar.png")):  # fmt: skip
        shutil.copyfile(made / source, EVIDENCE / target)
    return 0


def write_page(page: Path = PAGE, evidence: Path = EVIDENCE) -> None:
    """Put the table between its marks.

    Args:
        page: the Markdown file, with the marks.
        evidence: folder of compare.json.
    """
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{content(evidence)}\n{END}{after}", encoding="utf-8")


def content(evidence: Path = EVIDENCE) -> str:
    """What stands between the marks: what was run, the rankings, what they show and do not show, and the pictures.

    Args:
        evidence: folder of compare.json and the pictures.
    """
    if not (evidence / "compare.json").is_file():
        return NOT_YET
    found = read_json(evidence / "compare.json", Comparison)
    done = sum(cell.status != "failed" for cell in found.cells)
    lines = [f"{done} of {len(found.cells)} runs; {found.grid.seeds} seed(s), {found.grid.draws} draw(s) each.", ""]
    lines += part_of(found)
    lines += [table(found), "What it shows:", "", *(f"- {text}" for text in does_show(found)), ""]
    lines += ["What it does not show:", "", *(f"- {text}" for text in does_not_show(found, True)), ""]
    lines += [f"- {note}" for note in found.notes]
    lines += ["", "![Mean AUROC over the label budget](evidence/compare-curves.png)", ""]
    lines += ["![AUROC per label](evidence/compare-radar.png)", ""]
    return "\n".join(lines)


def part_of(found: Comparison) -> list[str]:
    """A paragraph on what a smaller run than the whole one lacks; nothing where it lacks nothing.

    Args:
        found: the content of comparison.json.
    """
    lacking = [
        f"{name} {', '.join(missing)}"
        for name, missing in (
            ("encoders", [e for e in learning.ENCODERS if e not in found.grid.encoders]),
            ("objectives", [m for m in METHODS if m not in found.grid.methods]),
            ("seeds", [str(seed) for seed in range(found.grid.seeds, SEEDS)]),
        )
        if missing
    ]
    others = sorted(set(found.grid.pretrain_overrides) ^ set(overrides(learning.SCANS, learning.BATCH)))
    if not lacking and not others:
        return []
    words = f"**A part of what `make compare` runs**; not run: {'; '.join(lacking) or 'nothing'}."
    ours = [text for text in found.grid.pretrain_overrides if text in others]
    if ours:
        words += f" Pretraining was another one than in `make learning`: {', '.join(ours)}."
    return [words, ""]


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
            ranked = comparison.ranked(test.dataset_name, budget)
            lines += [*_rows(ranked), ""]
            lines += [references(ranked), ""] if references(ranked) else []
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
