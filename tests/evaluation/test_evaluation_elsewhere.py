"""Tests of evaluation/examine.py and subgroups.py: groups, distances and abstention of a classifier elsewhere."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from small_heads import make_dataset, make_encoder

from headctssl.contract import LabelSpec
from headctssl.evaluation.evaluate import evaluate
from headctssl.evaluation.evaluation_file import Evaluation
from headctssl.evaluation.subgroups import FEWEST, GROUPED, groups_of, subgroups
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.reference import REFERENCE_FILE
from headctssl.metrics.outcome import Outcome
from headctssl.settings import read_json
from headctssl.training.run_log import RunLog


def test_values_become_groups_by_stated_edges():
    assert groups_of("age", ["17.9", "18", "39", "40", "79", "80", "", "064Y", "old"]) == [
        "under 18", "18 to 39", "18 to 39", "40 to 59", "60 to 79", "80 and over", "unknown", "60 to 79",
        "not a number: old",
    ]  # fmt: skip
    assert groups_of("slice_thickness_mm", ["0.625", "1.5", "3", "5.0"]) == [
        "up to 1.5 mm", "up to 1.5 mm", "over 1.5 to 3 mm", "over 3 mm",
    ]  # fmt: skip
    assert groups_of("manufacturer", ["Siemens ", "SIEMENS", "GE"]) == ["SIEMENS", "SIEMENS", "GE"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_groups_share_out_the_cases_and_small_ones_are_named_but_not_scored(seed):
    rng = np.random.default_rng(seed)
    n = 60
    ids = tuple(f"c{k}" for k in range(n))
    truth = (rng.random(n) < 0.4).astype(np.float64)
    truth[rng.random(n) < 0.1] = np.nan
    score = np.clip(np.nan_to_num(truth) * 0.3 + rng.random(n) * 0.7, 0, 1)
    people = tuple(f"p{k}" for k in rng.integers(0, 50, n))
    outcome = Outcome((LabelSpec(name="x"),), ids, people, truth[:, None], score[:, None])
    cases = pd.DataFrame({"case_id": ids, "sex": rng.choice(["F", "M", ""], n, p=[0.6, 0.3, 0.1]), "age": ["50"] * n})
    found = subgroups(outcome, cases, num_resamples=50)
    assert {group.column for group in found} == {"sex"}  # one group of ages is no group
    assert sum(group.num_cases for group in found) == n
    for group in found:
        wanted = {"unknown": ""}.get(group.group, group.group)
        inside = (cases["sex"] == wanted).to_numpy() & ~np.isnan(truth)
        entry = group.labels[0]
        assert (entry.n_positive, entry.n_negative) == ((truth[inside] == 1).sum(), (truth[inside] == 0).sum())
        enough = min(len({people[k] for k in np.flatnonzero(inside & (truth == v))}) for v in (0, 1)) >= FEWEST
        assert (entry.auroc is not None) == enough
        if enough:
            assert entry.auroc == pytest.approx(roc_auc_score(truth[inside], score[inside]))
            assert entry.auroc_ci[0] <= entry.auroc <= entry.auroc_ci[1]
        else:
            assert "patients, scored from 5" in entry.reason
        assert group.rule == GROUPED["sex"]


def test_a_dataset_elsewhere_is_examined(roots, monkeypatch, command):
    """40 patients are enough for a reference; the other dataset has two scanners, one with other heads."""
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)
    make_dataset(2, 80)
    encoder = make_encoder(roots / "enc")
    options = {"num_workers": 0, "quiet": True, "device": "cpu", "overrides": ("training.num_epochs=20",)}
    classifier = finetune(2, encoder, adapt="linear", fold="none", **options)
    assert (classifier / REFERENCE_FILE).is_file()
    assert b"case2_" not in (classifier / REFERENCE_FILE).read_bytes()
    other = make_dataset(3, 24, spacing=6.0, name="Other")
    table = list(csv.DictReader((other / "cases.csv").open()))
    with (other / "cases.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [*table[0], "manufacturer", "age"])
        writer.writeheader()
        for number, row in enumerate(table):
            writer.writerow({**row, "manufacturer": ("GE", "Siemens")[number > 19], "age": str(20 + 2 * number)})
    code, out, err = command("evaluate", "-d", 3, "-w", classifier, "--split", "all", "--num_workers", 0)
    assert code == 0, err
    for told in ("by group", "not scored", "distance from 64 training cases", "area under the risk-coverage curve"):
        assert told in out
    folder = next((roots / "results" / "Dataset003_Other" / "evaluate").glob("*__all"))
    found = read_json(folder / "evaluation.json", Evaluation)
    groups = {(g.column, g.group): g for g in found.subgroups}
    assert groups["manufacturer", "GE"].num_cases == 20
    assert groups["manufacturer", "GE"].labels[0].auroc is not None
    assert groups["manufacturer", "SIEMENS"].labels[0].auroc is None
    with (folder / "distances.csv").open() as handle:
        away = np.array([float(row["distance"]) for row in csv.DictReader(handle)])
    assert len(away) == 24
    assert found.distances.share_beyond == pytest.approx((away > 1).mean())
    assert found.distances.median == pytest.approx(np.median(away), rel=1e-4)
    own = evaluate(2, classifier, num_workers=0, quiet=True, device="cpu")
    near = read_json(
        next((roots / "results" / "Dataset002_Small" / "evaluate").glob("*__test")) / "evaluation.json", Evaluation
    )
    assert near.distances.median < 1
    assert {(c.label, c.order) for c in found.abstention} == {
        (name, order) for name in ("bleed", "noise") for order in ("probability", "distance")
    }
    for curve in found.abstention:
        assert curve.best_aurc <= curve.aurc + 1e-9
        assert curve.curve[-1] == (1.0, pytest.approx(curve.error_rate))
    assert own.temperature == 1.0  # no validation cases
