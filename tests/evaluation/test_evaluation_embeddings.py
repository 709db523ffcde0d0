"""Tests of evaluation/embeddings.py and probe.py: files of vectors, what is wrong with them, and the probe on them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from headctssl.contract import LabelSpec
from headctssl.errors import DataError, UsageError
from headctssl.evaluation.embeddings import read_embeddings
from headctssl.evaluation.probe import fit_probe
from headctssl.finetuning.cohort import Cohort


def test_both_formats_say_the_same(tmp_path):
    ids, vectors = ["b", "a", "c"], np.array([[1.5, 2], [3, 4], [5, 6]])
    np.savez(tmp_path / "v.npz", case_id=np.array(ids), vector=vectors.astype(np.float32))
    lines = [f"{x},{case_id},{y}" for case_id, (x, y) in zip(ids, vectors, strict=True)]
    (tmp_path / "v.csv").write_text("\n".join(["f0,case_id,f1", *lines]) + "\n")
    one, other = (read_embeddings(tmp_path / name) for name in ("v.npz", "v.csv"))
    assert np.array_equal(one.of(["a", "b"]), [[3, 4], [1.5, 2]])
    assert one.digest() == other.digest()
    (tmp_path / "turned.csv").write_text("\n".join(["f0,case_id,f1", *reversed(lines)]) + "\n")
    assert read_embeddings(tmp_path / "turned.csv").digest() == one.digest()
    (tmp_path / "changed.csv").write_text("\n".join(["f0,case_id,f1", *lines]).replace("1.5", "1.6") + "\n")
    assert read_embeddings(tmp_path / "changed.csv").digest() != one.digest()
    one.require(["a", "c"])
    with pytest.raises(DataError, match="no vector of 2 of 3 cases"):
        one.require(["a", "x", "y", "y"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("f0,f1\n1,2\n", "no column case_id"),
        ("case_id,f0\na,1\na,2\n", "1 ids twice"),
        ("case_id,f0\na,nan\nb,1\n", "1 vectors with NaN"),
        ("case_id,f0\na,1,2\nb,1\n", "lines of different lengths"),
        ("case_id,f0\na,one\n", "could not convert"),
        ("case_id,f0\n", "array of shape"),
        ("", "no column case_id"),
        ("case_id,f0\n" + "x" * 200_000 + ",1\n", "field larger"),
        (",case_id,f0\n0,a,1.5\n1,b,2.5\n", "column 1 has no name"),
        ("case_id,f0,\na,1,2\n", "column 3 has no name"),
        ("case_id,f0\na,1\n a,2\n", "1 ids twice"),
        ("case_id,f0\na,1\n,2\n", "1 vectors without an id"),
    ],
)
def test_wrong_tables_are_told(tmp_path, text, what):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(DataError, match=what):
        read_embeddings(tmp_path / "v.csv")


def test_what_spreadsheets_add_to_a_table_changes_nothing(tmp_path):
    (tmp_path / "v.csv").write_bytes(b"case_id,f0\na,1.5\nb,2.5\n")
    (tmp_path / "w.csv").write_bytes(b"\xef\xbb\xbfcase_id, f0\r\na ,1.5\r\n b,2.5\r\n\r\n,\r\n")
    plain, other = (read_embeddings(tmp_path / name) for name in ("v.csv", "w.csv"))
    assert other.case_ids == ("a", "b")
    assert plain.digest() == other.digest()


def test_a_damaged_file_is_told_wherever_it_is_damaged(tmp_path):
    file = tmp_path / "v.npz"
    np.savez_compressed(file, case_id=np.array(["a", "b"]), vector=np.random.default_rng(0).normal(size=(2, 400)))
    whole = file.read_bytes()
    damaged = [whole[:n] for n in (0, 3, 10, len(whole) // 2, len(whole) - 5)]
    damaged += [whole[:n] + b"\xff\xff\xff\xff" + whole[n + 4 :] for n in range(30, len(whole) - 4, 97)]
    told = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            read_embeddings(file)
        except DataError:
            told += 1
    assert told >= len(damaged) - 2  # bytes that nothing reads, such as the time of a member
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(file)
    with pytest.raises(DataError, match="one array without names"):
        read_embeddings(file)


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read_embeddings(tmp_path / "v.csv")
    (tmp_path / "v.txt").write_text("")
    with pytest.raises(UsageError, match="another kind"):
        read_embeddings(tmp_path / "v.txt")
    np.savez(tmp_path / "v.npz", vector=np.ones((2, 2)))
    with pytest.raises(DataError, match="does not hold vectors"):
        read_embeddings(tmp_path / "v.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="does not hold vectors"):
        read_embeddings(tmp_path / "broken.npz")


@pytest.fixture
def learnable():
    """120 cases, one informative of 20 features; one label with unknown cells, one with one class in training."""
    rng = np.random.default_rng(0)
    ids = tuple(f"c{k:03d}" for k in range(120))
    features = rng.normal(size=(120, 20))
    truth = (3 * features[:, :1] + rng.normal(size=(120, 1)) > 0).astype(np.float32)
    table = {c: np.array([truth[k, 0], 0.0], np.float32) for k, c in enumerate(ids)}
    for case_id in ids[:5]:
        table[case_id][0] = np.nan
    specs = (LabelSpec(name="seen"), LabelSpec(name="absent"))
    subjects, sessions = dict(zip(ids, ids, strict=True)), dict.fromkeys(ids, "")
    cohort = Cohort(specs, ids[:60], ids[60:80], ids[80:], table, subjects, sessions)
    place = {case_id: k for k, case_id in enumerate(ids)}
    return cohort, lambda case_ids: features[[place[c] for c in case_ids]], truth[80:, 0]


@pytest.mark.parametrize("choose", [True, False])
def test_the_probe_finds_what_is_there(learnable, choose):
    cohort, features, truth = learnable
    probability, learnt, notes = fit_probe(cohort, features, choose=choose)
    assert probability.shape == (40, 2)
    assert roc_auc_score(truth, probability[:, 0]) > 0.7
    assert np.ptp(probability[:, 1]) == 0  # training showed one class only
    assert learnt == 21 * 2
    assert bool(notes) == choose


def test_the_test_cases_do_not_choose_the_penalty(learnable):
    cohort, features, _ = learnable
    before = fit_probe(cohort, features, choose=True)
    for case_id in cohort.test:
        cohort.table[case_id][0] = 1 - cohort.table[case_id][0]
    after = fit_probe(cohort, features, choose=True)
    assert np.array_equal(before[0], after[0])
    assert before[2] == after[2]
