"""Where: pretraining on the cases of which an expression over the columns of cases.csv is true."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from training_helpers import TINY, make_stored_dataset

from headctssl.dataset.manifest import DatasetInfo, write_raw_dataset
from headctssl.errors import UsageError
from headctssl.planning.resolve import print_decisions
from headctssl.training.checkpoint import load_weights
from headctssl.training.estimate import plan_run
from headctssl.training.pretrain import pretrain
from headctssl.training.pretrain_data import open_pretrain_data
from headctssl.training.run_log import RunLog

THIN = "slice_thickness_mm <= 2.5 and scanner_site == 'north'"


def write_raw(roots: Path, dataset_id: int = 1, **columns: list[str]) -> None:
    """The raw side of a stored dataset of six cases."""
    ids = [f"SECRET{i:03d}" for i in range(6)]
    table = {"case_id": ids, "image": [f"images/{i}.nii.gz" for i in ids], **columns}
    folder = roots / "raw" / f"Dataset{dataset_id:03d}_Tiny"
    write_raw_dataset(folder, DatasetInfo(name="Tiny"), pd.DataFrame(table, dtype=str))


@pytest.fixture
def described(roots: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dataset 1 with a raw side; case 5 is a test case, case 4 has no known thickness."""
    write_raw(
        roots,
        slice_thickness_mm=["1", "2.5", "5", "0.6", "", "1"],
        scanner_site=["north", "north", "north", "south", "north", "north"],
    )
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)
    return dataset


def chosen(folder: Path) -> list[str]:
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        return [row["case_id"] for row in csv.DictReader(file)]


def go(where: str | None, steps: int = 2, **arguments: object) -> Path:
    return pretrain(
        1, "dino", config="vit_test", where=where, device="cpu", quiet=True,
        overrides=(*(s for s in TINY if "num_steps" not in s), f"training.num_steps={steps}"),
        **arguments,  # type: ignore[arg-type]  # passed on
    )  # fmt: skip


def test_only_the_picked_cases_are_trained_on_and_the_choice_is_recorded(described: Path) -> None:
    folder = go(THIN)
    assert chosen(folder) == ["SECRET000", "SECRET001"]
    config = json.loads((folder / "config.json").read_text())
    assert config["where"]["expression"] == THIN
    assert (config["where"]["num_cases"], config["where"]["of_cases"]) == (2, 5)
    assert {"what": "cases picked", "value": "2 of 5"}.items() <= next(
        d.items() for d in config["decisions"] if d["what"] == "cases picked"
    )
    contract = load_weights(folder).contract
    assert contract.num_scans == 2
    assert config["where"]["digest"] in contract.settings
    assert "north" not in contract.settings, "an expression may name cases: it stays in the run folder"


def test_a_continued_run_needs_the_same_expression_and_the_same_cases(described: Path, roots: Path) -> None:
    folder = go(THIN)
    for other in (None, THIN + " ", "slice_thickness_mm < 2.6 and scanner_site == 'north'"):
        with pytest.raises(UsageError, match="'where' differs"):
            go(other, resume=True)
    go(THIN, resume=True)
    write_raw(roots, slice_thickness_mm=["1", "2.5", "1", "1", "1", "1"], scanner_site=["north"] * 6)
    with pytest.raises(UsageError, match="other cases"):
        go(THIN, resume=True)
    assert len(chosen(folder)) == 2


def test_test_cases_are_picked_only_where_they_are_asked_for(described: Path) -> None:
    every = "scanner_site is known"
    assert open_pretrain_data((1,), "plans", "train", every).num_cases == 5
    assert open_pretrain_data((1,), "plans", "all", every).num_cases == 6


def test_an_unknown_column_names_the_known_ones(described: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)site.*case_id.*scanner_site.*slice_thickness_mm"):
        open_pretrain_data((1,), "plans", "train", "site == 'north'")


def test_an_expression_that_is_true_of_no_case_is_refused(described: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)true of no case.*at least 1 of the 5"):
        open_pretrain_data((1,), "plans", "train", "slice_thickness_mm > 50")


def test_columns_of_one_dataset_are_unknown_in_the_others(described: Path, roots: Path) -> None:
    make_stored_dataset(roots / "preprocessed", dataset_id=2)
    write_raw(roots, dataset_id=2, kvp=["120"] * 6)
    data = open_pretrain_data((1, 2), "plans", "train", "scanner_site == 'south' or kvp == 120")
    assert [index.case_ids for index in data.indexes] == [["SECRET003"], [f"SECRET{i:03d}" for i in range(5)]]
    assert data.where is not None
    only_first = open_pretrain_data((1, 2), "plans", "train", "slice_thickness_mm <= 1")
    assert [len(index) for index in only_first.indexes] == [2, 0]


def test_a_run_on_two_datasets_of_which_one_has_no_picked_case(described: Path, roots: Path) -> None:
    make_stored_dataset(roots / "preprocessed", dataset_id=2)
    write_raw(roots, dataset_id=2)
    folder = pretrain(
        (1, 2), "dino", config="vit_test", where="slice_thickness_mm <= 1", device="cpu", overrides=TINY, quiet=True
    )
    assert chosen(folder) == ["SECRET000", "SECRET003"]


def test_estimate_counts_the_picked_cases(described: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = plan_run(1, "dino", config="vit_test", where=THIN, device="cpu", overrides=TINY)
    print_decisions(settings)
    assert settings.where is not None
    assert settings.where.num_cases == 2
    printed = capsys.readouterr().out
    assert "cases picked" in printed
    assert "2 of 5" in printed


def test_the_command_takes_the_expression(described: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    call = ["-d", 1, "-m", "dino", "-c", "vit_test", "--device", "cpu", *(w for s in TINY for w in ("--set", s))]
    code, out, err = command("estimate", *call, "--where", THIN)
    assert code == 0, err
    assert "2 of 5" in out
    code, _, err = command("estimate", *call, "--where", "slice_thickness_mm =< 2")
    assert code == 2
    assert "--where cannot be read" in err
