"""Giveaway: how well the Hounsfield units of a synthetic head alone tell its labels, per profile.

Run as ``python -m benchmarks.giveaway``. Makes the cases of a profile in memory, takes the histogram inside the head of
each, and ranks every case by a logistic regression that learnt from the other subjects (`headctssl.metrics.histogram`).
Prints a table and renews that of the profile in ``documentation/phantom.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import on_one_thread
from headctssl.console import progress
from headctssl.dataset.parallel import map_items
from headctssl.errors import HeadCTSSLError
from headctssl.ingest.phantom.make import make_case, subject_of
from headctssl.ingest.phantom.profiles import PROFILES, find_profile
from headctssl.metrics.classification import label_metrics
from headctssl.metrics.histogram import cross_validated, head_histogram
from headctssl.volume.head import find_head

PAGE = Path(__file__).parent.parent / "documentation" / "phantom.md"
MARK = "<!-- giveaway {profile}: made by python -m benchmarks.giveaway -->"
END = "<!-- end of giveaway -->"

Array = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and renew the page."""
    on_one_thread("benchmarks.giveaway", argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.giveaway", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=sorted(PROFILES), default="clinical")
    parser.add_argument("-n", type=int, default=300, help="cases")
    parser.add_argument("--seed", type=int, default=7100, help="of the cases; none that anything else is made with")
    parser.add_argument("--num_workers", type=int, default=None, help="processes")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown page with the marks of the profile")
    asked = parser.parse_args(argv)
    lines = table(asked.profile, asked.n, asked.seed, asked.num_workers)
    print("\n".join(lines))
    renew(asked.page, asked.profile, lines)
    return 0


def table(profile: str, n: int, seed: int, num_workers: int | None) -> list[str]:
    """The table of a profile as lines of Markdown.

    Args:
        profile: whose cases.
        n: how many.
        seed: of the cases.
        num_workers: processes; one per core when None.
    """
    features, truth, subjects = cases(profile, n, seed, num_workers)
    scores = cross_validated(features, truth, subjects)
    lines = [
        f"{n} cases of {np.unique(subjects).size} subjects, seed {seed}; five folds by subject.",
        "",
        "| label | positive | AUROC of the histogram [95 %] |",
        "|---|---|---|",
    ]
    values = []
    for column, spec in enumerate(find_profile(profile).labels):
        found = label_metrics(spec, truth[:, column], scores[:, column], subjects)
        if found.auroc is None or found.auroc_ci is None:
            lines.append(f"| {spec.name} | {found.n_positive} | {found.reason} |")
            continue
        low, high = found.auroc_ci
        values.append(found.auroc)
        lines.append(f"| {spec.name} | {found.n_positive} | {found.auroc:.3f} [{low:.3f}, {high:.3f}] |")
    under = sum(value < 0.75 for value in values)
    lines += ["", f"Mean {np.mean(values):.3f}; under .75 for {under} of {len(values)} labels."]
    return lines


def cases(profile: str, n: int, seed: int, num_workers: int | None) -> tuple[Array, Array, NDArray[np.int64]]:
    """Histograms (n, bins), labels (n, L) and subjects (n,) of the cases of a profile; arguments as of `table`."""
    rows: dict[int, tuple[Array, dict[str, int]]] = {}
    items = map_items(partial(_case, profile, seed), range(1, n + 1), num_workers)
    for position, result in progress(items, "scans", n):
        if isinstance(result, HeadCTSSLError):
            raise result
        rows[position] = result
    names = [spec.name for spec in find_profile(profile).labels]
    features = np.array([rows[i][0] for i in range(n)])
    truth = np.array([[rows[i][1][name] for name in names] for i in range(n)], np.float64)
    subjects = np.array([subject_of(seed, case)[0] for case in range(1, n + 1)], np.int64)
    return features, truth, subjects


def _case(profile: str, seed: int, case: int) -> tuple[Array, dict[str, int]]:
    made = make_case(seed, profile, case=case)
    head = find_head(made.volume.hu, made.volume.spacing_mm)
    return head_histogram(made.volume.hu, head.mask), made.labels


def renew(page: Path, profile: str, lines: list[str]) -> None:
    """Put a table between the marks of its profile.

    Args:
        page: the Markdown file.
        profile: whose marks.
        lines: of the table.
    """
    mark = MARK.format(profile=profile)
    before, rest = page.read_text(encoding="utf-8").split(mark)
    _, after = rest.split(END, maxsplit=1)
    text = "\n".join(lines)
    page.write_text(f"{before}{mark}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
