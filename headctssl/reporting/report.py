"""Report: one HTML page about a run, an evaluation, a comparison or a dataset."""

from __future__ import annotations

import sys
from pathlib import Path

from headctssl.console import name_files
from headctssl.errors import HeadCTSSLError, UsageError
from headctssl.ingest.report import REPORT_FILE
from headctssl.planning.fingerprint import FINGERPRINT_NAME
from headctssl.reporting.comparison_page import COMPARISON_FILE, comparison_page
from headctssl.reporting.dataset_page import dataset_page
from headctssl.reporting.ingest_page import ingest_page
from headctssl.reporting.page import Page, write_page
from headctssl.reporting.pretrain_page import pretrain_page
from headctssl.reporting.run_parts import CURVE_FILE, is_series, read_object

__all__ = ["report", "report_at_end", "report_series_at_end"]

_PAGE_FILE = "report.html"


def report(run: Path, *, output: Path | None = None, quiet: bool = False) -> Path:
    """Write a page about a run, an evaluation, a comparison or a dataset; it opens without a network.

    What is missing of an unfinished or damaged folder is said on the page.

    Args:
        run: folder of a pretraining run, of a fine-tuning run or one fold of it, of a learning curve, an evaluation, a
            comparison, or of a raw or preprocessed dataset.
        output: the HTML file, or a folder for it; the run's or dataset's own folder when None.
        quiet: print nothing.

    Returns:
        The HTML file: report.html, ingest_report.html of a dataset that headct_convert made, dataset_report.html of
        another one.

    Raises:
        UsageError: the folder is none of these.
        DataError: a file without which there is no page is damaged.
    """
    run = Path(run)
    page, name = _page_of(run)
    target = run if output is None else Path(output)
    whole = target / name if output is None or target.is_dir() or not target.suffix else target
    path = write_page(whole, page)
    name_files([path], quiet=quiet)
    return path


def report_at_end(run: Path, *, quiet: bool = False) -> Path | None:
    """Write the page of a run that has just ended. Whatever goes wrong is said and stops nothing: the run is whole.

    Args:
        run: as in `report`.
        quiet: print only what goes wrong.

    Returns:
        The HTML file, None where it could not be written.
    """
    try:
        return report(run, quiet=quiet)
    except HeadCTSSLError as error:
        why = error.message
    except Exception as error:  # a picture that cannot be drawn must not spoil hours of training
        why = f"{type(error).__name__}: {error}"
    print(f"What was made is whole, but its report could not be written: {why}", file=sys.stderr)
    print(f"  do:       headct_report {run} tries again.", file=sys.stderr)
    return None


def report_series_at_end(runs: Path, since: float, *, quiet: bool = False) -> None:
    """Write the pages of the fine-tuning runs that one call made: of each, of folds and draws together, of the curve.

    Args:
        runs: the folder ``finetune`` that holds them.
        since: seconds since the epoch at which the call began.
        quiet: print only what goes wrong.
    """
    found = [path for pattern in ("*/*", "*/draw_*/*") for path in sorted(runs.glob(f"{pattern}/metrics.json"))]
    made = [path.parent for path in found if path.stat().st_mtime >= since]
    for folder in made:
        report_at_end(folder, quiet=True)
    holders = [folder.parent for folder in made]
    holders += [folder.parent for folder in holders if folder.name.startswith("draw_")]
    holders += [path.parent for path in sorted(runs.glob(f"*/{CURVE_FILE}")) if path.stat().st_mtime >= since]
    for folder in dict.fromkeys(holders):
        report_at_end(folder, quiet=quiet)


def _page_of(run: Path) -> tuple[Page, str]:
    """The page of a folder and the name of its file. Pages of classifiers load torch, which takes seconds."""
    if (run / COMPARISON_FILE).is_file():
        return comparison_page(run), _PAGE_FILE
    if (run / "config.json").is_file():
        settings = read_object(run / "config.json", "Start the run again with --overwrite.")
        if settings.get("stage") == "finetune":
            from headctssl.reporting.finetune_page import finetune_page

            return finetune_page(run, settings), _PAGE_FILE
        return pretrain_page(run, settings), _PAGE_FILE
    if (run / "metrics.json").is_file():
        from headctssl.reporting.evaluate_page import evaluate_page

        return evaluate_page(run), _PAGE_FILE
    if (run / CURVE_FILE).is_file():
        from headctssl.reporting.series_page import curve_page

        return curve_page(run), _PAGE_FILE
    if is_series(run):
        from headctssl.reporting.series_page import series_page

        return series_page(run), _PAGE_FILE
    if (run / REPORT_FILE).is_file():
        return ingest_page(run), "ingest_report.html"
    if (run / "dataset.json").is_file() or (run / FINGERPRINT_NAME).is_file():
        return dataset_page(run), "dataset_report.html"
    raise UsageError(
        "There is nothing to report on: this is not a run, a comparison or a dataset.",
        got=run,
        expected="a folder with config.json (a run, e.g. .../pretrain/dino__vit_s__plans or .../finetune/.../fold_0), "
        "metrics.json (an evaluation), comparison.json (a comparison), dataset.json, ingest_report.json or "
        "dataset_fingerprint.json (a dataset)",
        do="Name the folder that headct_pretrain, headct_finetune, headct_evaluate, headct_compare or headct_convert "
        "printed.",
    )
