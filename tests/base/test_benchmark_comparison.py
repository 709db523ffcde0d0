"""The example of documentation/comparing.md: its table is that of the kept file, and its call is one that parses."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from headctssl.cli.compare import add_arguments
from headctssl.evaluation.comparison import Arm, Comparison, Cost, Grid, Ranked, TestSet
from headctssl.evaluation.grid import split_overrides
from headctssl.settings import write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def comparison(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import comparison

    return comparison


def test_the_page_holds_what_the_file_holds(comparison) -> None:  # type: ignore[no-untyped-def]
    text = comparison.PAGE.read_text(encoding="utf-8")
    between = text.split(comparison.BEGIN)[1].split(comparison.END)[0]
    assert between.strip() == comparison.content().strip(), "run: python -m benchmarks.comparison --page_only"


def test_the_call_parses_and_has_the_settings_of_learning(comparison) -> None:  # type: ignore[no-untyped-def]
    from benchmarks import learning
    from benchmarks.learning_task import overrides

    parser = ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    args = parser.parse_args(comparison.call(comparison.METHODS, learning.ENCODERS, comparison.SEEDS, 2))
    pretrain, finetune = split_overrides(args.overrides)
    assert pretrain == tuple(sorted(overrides(learning.SCANS, learning.BATCH)))
    assert finetune == ()
    assert set(args.methods) >= {"dino", "mae", "lejepa"}
    assert len(args.encoders) == 2
    assert args.few_shots == [8, "all"]


def test_a_comparison_becomes_a_table(comparison, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    grid = Grid(
        dataset_ids=(1,), pretrain_ids=(1,), encoders=("vit_tiny",), adapt=("linear",), label_budgets=(8,), seeds=2,
        draws=1,
    )  # fmt: skip
    test = TestSet(
        dataset_id=1, dataset_name="Dataset001_X", num_cases=9, num_subjects=8, digest="0" * 16, labels=("a",),
        positives=(4,), negatives=(5,),
    )  # fmt: skip
    arm = Arm(name="mae/vit_tiny/linear", kind="pretrained", method="mae", encoder="vit_tiny", adapt="linear")
    ranked = Ranked(
        dataset_name="Dataset001_X", label_budget=8, arm=arm.name, num_seeds=2, num_runs=2, mean_auroc=0.7,
        mean_auroc_ci=(0.6, 0.8), seed_spread=0.01, rank=1, rank_ci=(1, 2), reference="scratch/vit_tiny/full",
        difference=0.1, difference_ci=(-0.05, 0.2), p_value=0.02, p_holm=0.04, overlap="unchecked",
        cost=Cost(pretraining_hours=0.25, finetuning_hours=0.0125),
    )  # fmt: skip
    found = Comparison(
        package_version="0", name="x", grid=grid, arms=(arm,), tests=(test,), cells=(), ranking=(ranked,),
        num_resamples=100,
    )  # fmt: skip
    line = (
        "| 1 (1 to 2) | mae/vit_tiny/linear (unchecked) | 0.700 (0.600 to 0.800) | ±0.010 | "
        "+0.100 (-0.050 to +0.200) | 0.040 | 0.250 | 0.0125 |"
    )
    assert line in comparison.table(found)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{comparison.BEGIN}\nwritten before\n{comparison.END}\nafter\n")
    comparison.write_page(page, tmp_path)
    assert "Not run yet" in page.read_text()
    write_json(tmp_path / "compare.json", found)
    comparison.write_page(page, tmp_path)
    text = page.read_text()
    assert line in text
    assert "**A part of what `make compare` runs**; not run: encoders resenc_s; objectives" in text
    assert "written before" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_a_difference_from_scratch_names_the_encoder_that_it_is_from() -> None:
    from headctssl.reporting.comparison_words import _against, references

    def ranked(arm: str, reference: str, difference: float) -> Ranked:
        return Ranked(
            dataset_name="Dataset001_X", label_budget=None, arm=arm, num_seeds=1, num_runs=1, mean_auroc=0.6, rank=1,
            reference=reference,
            difference=difference, difference_ci=(difference - 0.01, difference + 0.01), p_holm=0.01, cost=Cost(),
        )  # fmt: skip

    rows = (
        ranked("histogram", "scratch/vit_tiny/full", 0.1),
        ranked("mae/resenc_s/linear", "scratch/resenc_s/full", -0.3),
        ranked("mae/vit_tiny/linear", "scratch/vit_tiny/full", 0.005),
    )
    told = _against(rows)
    assert "better than scratch/vit_tiny/full: histogram" in told
    assert "worse than scratch/resenc_s/full: mae/resenc_s/linear" in told
    assert "1 cannot be told from" in told
    assert references(rows).endswith("those of histogram from scratch/vit_tiny/full.")
    assert references(rows[1:]) == ""
