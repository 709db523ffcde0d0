"""Tests of finetuning/finetune.py and train.py: whole runs on tiny heads, what they leave, refuse, resume and keep."""

from __future__ import annotations

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from small_heads import INPUT, STORAGE, make_dataset, make_encoder

from headctssl.cli.main import run_command
from headctssl.contract import HeadSettings
from headctssl.errors import ContractError, DataError, StoppedError, UsageError
from headctssl.finetuning import frozen, prepare
from headctssl.finetuning.adapt import Best, settle_norm
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.judging import Verdict
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.metrics.metrics_file import Metrics
from headctssl.networks.heads import build_head
from headctssl.paths import ROOT_KINDS
from headctssl.planning.machine import detect_machine
from headctssl.planning.plans import ConfigurationPlan, Plans, SplitRule
from headctssl.settings import read_json, write_json
from headctssl.training.checkpoint import load_weights
from headctssl.training.run_log import read_metrics

COMMON = {
    "config.json", "environment.json", "metrics.jsonl", "train.log", "progress.png", "contract.json", "cases.csv",
    "classifier.safetensors", "predictions.csv", "validation_predictions.csv", "metrics.json", "tensorboard",
}  # fmt: skip
SHAREABLE = ("classifier.safetensors", "contract.json", "environment.json")
FAST = {"num_workers": 0, "quiet": True, "device": "cpu"}
FEW_STEPS = ("training.num_epochs=3", "training.precision=float32")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Dataset 2, never planned, and an encoder that another dataset's pretraining could have written."""
    root = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        make_dataset(2, 24, unknown=2)
        make_encoder(root / "enc")
        make_encoder(root / "cnn", "resenc_test", "mae")
        yield root


@pytest.fixture(scope="module")
def full(small):
    return finetune(2, small / "enc", overrides=FEW_STEPS, **FAST)


@pytest.fixture(scope="module")
def linear(small):
    return finetune(2, small / "enc", adapt="linear", **FAST)


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_full_leaves_these_files_and_no_case_in_what_is_shared(full, small):
    assert {p.name for p in full.iterdir()} == COMMON | {"checkpoint_latest.pt"}
    hash8 = load_weights(small / "enc").contract.weights_hash[:8]
    assert full.parts[-4:-1] == ("Dataset002_Small", "finetune", f"all-labels__full__dino-vit_test-{hash8}")
    assert full.name == "fold_0"
    for name in SHAREABLE:
        content = (full / name).read_bytes()
        for secret in (b"case2_", b"patient2_", str(small).encode()):
            assert secret not in content, (name, secret)
    assert b"case2_" not in (full / "checkpoint_latest.pt").read_bytes()


def test_metrics_and_predictions_of_the_test_cases(full):
    metrics = read_json(full / "metrics.json", Metrics)
    assert metrics.evaluated_on == "test"
    assert [m.name for m in metrics.labels] == ["bleed", "noise"]
    table = rows(full / "predictions.csv")
    assert list(table[0]) == ["case_id", "subject_id", "bleed", "noise"]
    assert len(table) == metrics.num_cases == 4
    assert metrics.num_subjects == len({r["subject_id"] for r in table}) == 2
    assert all(0 <= float(r["bleed"]) <= 1 for r in table)
    split = json.loads(next((full.parents[4] / "preprocessed").glob("*/splits.json")).read_text())
    assert sorted(r["case_id"] for r in table) == sorted(split["test"])
    parts = {r["case_id"]: r["part"] for r in rows(full / "cases.csv")}
    assert not set(parts) & set(split["test"])
    assert metrics.labels[0].n_unknown + metrics.labels[0].n_known == 4
    lines = [json.loads(text) for text in (full / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "lr", "scans_per_second", "data_wait", "seconds"} <= set(lines[-1])
    assert "validation_auroc" in lines[-1]


def test_linear_learns_a_visible_bleed_and_leaves_the_encoder_alone(linear, small):
    assert {p.name for p in linear.iterdir()} == COMMON
    metrics = read_json(linear / "metrics.json", Metrics)
    assert metrics.label("bleed").auroc == 1.0
    before, after = load_weights(small / "enc"), load_weights(linear)
    assert after.contract.kind == "classifier"
    assert [s.name for s in after.contract.labels] == ["bleed", "noise"]
    assert after.contract.storage == before.contract.storage
    assert after.contract.input == before.contract.input
    for name, tensor in before.part("encoder").items():
        assert torch.equal(tensor, after.part("encoder")[name]), name


def test_a_linear_head_learns_twice_and_validation_chooses(linear, small):
    lines = read_metrics(linear / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(400))
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), "one count over both"
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(lines))
    scores = [(line["validation_auroc"], -line["validation_loss"]) for line in lines]
    best = read_json(linear / "metrics.json", Metrics).best_epoch
    plain, whitened = max(scores[:200]), max(scores[200:])
    chosen = whitened if whitened[0] > plain[0] else plain
    assert best == scores.index(chosen) + 1, "a draw is the plain head's"
    log = (linear / "train.log").read_text()
    assert f"the head on {'whitened features' if best > 200 else 'features as they are'}" in log
    once = finetune(2, small / "enc", adapt="linear", tag="once", overrides=("task.whitening=null",), **FAST)
    first = read_metrics(once / "metrics.jsonl")
    assert [line["loss"] for line in first] == [line["loss"] for line in lines[:200]], "the first head is as ever"
    assert [line["loss"] for line in first] != [line["loss"] for line in lines[200:]]


