"""Pages: text is shown as text, folders are left out, charts say what they draw, and what the demo says follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_html import Html, checked

from headctssl.contract import LabelSpec
from headctssl.errors import DataError, UsageError
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.metrics.outcome import Outcome
from headctssl.reporting.charts import (
    Line,
    bar_chart,
    histogram_chart,
    interval_chart,
    line_chart,
    radar_chart,
    reliability_chart,
    scatter_chart,
)
from headctssl.reporting.curves import RunLines, collapse_note, collapse_table, metric_lines, pretrain_charts
from headctssl.reporting.demo_page import Difference, difference_text, verdict
from headctssl.reporting.judged import examples, known_cases
from headctssl.reporting.metrics_parts import metrics_table, threshold_section
from headctssl.reporting.page import CaseCard, Page, Picture, Section, as_table, data_uri, without_paths, write_page
from headctssl.reporting.report import report
from headctssl.reporting.run_parts import interval_text, setting_rows
from headctssl.training.collapse import CollapseGuard

EVIL = "<script>alert(1)</script>"


def test_the_verdict_follows_the_interval() -> None:
    assert verdict(Difference(0.1, 0.02, 0.2)).startswith("Pretraining helped")
    assert verdict(Difference(-0.1, -0.2, -0.02)).startswith("Pretraining hurt")
    assert verdict(Difference(0.1, -0.02, 0.2)).startswith("No difference can be claimed")
    assert verdict(None).startswith("Nothing can be said")
    assert difference_text(Difference(0.1, -0.02, 0.2)) == "+0.100 (-0.020 to +0.200)"


def lines_of(**curves: list[float]) -> RunLines:
    length = max(map(len, curves.values()))
    return RunLines(
        tuple({"step": float(i), **{name: values[i] for name, values in curves.items()}} for i in range(length))
    )


def looked_at(every: int = 10, **curves: list[float]) -> RunLines:
    """Lines from step 1 on; the monitor looked at every tenth, with a rank that says nothing."""
    lines = [{**line, "step": line["step"] + 1} for line in lines_of(**curves).lines]
    found = {"monitor_rank_me": 1.05, "monitor_seconds": 0.1}
    return RunLines(tuple({**line, **found} if line["step"] % every == 0 else line for line in lines))


def test_the_page_says_of_collapse_what_the_guard_of_the_run_says() -> None:
    healthy, falling = [0.1] * 40, [0.1 * 0.9**i for i in range(40)]
    assert collapse_note(looked_at(embedding_std=healthy, embedding_rank=[2.0] * 40)) == ()
    for fallen in ({"feature_std": falling}, {"embedding_rank": [3.0] * 10 + [1.1] * 30}):
        logged = looked_at(embedding_std=healthy, **fallen)
        (finding,) = CollapseGuard().take_up(logged.lines)
        (note,) = collapse_note(logged)
        assert finding.text in note
        assert finding.sign in fallen
    assert collapse_note(looked_at(embedding_std=falling[:15])) == (), "one look is noise"
    assert collapse_note(looked_at(feature_std=falling)) == (), "a method that compares no scans"
    table = collapse_table(looked_at(feature_std=falling, embedding_std=healthy, monitor_feature_std=falling))
    assert table is not None
    assert {row[0]: row[-1].split(":")[0] for row in table.rows} == {
        "feature_std": "suspicious",
        "embedding_std": "no sign of collapse",
        "monitor_feature_std": "not judged",
        "monitor_rank_me": "no sign of collapse",
    }
    assert collapse_table(lines_of(loss=healthy)) is None


def every_chart(name: str) -> list[object]:
    x = [float(i) for i in range(400)]
    noisy = np.random.default_rng(0).normal(size=400).tolist()
    return [
        line_chart([Line(name, x, noisy)], name, name, title=name, smooth=True),
        line_chart([Line(name, [8, 64], [0.5, 0.7], [0.4, 0.6], [0.6, 0.8]), Line("b", [8, 64], [0.6, 0.7])], "labels",
                   "AUROC", title=name, log_x=True, chance=0.5, ticks=[(8, "8"), (64, name)], points=[(8, 0.5, name)]),
        interval_chart({name: {name: (0.7, 0.6, 0.8), "b": (0.5, None, None)}, "g": {"b": (0.6, 0.5, 0.7)}}, name,
                       title=name, chance=0.5),
        reliability_chart([(0.1, 0.2, 30), (0.9, 0.8, 30)], title=name),
        radar_chart({name: {"a": 0.7, "b": 0.8, name: 0.6}, "g": {"a": 0.5}}, title=name),
        scatter_chart(np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0]), (name, "predicted"), title=name),
        histogram_chart([1.0, 2.0, 2.0], name, title=name),
        bar_chart({name: 3, "b": 4}, "scans", title=name, whole=True),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [EVIL, "$\\frac{1}{0$", "a & b \"c\" 'd' -->", "x" * 200, "Ödem 出血"])
def test_names_are_shown_as_they_are_in_tables_charts_and_cases(tmp_path: Path, name: str) -> None:
    png = data_uri(b"no png")
    part = Section(name, (name,))
    card = CaseCard(name, ((name, name),), (Picture(name, png, name),), name, name)
    section = Section(
        name, (name,), (as_table((name,), [(name,)], name),), (Picture(name, png),), charts=tuple(every_chart(name)),
        warnings=(name,), cases=(card,), points=(name,), parts=(part,),
    )  # fmt: skip
    page = Page(name, name, (section, Section(name, folded=True)), ((name, name),), name, (name,))
    html = checked(write_page(tmp_path / "page.html", page))
    assert len(html.alts) == len(every_chart("a")) + 2
    assert html.said.count(name) >= 18
    assert "alert(1)" not in "".join(html.handlers)
    assert (EVIL in html.text) is False


def test_charts_are_told_in_words_and_take_the_colours_of_the_page() -> None:
    chart = line_chart([Line("loss", [1, 2, 3], [0.5, float("nan"), 0.25])], "step", "loss", title="Loss")
    assert 'aria-label="Loss. loss over step: loss from 0.5 at 1 to 0.25 at 3."' in chart.svg
    assert "var(--c1)" in chart.svg
    assert "#0000" not in chart.svg
    assert "http" not in chart.svg
    long = line_chart([Line("a", list(range(100_000)), [1.0] * 100_000)], "step", "a", title="a", smooth=True)
    assert len(long.svg) < 40_000, "a long run has a bounded curve"
    one = line_chart([Line("a", [1.0], [2.0])], "step", "a", title="a", smooth=True)
    assert "<use" in one.svg, "a single step is a dot"
    none = line_chart([Line("a", [], [])], "step", "a", title="a")
    assert "no values" in none.svg
    assert Html(f"<div>{chart.svg}</div>").tags["text"] > 4, "texts stay texts"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such file: /home/jane/data/case.nii.gz", "no such file: …/case.nii.gz"),
        ("'/mnt/x/y' and file:///srv/a/b.csv;", "'…/y' and …/b.csv;"),
        (r"C:\Users\jane\scan.dcm is damaged", "…/scan.dcm is damaged"),
        ("IPH/IVH/SDH 1/20 to 20, and/or", "IPH/IVH/SDH 1/20 to 20, and/or"),
        ("images/case.nii.gz, arXiv 2502.02779", "images/case.nii.gz, arXiv 2502.02779"),
    ],
)
def test_folders_are_left_out(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    page = Page("T", "s", (Section("S", ("x" * 5_000_001,)),))
    with pytest.raises(DataError, match="too large"):
        write_page(tmp_path / "page.html", page)
    assert list(tmp_path.iterdir()) == []


def test_tables_say_dash_where_there_is_no_value() -> None:
    label = LabelMetrics(name="IPH", n_positive=0, n_negative=5, reason="only negatives")
    (row,) = metrics_table([label]).rows
    assert row == ("IPH", "-", "-", "-", "0", "5", "only negatives")
    assert interval_text(0.5, (0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert setting_rows({"a": {"b": 1}, "decisions": [], "c": None}) == [("a.b", "1"), ("c", "null")]
    assert threshold_section([label]) is None


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report on"):
        report(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": ')
    assert metric_lines(path) == RunLines(({"step": 1.0},), cut_short=True)
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match="Line 2"):
        metric_lines(path)
    assert metric_lines(tmp_path / "none").lines == ()
    assert pretrain_charts(RunLines(())) == ()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4), st.integers(1, 14))
@settings(max_examples=40, deadline=None)
def test_examples_are_the_extremes_and_no_case_comes_twice(seed: int, n: int, labels: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["binary", "multiclass", "ordinal", "continuous"], labels)
    three = ("a", "b", "c")
    specs = tuple(
        LabelSpec(name=f"l{k}", type=kind, classes=three if kind in ("multiclass", "ordinal") else ())
        for k, kind in enumerate(kinds)
    )
    truth = np.stack([rng.integers(0, 3 if spec.has_classes else 2, n) for spec in specs], 1).astype(np.float64)
    truth[rng.random(truth.shape) < 0.2] = np.nan
    parts = [rng.dirichlet(np.ones(3), n) if spec.has_classes else rng.random((n, 1)) for spec in specs]
    outcome = Outcome(specs, tuple(f"c{k}" for k in range(n)), ("",) * n, truth, np.concatenate(parts, 1))
    chosen = examples(outcome, lambda _: 0.5, most)
    assert len(chosen) <= most
    taken = {e.case_id for e in chosen}
    assert len(taken) == len(chosen)
    for example in chosen:
        column = next(k for k, spec in enumerate(specs) if spec.name == example.label)
        known, predicted, cases = known_cases(outcome, column)
        at = cases.index(example.case_id)
        if specs[column].type == "binary":
            wrong = (predicted >= 0.5) != (known > 0.5)
            errors = abs(predicted - known)
        elif specs[column].type == "continuous":
            assert example.wrong is None
            assert example.error == abs(predicted[at] - known[at])
            continue
        else:
            called = predicted.argmax(1) if specs[column].type == "multiclass" else (predicted.cumsum(1) < 0.5).sum(1)
            wrong = called != known
            errors = 1 - predicted[np.arange(len(known)), known.astype(int)]
        assert example.wrong == wrong[at]
        assert example.error == pytest.approx(errors[at])
        if example.wrong:
            worse = {i for i, e, w in zip(cases, errors, wrong, strict=True) if w and e > example.error}
            assert worse <= taken, "a case that is more wrong was passed over"
    assert bool(chosen) == bool((~np.isnan(truth)).any())


def test_the_demo_keeps_its_hands_off_what_it_did_not_make(tmp_path: Path) -> None:
    from headctssl.reporting.demo import demo

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        demo(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="names a file"):
        demo(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_label_that_has_no_name_for_a_chart_is_cut_there_and_whole_in_the_table() -> None:
    spec = LabelSpec(name="n" * 80)
    chart = interval_chart({"": {spec.name: (0.7, 0.6, 0.8)}}, "AUROC", title="t")
    assert "n" * 80 in chart.svg, "in words it is whole"
    assert Html(f"<p>{chart.svg}</p>").said.count("…") == 1
