"""Pretrain: what a run leaves, that it can be continued and repeated bit for bit, and what it refuses."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_heads import make_dataset
from training_helpers import SPACING, TINY, make_stored_dataset

import headctssl
from headctssl.cli.main import run_command
from headctssl.contract import Contract, StorageRule
from headctssl.errors import ContractError, DataError, HeadCTSSLError, StoppedError, UsageError
from headctssl.methods.dino.dino import Dino
from headctssl.networks import build_from_settings
from headctssl.paths import preprocessed_dataset
from headctssl.planning.machine import detect_machine
from headctssl.planning.plans import Plans, fitted_encoder
from headctssl.planning.resolve import print_decisions
from headctssl.preprocessing.index import INDEX_NAME, CaseIndex, write_index
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.settings import read_json
from headctssl.training.checkpoint import load_encoder, load_weights, save_encoder
from headctssl.training.estimate import plan_run
from headctssl.training.pretrain import pretrain
from headctssl.training.pretrain_data import open_pretrain_data
from headctssl.training.run_log import RunLog
from headctssl.training.run_state import load_checkpoint
from headctssl.training.trainer import Trainer
from headctssl.types import Clock

FILES = {
    "cases.csv",
    "checkpoint_latest.pt",
    "config.json",
    "contract.json",
    "encoder.safetensors",
    "environment.json",
    "metrics.jsonl",
    "progress.png",
    "train.log",
}
SHAREABLE = ("contract.json", "encoder.safetensors", "environment.json", "progress.png")


def go(method: str = "dino", *more: str, config: str = "vit_test", **options: object) -> Path:
    if method == "mae" and config == "vit_test":
        more = (*more, "method.decoder_width=48", "method.decoder_heads=3")  # the published one is 16 times wider
    keys = {text.partition("=")[0] for text in more}
    sets = (*(t for t in TINY if t.partition("=")[0] not in keys), *more)
    return pretrain(1, method, config=config, device="cpu", quiet=True, overrides=sets, **options)  # type: ignore[arg-type]


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "picture", lambda self, final=False: None)


def flat(value: object, name: str = "") -> dict[str, object]:
    """A nested checkpoint as dotted name -> leaf."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name}.{i}").items()}
    return {name: value}


def same_checkpoint(one: Path, other: Path) -> bool:
    a, b = flat(load_checkpoint(one / "checkpoint_latest.pt")), flat(load_checkpoint(other / "checkpoint_latest.pt"))
    a.pop(".elapsed"), b.pop(".elapsed")
    assert sum(isinstance(v, torch.Tensor) for v in a.values()) > 20
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k]  # type: ignore[arg-type]  # same kind
        for k, v in a.items()
    )


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM during a step."""
    real = Trainer._clip

    def clip(self: Trainer) -> torch.Tensor:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(Trainer, "_clip", clip)


def test_run_leaves_exactly_these_files(dataset: Path, lines_of: Callable[[Path], list[dict[str, float]]]) -> None:
    folder = go("dino")
    assert folder.name == "dino__vit_test__plans"
    assert folder.parent.parent.name == dataset.name
    assert {p.name for p in folder.iterdir() if p.is_file()} == FILES
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"tensorboard"}
    events = [p.name for p in (folder / "tensorboard").iterdir()]
    assert len(events) == 1
    assert events[0].startswith("events.out.tfevents.")
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    needed = {"step", "epoch", "loss", "lr", "scans_per_second", "data_wait", "seconds"}
    assert all(needed <= line.keys() for line in lines)
    assert "monitor_rank_me" in lines[-1]
    assert "foreground_global" in lines[0]


def test_contract_travels_with_the_encoder(dataset: Path) -> None:
    folder = go()
    contract = read_json(folder / "contract.json", Contract)
    assert load_weights(folder).contract == contract
    assert (contract.method, contract.preset, contract.num_scans) == ("dino", "vit_test", 5)
    encoder = load_encoder(folder)
    assert encoder(torch.rand(1, 3, 24, 24, 24)).features.shape == (1, 48)


def test_shareable_files_hold_nothing_identifying(dataset: Path, roots: Path) -> None:
    """Nor do checkpoints and TensorBoard's files, which nobody means to share and somebody will."""
    sources = {row.source_sha256 for row in open_pretrain_data((1,), "plans", "all").indexes[0].rows}
    cases = {"SECRET", "Tiny", *sources}
    machine = {str(roots), platform.node(), getpass.getuser(), str(Path.home()), str(Path.cwd())}
    machine |= {str(Path(headctssl.__file__).parent)}
    folder = go("dino", "training.on_nonfinite=rewind", "training.rewind_every=2")
    checkpoints = ["checkpoint_latest.pt", "checkpoint_rewind.pt"]
    events = [f"tensorboard/{path.name}" for path in (folder / "tensorboard").iterdir()]
    for name in (*SHAREABLE, *checkpoints, *events, "metrics.jsonl"):
        content = (folder / name).read_bytes()
        for word in sorted(cases | (machine if name in (*SHAREABLE, *checkpoints) else set())):
            if len(word) >= 3:
                assert word.encode() not in content, f"{word!r} in {name}"
    # The test can fail: files that are not shareable do hold case ids and sources.
    assert all(word.encode() in (folder / "cases.csv").read_bytes() for word in ("SECRET", min(sources)))