@pytest.mark.parametrize(("second", "kept"), [(0.8, 3), (0.9, 6)])
def test_whitened_features_are_taken_only_for_a_better_ranking(small, monkeypatch, second, kept):
    losses = iter(range(100, 0, -1))  # every epoch has a lower loss than the one before

    def judged(*_):
        loss = float(next(losses))
        score = 0.8 if loss > 97 else second  # 3 epochs of each head
        return Verdict(score, loss, {"validation_auroc": score, "validation_loss": loss})

    monkeypatch.setattr(frozen, "judge", judged)
    run = finetune(2, small / "enc", adapt="linear", tag=f"draw{kept}", overrides=("training.num_epochs=3",), **FAST)
    assert read_json(run / "metrics.json", Metrics).best_epoch == kept


def test_an_existing_run_is_refused_and_an_overwritten_one_repeats_bit_for_bit(full, small):
    with pytest.raises(UsageError, match="exists already"):
        finetune(2, small / "enc", overrides=FEW_STEPS, **FAST)
    before = (full / "predictions.csv").read_bytes(), load_weights(full).contract.weights_hash
    stamp = (full / "classifier.safetensors").stat().st_mtime_ns
    finetune(2, small / "enc", overrides=FEW_STEPS, overwrite=True, **FAST)
    assert (full / "classifier.safetensors").stat().st_mtime_ns > stamp
    assert ((full / "predictions.csv").read_bytes(), load_weights(full).contract.weights_hash) == before


def test_a_finished_run_goes_on_to_the_same_end(full, small):
    """The best epoch travels in the checkpoint."""
    before = read_json(full / "metrics.json", Metrics)
    (full / "classifier.safetensors").unlink()
    finetune(2, small / "enc", overrides=FEW_STEPS, resume=True, **FAST)
    assert read_json(full / "metrics.json", Metrics) == before


def test_continue_equals_an_uninterrupted_run(full, small, monkeypatch):
    """Stopped in the second epoch, after a checkpoint that holds the best of the first."""
    keep, offers = Best.offer, []

    def stop(self, module, epoch, mean, loss):
        offers.append(epoch)
        if epoch == 2:
            raise StoppedError("stopped here by the test")
        return keep(self, module, epoch, mean, loss)

    monkeypatch.setattr(Best, "offer", stop)
    overrides = (*FEW_STEPS, "training.checkpoint_every=1")
    with pytest.raises(StoppedError):
        finetune(2, small / "enc", overrides=overrides, tag="cut", **FAST)
    monkeypatch.undo()
    assert offers == [1, 2]
    folder = finetune(2, small / "enc", overrides=overrides, tag="cut", resume=True, **FAST)
    assert load_weights(folder).contract.weights_hash == load_weights(full).contract.weights_hash
    steps = [json.loads(text)["step"] for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 7))
    with pytest.raises(UsageError, match=r"training\.seed"):
        finetune(2, small / "enc", overrides=(*overrides, "training.seed=3"), tag="cut", resume=True, **FAST)


def test_a_finished_linear_run_is_not_continued_and_not_touched(linear, small):
    """It keeps no checkpoint: going on would begin anew and lose it."""
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in linear.iterdir()}
    with pytest.raises(UsageError, match="finished and has no checkpoint to go on from") as caught:
        finetune(2, small / "enc", adapt="linear", resume=True, **FAST)
    assert all(word in caught.value.do for word in ("-w", "--overwrite", "--tag"))
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in linear.iterdir()} == before


