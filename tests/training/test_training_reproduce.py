"""Reproduce: the same weights again from what a run folder says; what differs is said or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from training_helpers import TINY, make_stored_dataset

from headctssl.errors import DataError, UsageError
from headctssl.finetuning.reproduce import reproduce
from headctssl.settings import read_json, write_json
from headctssl.training.environment import Environment, data_digest, differences
from headctssl.training.pretrain import pretrain
from headctssl.training.reproduce import find_weights_of, next_tag
from headctssl.training.run_log import RunLog

Command = Callable[..., tuple[int, str, str]]
MAE = ("method.decoder_width=48", "method.decoder_heads=3", "training.num_steps=3", "training.seed=5")
SETS = (*(text for text in TINY if "num_steps" not in text), *MAE)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)


def go(**options: object) -> Path:
    settings = {"config": "vit_test", "device": "cpu", "quiet": True, "overrides": SETS, **options}
    return pretrain(1, "mae", **settings)  # type: ignore[arg-type]  # options of a test


def changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_run_is_repeated_bit_for_bit(dataset: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Path] = []
    monkeypatch.setattr("headctssl.reporting.report.report", lambda run, quiet: reported.append(run))
    folder = go(tag="thin")
    code, out, err = command("reproduce", folder, "--check", "--num_workers", "0")
    assert code == 0, err
    again = folder.parent / f"{folder.name}-reproduced"
    assert "bit for bit" in out
    assert (again / "encoder.safetensors").read_bytes() == (folder / "encoder.safetensors").read_bytes()
    one, other = (json.loads((run / "config.json").read_text()) for run in (folder, again))
    assert one == other
    assert reported == [again]
    # The repetition can itself be repeated, and other weights are noticed.
    changed(folder / "contract.json", weights_hash="0" * 64)
    code, out, _ = command("reproduce", folder, "--check", "--tag", "other")
    assert code == 1
    assert "differ from those of" in out


def test_the_machine_does_not_decide_again(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What resolve took from the machine is kept: here a machine on which it would refuse."""
    folder = go()
    monkeypatch.setattr("headctssl.training.pretrain_call.detect_machine", lambda name: 1 / 0)
    done = reproduce(folder, check=True, quiet=True)
    assert done.identical is True
    assert done.folder.name.endswith("__reproduced")


def test_other_versions_are_said_and_other_data_refused(dataset: Path, roots: Path) -> None:
    folder = go()
    environment = json.loads((folder / "environment.json").read_text())
    assert len(environment["data_digest"]) == 16
    assert environment["processes"] == 1
    packages = [[name, "0.1" if name == "torch" else version] for name, version in environment["packages"]]
    changed(folder / "environment.json", packages=packages, processor="another", git_changed=False)
    done = reproduce(folder, quiet=True)
    assert [text.partition(":")[0] for text in done.differences] == ["torch", "processor"]
    assert done.identical is None

    make_stored_dataset(roots / "preprocessed", num_cases=7)
    with pytest.raises(DataError, match="are not what they were") as error:
        reproduce(folder, tag="more", quiet=True)
    assert "1 of them new or changed" in str(error.value)
    assert not folder.with_name(f"{folder.name}__more").exists()


def test_the_weights_a_run_began_from_are_found_by_their_hash(dataset: Path, roots: Path) -> None:
    first = go()
    folder = go(init=first, tag="second")
    assert reproduce(folder, check=True, quiet=True).identical is True
    moved = first.rename(roots / "elsewhere")
    with pytest.raises(UsageError, match="began from were not found"):
        reproduce(folder, tag="lost", quiet=True)
    assert reproduce(folder, init=moved, tag="given", check=True, quiet=True).identical is True
    with pytest.raises(UsageError, match="has others"):
        reproduce(folder, init=folder, tag="wrong", quiet=True)
    with pytest.raises(UsageError, match="random weights"):
        find_weights_of("scratch", moved)


def test_what_is_no_finished_run_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the folder of a run"):
        reproduce(tmp_path, quiet=True)
    folder = go()
    (folder / "contract.json").unlink()
    with pytest.raises(UsageError, match="no weights to compare with"):
        reproduce(folder, check=True, quiet=True)


def test_tags_of_repetitions() -> None:
    assert next_tag("") == "reproduced"
    assert next_tag("__thin") == "thin-reproduced"
    assert next_tag("thin") == "thin-reproduced"


def test_environments_are_compared_as_far_as_they_were_noted(dataset: Path, tmp_path: Path) -> None:
    folder = go()
    now = read_json(folder / "environment.json", Environment).model_copy(update={"git_changed": False})
    assert differences(now, now) == []
    old = now.model_copy(update={"threads": 0, "processes": 0, "data_digest": "", "git_commit": None})
    assert differences(old, now) == []
    assert differences(now.model_copy(update={"processes": 4}), now) == ["processes: 4 then, 1 now"]
    assert "no commit holds" in differences(now.model_copy(update={"git_changed": True}), now)[-1]
    write_json(tmp_path / "environment.json", now)
    assert read_json(tmp_path / "environment.json", Environment) == now


def test_the_data_digest_is_of_cases_and_storage() -> None:
    from headctssl.contract import StorageRule

    one = data_digest(StorageRule(), "a")
    assert one == data_digest(StorageRule(), "a")
    assert len({one, data_digest(StorageRule(), "b"), data_digest(StorageRule(spacing_mm=(2, 2, 2)), "a")}) == 3