def test_test_cases_are_left_out_unless_all(dataset: Path, no_picture: None) -> None:
    assert "SECRET005" not in (go() / "cases.csv").read_text()
    assert "SECRET005" in (go(pretrain_on="all", tag="all") / "cases.csv").read_text()


@pytest.mark.parametrize(
    ("method", "config"), [("dino", "vit_test"), ("mae", "vit_test"), ("dino", "resenc_test"), ("mae", "resenc_test")]
)
def test_continued_equals_uninterrupted_bit_for_bit(
    dataset: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch, method: str, config: str
) -> None:
    straight = go(method, config=config, tag="straight")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(StoppedError, match="after step 3 of 6"):
            go(method, config=config, tag="parted")
    folder = straight.with_name(straight.name.replace("straight", "parted"))
    assert not (folder / "encoder.safetensors").exists()
    assert load_checkpoint(folder / "checkpoint_latest.pt")["step"] == 3
    torch.manual_seed(123)
    assert go(method, config=config, tag="parted", resume=True) == folder
    assert same_checkpoint(straight, folder)
    assert (straight / "encoder.safetensors").read_bytes() == (folder / "encoder.safetensors").read_bytes()


def test_lines_after_the_checkpoint_are_dropped(
    dataset: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch, lines_of: Callable[[Path], list[dict[str, float]]]
) -> None:
    real = Dino.after_step

    def fail(self: Dino, clock: Clock) -> None:
        real(self, clock)
        if clock.step == 4:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Dino, "after_step", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            go("dino", "training.checkpoint_every=2", tag="cut")
    folder = go("dino", tag="whole").with_name("dino__vit_test__plans__cut")
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 5, "epoch"')  # cut short by the crash
    go("dino", "training.checkpoint_every=2", tag="cut", resume=True)
    assert [line["step"] for line in lines_of(folder)] == [1, 2, 3, 4, 5, 6]
    assert same_checkpoint(folder, folder.with_name("dino__vit_test__plans__whole"))


def test_readers_end_with_an_error_of_the_loop(
    dataset: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Dino, clock: Clock) -> None:
        assert multiprocessing.active_children()
        raise RuntimeError("fault")

    monkeypatch.setattr(Dino, "after_step", fail)
    sets = [t for t in TINY if "num_workers" not in t]
    with pytest.raises(RuntimeError, match="fault") as kept:  # whose traceback holds the frame of the loop
        pretrain(1, "dino", config="vit_test", device="cpu", quiet=True, num_workers=1, overrides=sets)
    assert multiprocessing.active_children() == []
    assert kept.tb is not None


def test_two_runs_and_other_numbers_of_readers_give_the_same_bytes(dataset: Path, no_picture: None) -> None:
    first = (go("dino", tag="a") / "encoder.safetensors").read_bytes()
    assert (go("dino", tag="b") / "encoder.safetensors").read_bytes() == first
    one = pretrain(
        1,
        "dino",
        config="vit_test",
        device="cpu",
        quiet=True,
        tag="c",
        num_workers=1,
        overrides=[t for t in TINY if "num_workers" not in t],
    )
    assert (one / "encoder.safetensors").read_bytes() == first
    assert (go("dino", "training.seed=1", tag="d") / "encoder.safetensors").read_bytes() != first