def test_a_wrong_call_with_overwrite_leaves_the_old_run(full, small):
    before = (full / "classifier.safetensors").stat().st_mtime_ns
    for wrong in (
        "training.precision=fp16",
        "training.accumulation=3",
        "views.global_scale=[0.9,0.5]",
        "views.local_count=2",
    ):
        with pytest.raises(UsageError):
            finetune(2, small / "enc", overrides=("training.num_epochs=1", wrong), overwrite=True, **FAST)
    assert (full / "classifier.safetensors").stat().st_mtime_ns == before


def test_weights_that_do_not_fit_leave_the_old_run(full, small, monkeypatch):
    """The network is built before anything is removed."""

    def refuse(*_args, **_kwargs):
        raise ContractError("does not fit")

    monkeypatch.setattr("headctssl.finetuning.train.load_into", refuse)
    with pytest.raises(ContractError, match="does not fit"):
        finetune(2, small / "enc", overrides=FEW_STEPS, overwrite=True, **FAST)
    assert (full / "classifier.safetensors").exists()


def test_continue_with_other_labels_is_refused(full, small):
    table = small / "raw" / "Dataset002_Small" / "cases.csv"
    text = table.read_text()
    lines = text.splitlines(keepends=True)
    case = next(r["case_id"] for r in rows(full / "cases.csv") if r["part"] == "train")
    names = lines[0].strip().split(",")
    number = next(k for k, line in enumerate(lines) if line.startswith(f"{case},"))
    cells = lines[number].strip().split(",")
    cells[names.index("noise")] = str(1 - int(cells[names.index("noise")]))
    before = (full / "config.json").read_bytes()
    try:
        table.write_text("".join([*lines[:number], ",".join(cells) + "\n", *lines[number + 1 :]]))
        with pytest.raises(UsageError, match="other cases, labels or splits"):
            finetune(2, small / "enc", overrides=FEW_STEPS, resume=True, **FAST)
    finally:
        table.write_text(text)
    assert (full / "config.json").read_bytes() == before


def test_continue_on_another_machine_keeps_the_precision(small, monkeypatch):
    options = {"tag": "machine", **FAST}
    machine = detect_machine("cpu")

    def with_bf16(bf16):
        monkeypatch.setattr(prepare, "detect_machine", lambda device: machine.model_copy(update={"bf16": bf16}))

    with_bf16(False)
    folder = finetune(2, small / "enc", overrides=("training.num_steps=1",), **options)
    with_bf16(True)
    finetune(2, small / "enc", overrides=("training.num_steps=1",), resume=True, **options)
    assert read_json(folder / "config.json", FinetuneSettings).training.precision == "float32"
    wrong = ("training.num_steps=1", "training.precision=bf16")
    with pytest.raises(UsageError, match=r"'training\.precision' differs"):
        finetune(2, small / "enc", overrides=wrong, resume=True, **options)


def test_few_shots_of_a_cnn_without_validation(small):
    folder = finetune(
        2, small / "cnn", few_shots=2, fold="none", labels=["bleed"], overrides=("training.num_epochs=2",), **FAST
    )
    assert "bleed-2shots__full__mae-resenc_test-" in folder.parent.name
    assert folder.name == "fold_none"
    metrics = read_json(folder / "metrics.json", Metrics)
    assert metrics.best_epoch == 2
    assert any("last epoch" in note for note in metrics.notes)
    used = rows(folder / "cases.csv")
    assert len(used) == 4
    assert {r["part"] for r in used} == {"train"}
    assert len({r["case_id"] for r in used}) == 4


def test_scratch_takes_its_input_from_the_plans(small):
    """Without -c the configurations are listed; fields of the encoder can be set."""
    with pytest.raises(DataError, match="no plans"):
        finetune(2, "scratch", config="vit_test", **FAST)
    plans = Plans(
        dataset_id=2,
        dataset_name="Dataset002_Small",
        num_cases=24,
        num_subjects=12,
        fingerprint_digest="0" * 16,
        profile="laptop",
        storage=STORAGE,
        configurations=(ConfigurationPlan(preset="vit_test", input=INPUT, token_size=(6, 6, 6)),),
        split_rule=SplitRule(),
        decisions=(),
    )
    write_json(small / "preprocessed" / "Dataset002_Small" / "plans.json", plans)
    with pytest.raises(UsageError, match="name of an encoder") as caught:
        finetune(2, "scratch", **FAST)
    assert "vit_test" in str(caught.value.expected)
    with pytest.raises(UsageError, match="Unknown configuration"):
        finetune(2, "scratch", config="vit_huge", **FAST)
    for name in ("family=resenc", "in_channels=1", "input_shape=[12,12,12]", "patch=[12,12,12]", "strides=[]"):
        with pytest.raises(UsageError, match="is decided by the plans"):
            finetune(2, "scratch", config="vit_test", overrides=(f"encoder.{name}",), **FAST)
    overrides = ("training.num_steps=3", "encoder.registers=2")
    folder = finetune(2, "scratch", config="vit_test", overrides=overrides, **FAST)
    assert folder.parent.name == "all-labels__full__scratch-vit_test"
    weights = load_weights(folder)
    assert weights.contract.encoder.registers == 2
    assert weights.tensors["encoder.registers"].shape == (1, 2, 48)
    assert "random weights (scratch)" in (folder / "train.log").read_text()
    assert "from scratch" in read_json(folder / "metrics.json", Metrics).leakage


