"""Settings, paths, errors, seeding: what every stage stands on."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headctssl.contract import StorageRule
from headctssl.errors import ContractError, DataError, HeadCTSSLError, UsageError, unknown_name
from headctssl.paths import atomic_path, data_root, dataset_folder_name, find_dataset, raw_dataset
from headctssl.planning.run_settings import TrainingSettings
from headctssl.seeding import derive_seed, sample_generator
from headctssl.settings import parse_overrides, read_json, with_overrides, write_json

TRAINING = TrainingSettings(num_steps=10, samples_per_epoch=4, batch_size=2, lr=1e-3)


def test_an_error_says_what_got_expected_and_what_to_do() -> None:
    error = DataError("Case 7 cannot be read.", got="0 bytes", expected="a NIfTI file", do="Export it again.")
    assert error.message.splitlines() == [
        "Case 7 cannot be read.",
        "  got:      0 bytes",
        "  expected: a NIfTI file",
        "  do:       Export it again.",
    ]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError
    assert again.message == error.message


def test_every_error_class_survives_a_process_border() -> None:
    def walk(kind: type[HeadCTSSLError]) -> list[type[HeadCTSSLError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in walk(sub))]

    for kind in walk(HeadCTSSLError):
        again = pickle.loads(pickle.dumps(kind("what", got=1, expected=2, do="go")))
        assert (type(again), again.what, again.got, again.expected, again.do) == (kind, "what", "1", "2", "go")


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    error = unknown_name("method", "dion", ["mae", "dino"])
    assert "dino, mae" in error.message
    assert "Did you mean 'dino'?" in error.message


def test_an_unset_root_shows_three_export_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("headctssl_raw", raising=False)
    with pytest.raises(UsageError) as caught:
        data_root("raw")
    for kind in ("raw", "preprocessed", "results"):
        assert f"export headctssl_{kind}=" in caught.value.message
    monkeypatch.delenv("headctssl_results", raising=False)
    with pytest.raises(UsageError) as caught:
        data_root("results")
    assert caught.value.expected == "the folder for runs and their results"


def test_a_root_that_does_not_exist_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("headctssl_raw", str(tmp_path / "mistyped"))
    with pytest.raises(UsageError) as caught:
        raw_dataset(3)
    assert caught.value.got == f"headctssl_raw={tmp_path / 'mistyped'}, a folder that does not exist"
    monkeypatch.setenv("headctssl_raw", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        raw_dataset(3)
    assert caught.value.got == f"headctssl_raw={tmp_path}, which has no datasets"


def test_datasets_are_found_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("headctssl_raw", str(tmp_path))
    assert find_dataset(3, ("raw",)) is None
    with pytest.raises(UsageError, match="no raw dataset number 3"):
        raw_dataset(3)
    (tmp_path / dataset_folder_name(3, "Phantom")).mkdir()
    assert raw_dataset(3).name == "Dataset003_Phantom"
    (tmp_path / "Dataset003_Other").mkdir()
    with pytest.raises(UsageError, match="Two datasets"):
        raw_dataset(3)
    with pytest.raises(UsageError):
        dataset_folder_name(1, "../escape")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "plans.json"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["plans.json"]


def test_overrides_are_json_where_it_parses() -> None:
    parsed = parse_overrides(["a.b=1e-3", "c=true", "d=text", "e=[1, 2]", "f=", 'g="5"'])
    assert parsed == {"a.b": 1e-3, "c": True, "d": "text", "e": [1, 2], "f": "", "g": "5"}
    with pytest.raises(UsageError, match="could not be parsed"):
        parse_overrides(["nonsense"])
    with pytest.raises(UsageError, match="twice"):
        parse_overrides(["a=1", "a=2"])


def test_an_override_is_validated_and_seed_zero_is_a_value() -> None:
    changed = with_overrides(TRAINING, {"seed": 0, "lr": 0.5})
    assert (changed.seed, changed.lr) == (0, 0.5)
    with pytest.raises(UsageError) as caught:
        with_overrides(TRAINING, {"num_step": 5}, prefix="training.")
    assert "training.num_step" in caught.value.message
    assert "Did you mean" in caught.value.message
    with pytest.raises(UsageError, match=r"training\.batch_size"):
        with_overrides(TRAINING, {"batch_size": 0}, prefix="training.")


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    write_json(path, TRAINING)
    assert read_json(path, TrainingSettings) == TRAINING
    path.write_text(path.read_text().replace('"lr"', '"learning_rate"'))
    with pytest.raises(DataError, match="lr"):
        read_json(path, TrainingSettings)
    path.write_text("{")
    with pytest.raises(DataError):
        read_json(path, TrainingSettings)
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "missing.json", TrainingSettings)


def test_the_storage_digest_is_pinned_and_follows_the_rule() -> None:
    rule = StorageRule()
    assert rule.digest() == "1c80e10f8adbd7eb"
    changed = [
        rule.model_copy(update={"spacing_mm": (2.0, 1.0, 1.0)}),
        rule.model_copy(update={"hu_clip": (-1000, 3071)}),
        rule.model_copy(update={"resample_rule": "separable_antialias:1"}),
    ]
    assert len({r.digest() for r in [rule, *changed]}) == 4


def test_contract_errors_exit_with_two() -> None:
    assert ContractError("x").exit_code == 2


@given(st.integers(0, 2**31), st.integers(0, 999), st.integers(0, 400_000))
def test_generators_depend_on_each_part(seed: int, epoch: int, sample: int) -> None:
    draw = sample_generator(seed, epoch, sample, "view").integers(0, 2**63)
    assert draw == sample_generator(seed, epoch, sample, "view").integers(0, 2**63)
    others = (
        sample_generator(seed + 1, epoch, sample, "view"),
        sample_generator(seed, epoch + 1, sample, "view"),
        sample_generator(seed, epoch, sample + 1, "view"),
        sample_generator(seed, epoch, sample, "mask"),
    )
    assert all(draw != other.integers(0, 2**63) for other in others)


def test_seeds_are_stable_over_versions() -> None:
    assert derive_seed(0, 0, 0, "view") == 4011243016764846799
    assert derive_seed(1, "2") != derive_seed("1", 2)
    assert 0 <= derive_seed("x") < 2**63


def test_a_root_that_may_not_be_entered_is_told(tmp_path, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setenv("headctssl_raw", str(tmp_path / "closed"))
    monkeypatch.setattr(type(tmp_path), "stat", refuse)
    with pytest.raises(UsageError, match="may not be looked at"):
        data_root("raw")
