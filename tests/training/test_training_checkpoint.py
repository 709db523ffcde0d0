"""Checkpoints: weights and contract survive the way to disk, damage and misfits are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from headctssl.contract import Contract, InputSpec, StorageRule, Window
from headctssl.errors import ContractError, DataError, UsageError
from headctssl.networks import build_encoder
from headctssl.networks.encoder import Encoder
from headctssl.training.checkpoint import (
    find_weights,
    hash_tensors,
    load_encoder,
    load_into,
    load_weights,
    save_encoder,
    save_weights,
)
from headctssl.training.run_state import load_checkpoint, save_checkpoint


def contract_of(encoder: Encoder, kind: str = "encoder") -> Contract:
    windows = tuple(Window(level=40, width=80) for _ in range(3))
    spec = InputSpec(rule="fixed_spacing", shape=(24, 24, 24), spacing_mm=(6, 6, 6), windows=windows)
    return Contract(
        package_version="0",
        kind=kind,  # type: ignore[arg-type]  # a plain text in tests
        storage=StorageRule(),
        input=spec,
        preset="vit_test",
        encoder=encoder.settings,
        method="mae",
        settings="{}",
        num_scans=3,
        cases_digest="0" * 16,
    )


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(1)
    return build_encoder("vit_test", registers=2)


@pytest.mark.parametrize("name", ["vit_test", "resenc_test"])
def test_encoder_comes_back_the_same(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    written = save_encoder(tmp_path / "encoder.safetensors", encoder, contract_of(encoder))
    back = load_encoder(tmp_path)
    x = torch.rand(2, 3, 24, 24, 24)
    assert not back.training
    assert back.contract == written
    assert back.contract.weights_hash == hash_tensors(encoder.state_dict())
    assert torch.equal(back(x).features, encoder(x).features)


def test_mask_token_of_a_masking_objective_comes_back(tmp_path: Path, encoder: Encoder) -> None:
    encoder.add_mask_token()  # type: ignore[operator]  # a ViT
    save_encoder(tmp_path / "encoder.safetensors", encoder, contract_of(encoder))
    assert torch.equal(load_encoder(tmp_path).state_dict()["mask_token"], encoder.state_dict()["mask_token"])


def test_file_is_a_function_of_its_content(tmp_path: Path, encoder: Encoder) -> None:
    save_encoder(tmp_path / "a.safetensors", encoder, contract_of(encoder))
    reverse = dict(reversed(list(encoder.state_dict().items())))
    save_weights(tmp_path / "b.safetensors", reverse, contract_of(encoder))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_hash_sees_names_shapes_and_values() -> None:
    one = {"a": torch.arange(6.0)}
    others = [{"b": torch.arange(6.0)}, {"a": torch.arange(6.0).reshape(2, 3)}, {"a": torch.arange(6.0).double()}]
    assert len({hash_tensors(t) for t in [one, *others, {"a": torch.arange(6.0) + 1e-6}]}) == 5


def test_changed_byte_is_noticed(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, contract_of(encoder))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not those that were written"):
        load_weights(path)


def test_files_that_are_no_weights(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x89PNG" * 10)
    with pytest.raises(DataError, match="not a weights file"):
        load_weights(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ContractError, match="carries no contract"):
        load_weights(tmp_path / "y.safetensors")
    save_encoder(tmp_path / "z.safetensors", encoder, contract_of(encoder))
    with pytest.raises(ContractError, match="another kind"):
        load_weights(tmp_path / "z.safetensors", kind="classifier")


def test_find_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights"):
        find_weights(tmp_path / "nothing")
    (tmp_path / "checkpoint_latest.pt").touch()
    with pytest.raises(UsageError, match="has not finished"):
        find_weights(tmp_path)
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "classifier.safetensors").touch()
    assert find_weights(tmp_path).parent.name == "fold_0"
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "classifier.safetensors").touch()
    with pytest.raises(UsageError, match="Several"):
        find_weights(tmp_path)
    assert find_weights(tmp_path / "fold_1" / "classifier.safetensors").is_file()


def test_classifier_gives_its_encoder(tmp_path: Path, encoder: Encoder) -> None:
    tensors = {f"encoder.{k}": v for k, v in encoder.state_dict().items()} | {"head.weight": torch.ones(2, 48)}
    save_weights(tmp_path / "classifier.safetensors", tensors, contract_of(encoder, "classifier"))
    loaded = load_weights(tmp_path, kind="classifier")
    assert set(loaded.part("head")) == {"weight"}
    back = load_encoder(tmp_path)
    assert hash_tensors(back.state_dict()) == hash_tensors(encoder.state_dict())


def test_load_into_counts_and_refuses(encoder: Encoder) -> None:
    torch.manual_seed(5)
    other = build_encoder("vit_test", registers=2)
    tensors = {**other.state_dict(), "extra": torch.zeros(1)}
    report = load_into(encoder, tensors)
    assert hash_tensors(encoder.state_dict()) == hash_tensors(other.state_dict())
    assert report.skipped == ("extra",)
    assert report.share == 1.0
    without = {k: v for k, v in tensors.items() if not k.startswith("blocks.0")}
    before = hash_tensors(encoder.state_dict())
    with pytest.raises(ContractError, match="does not fit"):
        load_into(encoder, {k: v + 1 for k, v in without.items()})
    assert hash_tensors(encoder.state_dict()) == before


def test_trainable_positions_are_interpolated() -> None:
    source = build_encoder("vit_test", position="trainable", input_shape=[24, 24, 24])
    target = build_encoder("vit_test", position="trainable", input_shape=[24, 36, 24])
    ramp = torch.linspace(0, 1, 4)[None, :, None].expand(4, 4, 4).reshape(64, 1).expand(64, 48)
    tensors = {**source.state_dict(), "pos_embed": ramp}
    report = load_into(target, tensors, source=source.settings)
    assert report.reshaped == ("pos_embed",)
    table = target.state_dict()["pos_embed"].reshape(4, 6, 4, 48)
    assert torch.allclose(table.std(dim=(0, 2)), torch.zeros(6, 48), atol=1e-6)
    assert bool((table[0, 1:, 0, 0] > table[0, :-1, 0, 0]).all())


def test_state_holds_plain_values_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pt"
    state = {"step": 3, "t": torch.arange(4), "l": [1.5, None, True, "a", (1, 2)], "d": {0: {"x": torch.ones(2)}}}
    save_checkpoint(path, state)
    back = load_checkpoint(path)
    assert back["l"] == state["l"]
    assert torch.equal(back["d"][0]["x"], torch.ones(2))
    before = path.read_bytes()
    for bad in (np.float32(1), Path("a"), {1, 2}, torch.float32):
        with pytest.raises(TypeError, match=r"state\.a\.b"):
            save_checkpoint(path, {"a": {"b": bad}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_checkpoint_that_cannot_be_loaded_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint_latest.pt"
    save_checkpoint(path, {"step": 1})
    real = torch.save

    def cut_short(value: object, target: Path) -> None:
        real(value, target)
        target.write_bytes(target.read_bytes()[:-40])

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(Exception, match=r".*"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(path)
