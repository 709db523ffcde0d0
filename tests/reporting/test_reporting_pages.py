"""Pages: what a report says follows from the numbers, and the page needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headctssl.errors import DataError, UsageError
from headctssl.metrics.metrics_file import LabelMetrics
from headctssl.reporting.demo_page import Difference, difference_text, verdict
from headctssl.reporting.page import Page, Section, as_table, picture, write_page
from headctssl.reporting.pictures import interval_figure, metric_lines, run_figure, slices_figure
from headctssl.reporting.report import collapse_note, interval_text, metrics_table, report, setting_rows


def test_the_verdict_follows_the_interval() -> None:
    assert verdict(Difference(0.1, 0.02, 0.2)).startswith("Pretraining helped")
    assert verdict(Difference(-0.1, -0.2, -0.02)).startswith("Pretraining hurt")
    assert verdict(Difference(0.1, -0.02, 0.2)).startswith("No difference can be claimed")
    assert verdict(None).startswith("Nothing can be said")
    assert difference_text(Difference(0.1, -0.02, 0.2)) == "+0.100 (-0.020 to +0.200)"


def test_collapse_is_told_and_health_is_not() -> None:
    healthy = [{"feature_std": 0.1} for _ in range(40)]
    collapsed = [{"feature_std": 0.1 * 0.9**i} for i in range(40)]
    assert collapse_note(healthy) == ()
    assert "collapsed" in collapse_note(collapsed)[0]
    assert collapse_note(collapsed[:5]) == ()


def test_a_page_escapes_text_and_needs_no_network(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    hu = rng.integers(-1000, 1000, (12, 16, 14)).astype(np.int16)
    lines = [{"step": float(i), "loss": 1.0 / (i + 1), "lr": 1e-3} for i in range(60)]
    pictures = (
        picture(run_figure(lines), "curve"),
        picture(interval_figure({"a": {"IPH": (0.7, 0.6, 0.8)}, "b": {}}, "AUROC", chance=0.5), "intervals"),
        picture(slices_figure({"case": (hu, (2.0, 1.0, 1.0))}), "slices"),
    )
    section = Section("S", ("<script>alert(1)</script>",), (as_table(("a",), [(1,)]),), pictures)
    path = write_page(tmp_path / "page.html", Page("T", "sub", (section,), (("n", "1"),)))
    text = path.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text.replace("http-equiv", "")


def test_tables_say_dash_where_there_is_no_value() -> None:
    label = LabelMetrics(name="IPH", n_positive=0, n_negative=5, reason="only negatives")
    (row,) = metrics_table([label]).rows
    assert row == ("IPH", "-", "-", "0", "5", "only negatives")
    assert interval_text(0.5, (0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert setting_rows({"a": {"b": 1}, "decisions": [], "c": None}) == [("a.b", "1"), ("c", "null")]


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run"):
        report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": ')
    with pytest.raises(DataError, match="Line 2"):
        metric_lines(tmp_path / "metrics.jsonl")


def test_an_unfinished_fine_tuning_is_told_and_a_folder_takes_the_page(tmp_path: Path) -> None:
    run = tmp_path / "fold_0"
    run.mkdir()
    (run / "config.json").write_text('{"stage": "finetune"}')
    with pytest.raises(UsageError, match="not finished"):
        report(run)
    (run / "config.json").write_text('{"stage": "pretrain", "method_name": "mae", "config": "vit_test"}')
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "lr": 0.1, "data_wait": 0.0, "scans_per_second": 2}\n')
    for output in (tmp_path, tmp_path / "new", tmp_path / "page.html"):
        assert report(run, output=output, quiet=True).is_file()
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "new" / "report.html").is_file()


def test_the_demo_keeps_its_hands_off_what_it_did_not_make(tmp_path: Path) -> None:
    from headctssl.reporting.demo import demo

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        demo(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="names a file"):
        demo(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"
