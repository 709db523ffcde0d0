"""Tests of fine-tuning and evaluation in two processes: the numbers of one, every case once, one set of files."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_heads import make_dataset, make_encoder
from together import command, together

SETS = (
    "training.num_epochs=2",
    "training.batch_size=4",
    "training.precision=float32",
    "training.optimizer=sgd",  # Adam would magnify the rounding of tiny gradients
    # The features of a random encoder hardly differ, and the norm before the head divides rounding by their deviation
    # of .02: at a large rate the two runs would drift apart.
    "training.lr=0.0001",
    "task.head_lr_scale=30",
)


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes of these tests have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def call_of(encoder, tag, adapt, *more):
    sets = [
        word for text in (*(SETS[:1] if adapt in ("linear", "attentive") else SETS), *more) for word in ("--set", text)
    ]
    words = ["-d", "2", "-w", str(encoder), "--adapt", adapt, "--tag", tag]
    return [*words, "--device", "cpu", "--num_workers", "0", "--quiet", *sets]


def go(processes, name, words):
    results = [command(name, words)] if processes == 1 else together(command, name, words, number=processes)
    assert [code for code, _ in results] == [0] * processes, results


def folder_of(roots, tag):
    (folder,) = (roots / "results").glob(f"*/finetune/*__{tag}/fold_0")
    return folder


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def assert_same_predictions(one, two):
    """Every case once, in the same order, with the same probabilities."""
    first, second = rows(one / "predictions.csv"), rows(two / "predictions.csv")
    cases = [row["case_id"] for row in first]
    assert len(set(cases)) == len(cases) > 0
    assert [row["case_id"] for row in second] == cases
    for label in ("bleed", "noise"):
        np.testing.assert_allclose(
            [float(r[label]) for r in first], [float(r[label]) for r in second], rtol=1e-4, atol=1e-5
        )


def assert_same_run(one, two):
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    tensors = load_file(two / "classifier.safetensors")
    for name, tensor in load_file(one / "classifier.safetensors").items():
        torch.testing.assert_close(tensor, tensors[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    lines = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    for a, b in zip(*lines, strict=True):
        for key in ("loss", "validation_loss", "validation_auroc"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-5), key
    assert_same_predictions(one, two)


def test_two_processes_fine_tune_and_evaluate_as_one(roots):
    """With unknown labels, and five validation and test cases, which two processes cannot share out evenly."""
    make_dataset(2, 22, unknown=5)
    encoder = make_encoder(roots / "encoder")
    for processes, tag in ((1, "one"), (2, "two")):
        go(processes, "finetune", call_of(encoder, tag, "full"))
    assert_same_run(folder_of(roots, "one"), folder_of(roots, "two"))
    found = []
    for processes in (1, 2):
        go(processes, "evaluate", ["-d", "2", "-w", str(folder_of(roots, "one")), "--split", "all", "--quiet"])
        (folder,) = (roots / "results").glob("*/evaluate/*__all")
        folder.rename(roots / f"evaluated{processes}")
        found.append(json.loads((roots / f"evaluated{processes}" / "metrics.json").read_text()))
    assert_same_predictions(roots / "evaluated1", roots / "evaluated2")
    assert found[0]["num_cases"] == found[1]["num_cases"] == 22
    assert found[0]["labels"]["bleed"]["auroc"] == found[1]["labels"]["bleed"]["auroc"]


@pytest.mark.parametrize(
    ("adapt", "more"),
    [
        ("lora", ("task.balance=sampling",)),
        ("full", ("task.schedule=sawtooth", "task.head_share=0.3")),
    ],
)
def test_two_processes_adapt_as_one(roots, adapt, more):
    make_dataset(2, 22, unknown=5)
    encoder = make_encoder(roots / "encoder")
    for processes, tag in ((1, "one"), (2, "two")):
        go(processes, "finetune", call_of(encoder, tag, adapt, *more))
    assert_same_run(folder_of(roots, "one"), folder_of(roots, "two"))


@pytest.mark.evidence
@pytest.mark.parametrize("cache", ["4", "0"])
def test_an_attentive_head_in_two_processes_is_the_one_of_one(roots, cache):
    make_dataset(2, 22, unknown=5)
    encoder = make_encoder(roots / "encoder")
    for processes, tag in ((1, "one"), (2, "two")):
        go(processes, "finetune", call_of(encoder, tag, "attentive", f"task.cache_gb={cache}"))
    assert_same_run(folder_of(roots, "one"), folder_of(roots, "two"))


@pytest.mark.evidence
@pytest.mark.parametrize("preset", ["resenc_test", "unet3d_test"])
def test_other_encoders_in_three_processes(roots, preset):
    make_dataset(2, 22, unknown=5)
    encoder = make_encoder(roots / "encoder", preset, "mae")
    for processes, tag in ((1, "one"), (3, "three")):
        words = call_of(encoder, tag, "full")
        go(processes, "finetune", [word.replace("batch_size=4", "batch_size=6") for word in words])
    assert_same_run(folder_of(roots, "one"), folder_of(roots, "three"))


@pytest.mark.evidence
def test_a_linear_head_in_two_processes_is_the_one_of_one(roots):
    make_dataset(2, 22, unknown=5)
    encoder = make_encoder(roots / "encoder")
    for processes, tag in ((1, "one"), (2, "two")):
        go(processes, "finetune", call_of(encoder, tag, "linear"))
    assert_same_run(folder_of(roots, "one"), folder_of(roots, "two"))


@pytest.mark.evidence
def test_attention_over_scans_learnt_in_two_processes_is_that_of_one(roots):
    table = make_dataset(2, 22, unknown=5) / "cases.csv"
    first, *others = table.read_text().splitlines()
    table.write_text("".join(f"{line}\n" for line in (f"{first},session_id", *(f"{line},day" for line in others))))
    encoder = make_encoder(roots / "encoder")
    for processes, tag in ((1, "one"), (2, "two")):
        go(processes, "finetune", call_of(encoder, tag, "linear", "head.scans=attention", "training.batch_size=4"))
    assert_same_run(folder_of(roots, "one"), folder_of(roots, "two"))
    one, two = (rows(folder_of(roots, tag) / "predictions_studies.csv") for tag in ("one", "two"))
    assert len(one) == len({row["subject_id"] for row in one}) > 0
    assert [float(r["bleed"]) for r in one] == pytest.approx([float(r["bleed"]) for r in two], abs=1e-5)


@pytest.mark.evidence
def test_accumulation_is_the_large_batch_where_the_head_has_no_batch_norm(roots):
    make_dataset(2, 22, unknown=9)
    encoder = make_encoder(roots / "encoder")
    go(1, "finetune", call_of(encoder, "whole", "full", "head.batch_norm=false"))
    go(1, "finetune", call_of(encoder, "parts", "full", "head.batch_norm=false", "training.accumulation=4"))
    assert_same_run(folder_of(roots, "whole"), folder_of(roots, "parts"))


def test_a_wrong_call_is_told_by_every_process(roots):
    make_dataset(2, 4)
    for code, errors in together(command, "finetune", ["-d", "2", "-w", os.devnull + "x", "--device", "cpu"]):
        assert code == 2
        assert "no weights" in errors