def test_accumulation_sees_the_same_scans(
    dataset: Path, no_picture: None, lines_of: Callable[[Path], list[dict[str, float]]]
) -> None:
    whole = go("mae", "training.batch_size=4", tag="whole")
    parts = go("mae", "training.batch_size=4", "training.accumulation=2", tag="parts")
    for a, b in zip(lines_of(whole), lines_of(parts), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["foreground_global"] == pytest.approx(b["foreground_global"], rel=1e-6)


@pytest.mark.evidence
def test_a_compiled_run_continued_equals_uninterrupted_bit_for_bit(
    dataset: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = ("training.compile=true", "training.deterministic=false")
    straight = go("mae", *compiled, tag="straight")
    assert "blocks are compiled" in (straight / "train.log").read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(StoppedError):
            go("mae", *compiled, tag="parted")
    torch._dynamo.reset()  # as a new process, which compiles anew and finds nothing on the disk
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with pytest.raises(UsageError, match=r"training\.compile"):
        go("mae", "training.deterministic=false", tag="parted", resume=True)
    parted = go("mae", *compiled, tag="parted", resume=True)
    assert (parted / "encoder.safetensors").read_bytes() == (straight / "encoder.safetensors").read_bytes()


def test_existing_run_is_refused_unless_told(dataset: Path, no_picture: None) -> None:
    folder = go()
    before = (folder / "checkpoint_latest.pt").stat().st_mtime_ns
    with pytest.raises(UsageError, match="exists already"):
        go()
    with pytest.raises(UsageError, match="exclude each other"):
        go(resume=True, overwrite=True)
    assert (folder / "checkpoint_latest.pt").stat().st_mtime_ns == before
    (folder / "left_over.txt").touch()
    with pytest.raises(UsageError, match="fp16 needs"):
        go("dino", "training.precision=fp16", overwrite=True)
    with pytest.raises(UsageError, match="no weights"):
        go(init="nowhere", overwrite=True)
    assert (folder / "left_over.txt").exists()  # nothing is removed before the call is known to be right
    go(overwrite=True)
    assert not (folder / "left_over.txt").exists()
    go(resume=True)  # a finished run is exported again


def test_a_finished_run_that_is_continued_keeps_its_environment(
    dataset: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is taken where it is exported again; a run that goes on says where its last steps were."""

    def processor(folder: Path) -> str:
        return str(json.loads((folder / "environment.json").read_text())["processor"])

    monkeypatch.setattr("headctssl.training.environment._processor", lambda: "here")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(StoppedError):
            go()
    folder = Path(os.environ["headctssl_results"]) / dataset.name / "pretrain" / "dino__vit_test__plans"
    assert processor(folder) == "here"
    monkeypatch.setattr("headctssl.training.environment._processor", lambda: "elsewhere")
    assert processor(go(resume=True)) == "elsewhere"
    monkeypatch.setattr("headctssl.training.environment._processor", lambda: "a third")
    assert processor(go(resume=True)) == "elsewhere"


def test_continue_without_a_checkpoint_starts_fresh_and_says_so(
    dataset: Path, no_picture: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(1, "dino", config="vit_test", device="cpu", resume=True, overrides=TINY)
    out = capsys.readouterr().out
    assert "has no checkpoint yet, so it starts fresh" in out
    assert "estimate:" in out
    assert out.index("estimate:") < out.index("step 1/6")
    assert "encoder.safetensors" in out.split("wrote")[1]


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_its_settings(
    dataset: Path, no_picture: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which follow from speeds that were measured, and may be measured otherwise now."""
    machine = detect_machine("cpu")
    sets = [text for text in TINY if "precision" not in text]

    def run(bf16: bool, **options: bool) -> Path:
        changed = machine.model_copy(update={"bf16": bf16})
        monkeypatch.setattr("headctssl.training.pretrain_call.detect_machine", lambda device: changed)
        return pretrain(1, "dino", config="vit_test", device="cpu", quiet=True, overrides=sets, **options)  # type: ignore[arg-type]  # flags

    folder = run(bf16=False)
    before = (folder / "encoder.safetensors").read_bytes()
    for name in ("checkpoint_latest.pt", "encoder.safetensors", "contract.json"):
        (folder / name).unlink()
    run(bf16=True, resume=True)
    assert json.loads((folder / "config.json").read_text())["training"]["precision"] == "float32"
    assert (folder / "encoder.safetensors").read_bytes() == before
    (folder / "checkpoint_latest.pt").unlink()
    (folder / "contract.json").unlink()
    with pytest.raises(UsageError, match=r"'training\.lr' differs"):
        go("dino", "training.lr=0.5", resume=True)


def test_continue_keeps_a_finished_run_whose_checkpoint_was_deleted(dataset: Path, no_picture: None) -> None:
    folder = go()
    (folder / "checkpoint_latest.pt").unlink()
    before = (folder / "encoder.safetensors").stat().st_mtime_ns
    with pytest.raises(UsageError, match="finished and has no checkpoint"):
        go(resume=True)
    assert (folder / "encoder.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("training.lr=0.5",), "training.lr"),
        (("views.flip_lr=true",), "views.flip_lr"),
        (("method.prototypes=128",), "method.prototypes"),
        (("training.log_every=2",), "training.log_every"),  # the lines of metrics.jsonl
        (("training.deterministic=true",), "training.deterministic"),
    ],
)
def test_continue_with_other_settings_names_the_field(
    dataset: Path, no_picture: None, change: tuple[str, ...], field: str
) -> None:
    folder = go()
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UsageError, match=f"'{field}' differs"):
        go("dino", *change, resume=True)
    with pytest.raises(UsageError, match="'pretrain_on' differs"):
        go(resume=True, pretrain_on="all")
    assert (folder / "config.json").read_bytes() == before
    go("dino", "training.checkpoint_every=5", "training.num_workers=1", resume=True)  # these change nothing


def test_continue_with_other_cases_is_refused(dataset: Path, no_picture: None) -> None:
    go()
    splits = json.loads((dataset / "splits.json").read_text())
    splits["folds"][0]["train"] += splits["test"]
    splits["test"] = []
    (dataset / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(UsageError, match="other cases"):
        go(resume=True)


def test_stored_cases_that_no_split_knows_are_left_out_and_told(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = json.loads((dataset / "splits.json").read_text())
    added = splits["folds"][0]["train"].pop()  # stored, and perhaps another scan of the test subject
    splits["folds"][0]["val"] = [splits["folds"][0]["train"].pop()]
    (dataset / "splits.json").write_text(json.dumps(splits))
    data = open_pretrain_data((1,), "plans", "train")
    fold = splits["folds"][0]
    assert data.indexes[0].case_ids == sorted([*fold["train"], *fold["val"]])
    settings = plan_run(1, "dino", config="vit_test", device="cpu", overrides=TINY)
    print_decisions(settings)
    told = next(d for d in settings.decisions if d.what == "stored cases left out")
    assert "1 stored cases of Dataset001_Tiny are not in splits.json: headct_preprocess -d 1" in told.value
    assert "stored cases left out" in capsys.readouterr().out
    everything = open_pretrain_data((1,), "plans", "all")
    assert added in everything.indexes[0].case_ids
    assert everything.num_cases == 6
    assert everything.left_out == ()
    (dataset / "splits.json").write_text(json.dumps({"format": 1, "test": splits["test"], "folds": [{"train": []}]}))
    with pytest.raises(DataError, match="5 stored cases of Dataset001_Tiny are not in"):
        open_pretrain_data((1,), "plans", "train")


def test_the_largest_head_is_read_whole(dataset: Path) -> None:
    """Heads of 120 mm fit the 144 mm of the input; one of 152 mm makes its frame, and so what is read, larger."""
    index = open_pretrain_data((1,), "plans", "train").indexes[0]
    assert plan_run(1, "mae", config="vit_test", device="cpu", overrides=TINY).read_shape == (34, 36, 36)
    rows = CaseIndex.open(index.folder).rows
    large = replace(rows[0], head_box=((2, 32), (0, 38), (3, 33)))
    write_index(index.folder, [large, *rows[1:]])
    assert open_pretrain_data((1,), "plans", "train").max_head_shape == (30, 38, 30)
    assert plan_run(1, "mae", config="vit_test", device="cpu", overrides=TINY).read_shape == (34, 38, 36)


def test_estimate_decides_the_same_and_writes_nothing(dataset: Path, roots: Path) -> None:
    settings = plan_run(1, "dino", config="vit_test", device="cpu", overrides=TINY)
    assert not any((roots / "results").iterdir())
    folder = go()
    config = json.loads((folder / "config.json").read_text())
    assert config["training"] == settings.model_dump(mode="json")["training"]


def test_begin_from_weights(dataset: Path, no_picture: None) -> None:
    first = go("dino", tag="first")
    folder = go("mae", init=first, tag="second")
    text = (folder / "train.log").read_text()
    assert "0 skipped, 0 missing (100.0 % of the encoder)" in text
    assert json.loads((folder / "config.json").read_text())["init"] == load_weights(first).contract.weights_hash

    # Six small steps leave the weights near where they began, and far from another random start.
    def distance(other: Path) -> float:
        one, two = load_file(folder / "encoder.safetensors"), load_file(other / "encoder.safetensors")
        return sum(float((one[k] - two[k]).abs().sum()) for k in two)

    assert distance(first) < 0.2 * distance(go("mae", "training.seed=7", tag="scratch"))
    with pytest.raises(ContractError, match=r"differ in 'encoder\.family'"):
        go("mae", init=first, config="resenc_test", tag="third")


@pytest.mark.parametrize(
    ("part", "changes", "field"),
    [
        ("encoder", {"patch": [4, 4, 4]}, "encoder.patch"),
        ("encoder", {"registers": 2}, "encoder.registers"),
        ("encoder", {"position": "trainable"}, "encoder.position"),
        ("encoder", {"qkv_bias": False}, "encoder.qkv_bias"),
        ("input", {"spacing_mm": [3.0, 6.0, 6.0]}, "input.spacing_mm"),
        ("input", {"rule": "stretch_to_shape"}, "input.rule"),
        ("input", {"windows": [{"level": 40, "width": 81}] * 3}, "input.windows"),
        ("encoder", {"drop_path": 0.1, "input_shape": [36, 36, 36]}, None),
        ("input", {"shape": [36, 36, 36]}, None),
    ],
)
def test_weights_of_another_network_or_input_are_refused_by_field(
    dataset: Path, roots: Path, no_picture: None, part: str, changes: dict[str, object], field: str | None
) -> None:
    """Nine tenths of the tensors would fit, with a meaning they never had."""
    first = read_json(dataset / "plans.json", Plans).configuration("vit_test")
    content = {"encoder": fitted_encoder(first).model_dump(mode="json"), "input": first.input.model_dump(mode="json")}
    content[part].update(changes)
    contract = Contract.model_validate(
        {
            "package_version": "0", "kind": "encoder", "storage": {}, "preset": "vit_test", "method": "dino",
            "settings": "{}", "num_scans": 1, "cases_digest": "0", **content,
        }
    )  # fmt: skip
    save_encoder(roots / "encoder.safetensors", build_from_settings(contract.encoder), contract)

    def look() -> object:
        init = roots / "encoder.safetensors"
        return plan_run(1, "mae", config="vit_test", init=init, device="cpu", overrides=TINY)

    if field is None:
        look()
        return
    with pytest.raises(ContractError, match=f"differ in '{field}'") as caught:
        look()
    assert "start from scratch" in (caught.value.do or "")


def test_several_datasets(roots: Path, dataset: Path, no_picture: None) -> None:
    make_stored_dataset(roots / "preprocessed", dataset_id=2, num_cases=3, test=())
    folder = pretrain([1, 2], "dino", config="vit_test", device="cpu", quiet=True, overrides=TINY)
    assert folder.name == "dino__vit_test__plans__d1+2"
    assert read_json(folder / "contract.json", Contract).num_scans == 8
    make_stored_dataset(roots / "preprocessed", dataset_id=3, rule=StorageRule(spacing_mm=(4, 4, 5), masks=()))
    with pytest.raises(UsageError, match="no raw dataset number 3"):
        pretrain([1, 3], "mae", config="vit_test", device="cpu", quiet=True, overrides=TINY)
    with pytest.raises(UsageError, match="list of datasets"):
        pretrain([1, 1], "mae", device="cpu", quiet=True)


def test_the_copy_of_a_dataset_under_another_rule_is_kept_up_to_date(
    roots: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """When cases are added, and after a kill while it was made."""
    raw = make_dataset(3, 4, unknown=0)
    plan_and_preprocess([3], num_workers=1, quiet=True)
    whole = (raw / "cases.csv").read_bytes()
    (raw / "cases.csv").write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))

    def stored() -> int:
        return len(open_pretrain_data((1, 3), "plans", "all").indexes[1])

    assert stored() == 3
    (raw / "cases.csv").write_bytes(whole)
    capsys.readouterr()
    assert stored() == 4
    assert "dataset 3: 1 cases were added since" in capsys.readouterr().out
    (preprocessed_dataset(3) / StorageRule(spacing_mm=SPACING).storage_id / INDEX_NAME).unlink()
    assert stored() == 4


def test_dataset_that_is_not_ready_names_the_command(roots: Path, dataset: Path) -> None:
    with pytest.raises(HeadCTSSLError) as error:
        pretrain(1, "mae", plans_name="other", quiet=True)
    assert "headct_plan_and_preprocess -d 1 -p other" in error.value.message
    rule = StorageRule(spacing_mm=SPACING, masks=())
    (dataset / rule.storage_id).rename(dataset / "elsewhere")
    with pytest.raises(DataError, match="was not preprocessed") as missing:
        pretrain(1, "mae", config="vit_test", quiet=True)
    assert "headct_plan_and_preprocess -d 1" in missing.value.message


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-d", "1", "-m", "dinno"], 2, "Did you mean 'dino'?"),
        (["-d", "1", "-m", "mae", "-c", "vit_tset"], 2, "vit_test"),
        (["-d", "9", "-m", "mae"], 2, "9"),
        (["-d", "1", "-m", "mae", "--set", "training.lrr=1"], 2, "training.lr"),
        (["-d", "1", "-m", "mae", "--tag", "a/b"], 2, "--tag a/b"),
        (["-d", "1", "-m", "mae", "--device", "tpu"], 2, "cpu"),
        (["-d", "1", "-m", "mae", "-w", "nowhere"], 2, "no weights at nowhere"),
    ],
)
def test_wrong_calls_end_with_one_message(
    dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    more = [] if "-c" in arguments else ["-c", "vit_test"]
    assert run_command("pretrain", [*arguments, *more]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err


def test_unset_root_says_how_to_set_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"headctssl_{kind}", raising=False)
    assert run_command("pretrain", ["-d", "1", "-m", "mae"]) == 2
    assert "export headctssl_preprocessed=" in capsys.readouterr().err


def test_commands(dataset: Path, capsys: pytest.CaptureFixture[str], no_picture: None) -> None:
    sets = [word for text in TINY for word in ("--set", text)]
    call = ["-d", "1", "-m", "dino", "-c", "vit_test", "--device", "cpu", *sets]
    assert run_command("estimate", call) == 0
    assert "estimate:" in capsys.readouterr().out
    assert run_command("pretrain", call) == 0
    assert "step 6/6" in capsys.readouterr().out
    assert run_command("pretrain", call) == 2
    with pytest.raises(SystemExit) as listed:
        run_command("pretrain", ["--list"])
    assert listed.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("dino", "mae", "vit_b", "resenc_l"))


def test_damaged_case_stops_the_run_with_its_name(dataset: Path, no_picture: None) -> None:
    storage = dataset / StorageRule(spacing_mm=SPACING, masks=()).storage_id
    path = next(storage.glob("*/SECRET002.b2nd"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    with pytest.raises(DataError, match="SECRET002"):
        go("dino", "training.num_steps=20")