def test_wrong_calls_are_told(small, full):
    with pytest.raises(ContractError, match="another kind"):
        finetune(2, full / "classifier.safetensors", **FAST)
    with pytest.raises(UsageError, match="Unknown label 'bled'"):
        finetune(2, small / "enc", labels=["bled"], **FAST)
    with pytest.raises(ContractError, match="'config'"):
        finetune(2, small / "enc", config="vit_b", **FAST)
    with pytest.raises(UsageError, match="fold"):
        finetune(2, small / "enc", fold="../x", **FAST)
    with pytest.raises(UsageError, match="no weights"):
        finetune(2, small / "nothing", **FAST)


@pytest.mark.parametrize("command", ["finetune", "evaluate", "embed"])
def test_less_than_no_readers_are_refused(command, capsys):
    call = {"embed": ["-o", "x.csv"]}.get(command, [])
    with pytest.raises(SystemExit) as ended:
        run_command(command, ["-d", "2", "-w", "x", *call, "--num_workers", "-1"])
    assert ended.value.code == 2
    assert "-1 is not 0 or more" in capsys.readouterr().err
    if command == "finetune":
        with pytest.raises(UsageError, match="fewer than no reader"):
            finetune(2, "x", num_workers=-1)


def test_leakage_is_told(small, full, tmp_path):
    used = rows(full / "cases.csv")
    encoder = shutil.copytree(small / "enc", tmp_path / "run")
    test_case = rows(full / "predictions.csv")[0]["case_id"]
    stored = next((small / "preprocessed").glob("*/spl_*/cases.csv"))
    source = next(r["source_sha256"] for r in rows(stored) if r["case_id"] == test_case)
    text = f"dataset_id,case_id,source_sha256\n2,{used[0]['case_id']},{used[0]['source_sha256']}\n7,other,{source}\n"
    (encoder / "cases.csv").write_text(text)
    folder = finetune(2, encoder, adapt="linear", tag="leak", overrides=("training.num_epochs=2",), **FAST)
    assert "pretraining: 1 of 4 judged cases" in read_json(folder / "metrics.json", Metrics).leakage
    (encoder / "cases.csv").write_text(text.rsplit("7,other", 1)[0])
    folder = finetune(
        2, encoder, adapt="linear", tag="leak", overrides=("training.num_epochs=2",), overwrite=True, **FAST
    )
    assert "pretraining: no overlap" in read_json(folder / "metrics.json", Metrics).leakage
    assert "cannot be checked" in read_json(full / "metrics.json", Metrics).leakage


def test_the_heads_norm_starts_where_the_features_are():
    features = torch.randn(50, 4) * 1e-3 + 5
    head = build_head(HeadSettings(), 4, 1)
    settle_norm(head, features)
    out = head.eval().norm(features)
    assert torch.allclose(out.mean(dim=0), torch.zeros(4), atol=1e-2)
    assert torch.allclose(out.std(dim=0), torch.ones(4), atol=0.5)  # eps 1e-6 beside a variance of 1e-6
    without = build_head(HeadSettings(batch_norm=False), 4, 1)
    settle_norm(without, features)  # nothing to settle


def test_best_takes_the_highest_score_then_the_lowest_loss_then_the_first():
    module = torch.nn.Linear(1, 1)
    best = Best()
    taken = [best.offer(module, e, a, x) for e, (a, x) in enumerate([(0.5, 1.0), (0.7, 1.0), (0.7, 0.5), (0.7, 0.5)])]
    assert taken == [True, True, True, False]
    assert (best.epoch, best.score, best.loss) == (2, 0.7, 0.5)
    other = Best()
    other.load_state_dict(best.state_dict())
    assert np.array_equal(other.state["weight"], module.weight.detach())
    latest = Best()
    assert all(latest.offer(module, epoch, None, 0.0) for epoch in (1, 2))
    assert latest.epoch == 2
