"""The benchmark of what a histogram gives away: its table is of the cases it says, and replaces only its own part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def giveaway(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import giveaway

    return giveaway


def test_table_of_a_few_cases(giveaway) -> None:  # type: ignore[no-untyped-def]
    from headctssl.ingest.phantom.make import make_case
    from headctssl.metrics.histogram import head_histogram
    from headctssl.volume.head import find_head

    features, truth, subjects = giveaway.cases("laptop", 10, 4, 1)
    assert features.shape[0] == truth.shape[0] == 10
    assert np.unique(subjects).size == 8
    made = make_case(4, "laptop", case=7)
    head = find_head(made.volume.hu, made.volume.spacing_mm)
    assert np.array_equal(features[6], head_histogram(made.volume.hu, head.mask))
    assert truth[6].tolist() == [made.labels[name] for name in ("IPH", "IVH", "SDH")]


def test_only_the_part_of_the_profile_is_renewed(giveaway, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = tmp_path / "page.md"
    page.write_text(giveaway.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    before = page.read_text(encoding="utf-8")
    giveaway.renew(page, "laptop", ["| one |", "| two |"])
    text = page.read_text(encoding="utf-8")
    assert "| one |\n| two |" in text
    mark = giveaway.MARK.format(profile="laptop")
    assert text.split(mark)[0] == before.split(mark)[0]
    assert text.split(mark)[1].split(giveaway.END)[1] == before.split(mark)[1].split(giveaway.END)[1]
