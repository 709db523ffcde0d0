"""Tests of head.scans=attention: studies of which one scan shows the finding, learnt, saved, resumed, refused."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from small_heads import head, make_dataset, make_encoder

from headctssl.cli.main import run_command
from headctssl.dataset.image_io import write_nifti
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.dataset.splits import load_splits
from headctssl.errors import ContractError, DataError, StoppedError, UsageError
from headctssl.evaluation.evaluate import evaluate
from headctssl.finetuning.adapt import Best
from headctssl.finetuning.asked import check_processes
from headctssl.finetuning.cohort import choose_labels, make_cohort
from headctssl.finetuning.ensemble import open_ensemble
from headctssl.finetuning.finetune import finetune
from headctssl.finetuning.labelled import labelled_studies
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.finetuning.tasks import classifier_from
from headctssl.finetuning.whole_head import encode, stored_views
from headctssl.inference import predict as predicting
from headctssl.inference.predict import predict
from headctssl.metrics.metrics_file import Metrics
from headctssl.paths import ROOT_KINDS, data_root, preprocessed_dataset
from headctssl.preprocessing.plan_and_preprocess import ensure_preprocessed
from headctssl.settings import read_json
from headctssl.training.checkpoint import load_weights

FAST = {"num_workers": 0, "quiet": True, "device": "cpu"}
ON = "head.scans=attention"
SCANS = 3
LOOP = (ON, "training.num_epochs=3", "training.batch_size=4", "training.precision=float32", "task.most_scans=2")


def shows(case_id):
    """Whether a scan itself shows the bleed: one of the three of every other study, another one in every study."""
    study, scan = map(int, case_id.removeprefix("s").split("_"))
    return study % 2 == 0 and scan == (study // 2) % SCANS


def bright(volume):
    """A head whose whole brain is bright, which any network sees."""
    return dataclasses.replace(volume, hu=np.where((volume.hu > 0) & (volume.hu < 60), np.int16(75), volume.hu))


def write_studies(dataset_id=2, studies=40, *, ball=False):
    """A raw dataset whose scans all bear the label of their study; the finding is a ball, or the whole brain."""
    folder = make_dataset(dataset_id, 2, spacing=8.0)
    rows = []
    for study in range(studies):
        for scan in range(SCANS):
            case = f"s{study:03d}_{scan}"
            volume = head(10 * study + scan, ball and shows(case), 8.0)
            volume = bright(volume) if shows(case) and not ball else volume
            write_nifti(folder / "images" / f"{case}.nii.gz", volume)
            rows.append(
                {"case_id": case, "image": f"images/{case}.nii.gz", "subject_id": f"p{study:03d}", "session_id": "day1",
                 "bleed": str((study + 1) % 2), "noise": str(study // 2 % 2)}
            )  # fmt: skip
    pd.DataFrame(rows, dtype=str).to_csv(folder / "cases.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ROOT_KINDS:
            patch.setenv(f"headctssl_{kind}", str(root / kind))
            (root / kind).mkdir()
        write_studies()
        make_encoder(root / "enc")
        yield root


@pytest.fixture(scope="module")
def linear(small):
    return finetune(2, small / "enc", adapt="linear", labels=["bleed"], overrides=(ON,), **FAST)


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def scores_of(folder, case_ids):
    """(n, 2) logit and attention score of stored scans, in the order of the ids."""
    weights = load_weights(folder)
    index = ensure_preprocessed(2, weights.contract.storage, quiet=True).subset(case_ids)
    views = stored_views(index, weights.contract.input, batch_size=8, num_workers=0, device=torch.device("cpu"))
    said = encode(classifier_from(weights.contract, weights.tensors), views, torch.device("cpu"))
    return said[[list(index.case_ids).index(c) for c in case_ids]]


def test_the_scan_that_shows_the_finding_is_found(linear, small):
    metrics = read_json(linear / "metrics.json", Metrics)
    assert metrics.studies.aggregate == "attention"
    assert metrics.studies.num_studies == metrics.studies.num_with_several == metrics.num_cases / SCANS
    assert metrics.studies.mean_auroc == 1.0
    assert metrics.validation_score == 1.0, "the epoch is chosen by studies"
    assert metrics.mean_auroc < 0.9, "two scans of three of a positive study show nothing"
    assert any("every scan as a study of its own" in note for note in metrics.notes)
    studies = rows(linear / "predictions_studies.csv")
    positive = [f"s{row['subject_id'][1:]}" for row in studies if int(row["subject_id"][1:]) % 2 == 0]
    case_ids = [f"{study}_{k}" for study in positive for k in range(SCANS)]
    weights = scores_of(linear, case_ids)[:, 1].view(-1, SCANS).softmax(dim=1)
    found = weights.argmax(dim=1)
    assert [shows(case_ids[SCANS * k + int(scan)]) for k, scan in enumerate(found)] == [True] * len(positive)
    assert weights.amax(dim=1).min() > 0.5
    plain = finetune(2, small / "enc", adapt="linear", labels=["bleed"], tag="plain", **FAST)
    assert read_json(plain / "metrics.json", Metrics).studies.aggregate == "mean"


def test_predictions_by_study_are_the_weighed_outputs_of_their_scans(linear):
    contract = load_weights(linear).contract
    scans = {row["case_id"]: float(row["bleed"]) for row in rows(linear / "predictions.csv")}
    said = dict(zip(scans, scores_of(linear, list(scans)).double(), strict=True))
    for case_id, (logit, _) in said.items():  # a study of one scan is that scan
        assert scans[case_id] == pytest.approx(float(torch.sigmoid(logit / contract.temperature)), abs=1e-5)
    for row in rows(linear / "predictions_studies.csv"):
        logits, scores = torch.stack([said[f"s{row['subject_id'][1:]}_{k}"] for k in range(SCANS)]).unbind(dim=1)
        together = float((scores.softmax(dim=0) * logits).sum()) / contract.temperature
        assert float(row["bleed"]) == pytest.approx(1 / (1 + np.exp(-together)), abs=1e-5)


def test_the_contract_travels_and_evaluation_and_prediction_use_it(linear, small, tmp_path, monkeypatch, command):
    loaded = load_weights(linear)
    assert loaded.contract.head.scans == "attention"
    assert read_json(linear / "contract.json", type(loaded.contract)) == loaded.contract
    assert {name for name in loaded.tensors if "scans" in name} == {
        f"head.scans.{part}.weight" for part in ("tanh", "gate", "score")
    }
    metrics = evaluate(2, linear, **FAST)
    assert metrics.studies == read_json(linear / "metrics.json", Metrics).studies
    assert evaluate(2, linear, aggregate="max", **FAST).studies.aggregate == "max"
    assert command("evaluate", "-d", 2, "-w", linear, "--aggregate", "attention", "--quiet")[0] == 0
    (folder,) = (small / "results").glob("*/evaluate/*__test")
    assert rows(folder / "predictions_studies.csv") == rows(linear / "predictions_studies.csv")
    assert command("report", linear, "--quiet")[0] == 0
    assert "attention over the scans, which was learnt" in (linear / "report.html").read_text()
    # Files know of no study, so each is its own, and says the same by itself and by study.
    some = rows(linear / "predictions_studies.csv")[:2]
    (tmp_path / "in").mkdir()
    for row in some:
        for k in range(SCANS):
            name = f"s{row['subject_id'][1:]}_{k}.nii.gz"
            (tmp_path / "in" / name).symlink_to(next((small / "raw").glob(f"*/images/{name}")))
    alone = predict(tmp_path / "in", linear, tmp_path / "alone.csv", **FAST)
    assert alone.studies == tuple((case_id,) for case_id in sorted(alone.case_ids))
    assert np.array_equal(alone.study_probabilities, alone.probabilities[np.argsort(alone.case_ids)])
    # As series of one study, in any order, beside any other, they are that study.
    find = predicting.find_sources
    for turned in (False, True):

        def grouped(path, turned=turned):
            found = [dataclasses.replace(s, study=(s.case_id[:4], "day1")) for s in find(path)]
            return found[::-1] if turned else found

        monkeypatch.setattr(predicting, "find_sources", grouped)
        together = predict(tmp_path / "in", linear, tmp_path / "p.csv", overwrite=True, **FAST)
        assert [float(row["bleed"]) for row in some] == pytest.approx(together.study_probabilities[:, 0], abs=1e-4)
        written = rows(tmp_path / "p_studies.csv")
        assert [row["num_scans"] for row in written] == [str(SCANS)] * 2
        one = predict(tmp_path / "in", linear, tmp_path / "p.csv", aggregate="mean", overwrite=True, **FAST)
        means = one.probabilities[np.argsort(one.case_ids)].reshape(2, SCANS).mean(axis=1)
        assert one.study_probabilities[:, 0] == pytest.approx(means)


@pytest.mark.parametrize("adapt", ["attentive", "lora"])
def test_other_adaptations_learn_studies_too(adapt, small):
    sets = (ON,) if adapt == "attentive" else LOOP
    folder = finetune(2, small / "enc", adapt=adapt, labels=["bleed"], overrides=(*sets, "task.balance=sampling"),
                      **FAST)  # fmt: skip
    metrics = read_json(folder / "metrics.json", Metrics)
    assert metrics.studies.aggregate == "attention"
    if adapt == "attentive":
        assert metrics.studies.mean_auroc > 0.9
    assert evaluate(2, folder, **FAST).studies == metrics.studies


def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(small, monkeypatch):
    whole = finetune(2, small / "enc", overrides=LOOP, tag="whole", **FAST)
    settings = read_json(whole / "config.json", FinetuneSettings)
    assert settings.steps_per_epoch == -(-(settings.training.samples_per_epoch) // 4)
    assert settings.training.samples_per_epoch <= settings.num_train / SCANS, "samples are studies"
    keep = Best.offer

    def stop(self, module, epoch, mean, loss):
        if epoch == 2:
            raise StoppedError("stopped here by the test")
        return keep(self, module, epoch, mean, loss)

    monkeypatch.setattr(Best, "offer", stop)
    overrides = (*LOOP, "training.checkpoint_every=1")
    with pytest.raises(StoppedError):
        finetune(2, small / "enc", overrides=overrides, tag="cut", **FAST)
    monkeypatch.undo()
    folder = finetune(2, small / "enc", overrides=overrides, tag="cut", resume=True, **FAST)
    one, other = load_weights(folder), load_weights(whole)
    assert one.contract.weights_hash == other.contract.weights_hash
    before = load_weights(small / "enc")
    assert any(not torch.equal(one.part("encoder")[n], t) for n, t in before.part("encoder").items())


def test_batches_of_any_size_and_other_readers_give_the_same_studies(linear, small):
    again = finetune(2, small / "enc", adapt="linear", labels=["bleed"], tag="batches",
                     overrides=(ON, "task.eval_batch_size=1"), **{**FAST, "num_workers": 1})  # fmt: skip
    first, second = (rows(folder / "predictions_studies.csv") for folder in (linear, again))
    assert [float(r["bleed"]) for r in first] == pytest.approx([float(r["bleed"]) for r in second], abs=1e-4)


def test_studies_that_contradict_themselves_are_left_out_and_sessions_are_part_of_the_digest(small):
    raw = load_raw_dataset(2)
    specs = choose_labels(raw.info.labels, ["bleed"])
    storage = load_weights(small / "enc").contract.storage
    index = ensure_preprocessed(2, storage, quiet=True)
    splits = load_splits(preprocessed_dataset(2))

    def cohort_of(**changed):
        cases = raw.cases.assign(**changed)
        return make_cohort(dataclasses.replace(raw, cases=cases), splits, index.case_ids, specs, fold="0",
                           few_shots=None)  # fmt: skip

    cohort = cohort_of()
    train = index.subset(cohort.train)
    found = labelled_studies(cohort, train)
    assert len(found) == len(cohort.train) / SCANS
    assert all(len({train.case_ids[row][:4] for row in group}) == 1 for group in found.studies)
    doubted, silent = found.first_scans[0], found.first_scans[1]
    bleed = raw.cases["bleed"].mask(raw.cases["case_id"] == doubted, "0")
    bleed = bleed.mask(raw.cases["case_id"] == doubted[:4] + "_1", "1")
    bleed = bleed.mask(raw.cases["case_id"] == silent, "")
    less = labelled_studies(cohort_of(bleed=bleed), train)
    assert doubted[:4] not in {case_id[:4] for case_id in less.first_scans}
    assert len(less) == len(found) - 1
    assert found.notes == ()
    assert less.notes == (
        "the scans of 1 studies contradict each other in 'bleed': unknown for the study",
        "1 studies have none of the labels known and are left out",
    )
    assert silent[:4] in {case_id[:4] for case_id in less.first_scans}, "its other scans say it"
    sessions = raw.cases["session_id"].mask(raw.cases["case_id"] == doubted, "day2")
    other = cohort_of(session_id=sessions)
    assert len(labelled_studies(other, train)) == len(found) + 1
    assert other.digest(index) != cohort.digest(index) == cohort_of().digest(index)


def test_a_label_on_one_scan_is_that_of_the_study_and_its_other_scans_are_weighed_too(small):
    folder = write_studies(3, 24)
    cases = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    first = cases["case_id"].str.endswith("_0")
    for label in ("bleed", "noise"):
        cases[label] = cases[label].where(first, "")
    cases.loc[cases["subject_id"] == "p000", ["bleed", "noise"]] = ""
    cases.to_csv(folder / "cases.csv", index=False)
    run = finetune(3, small / "enc", adapt="linear", overrides=(ON, "training.num_epochs=5"), **FAST)
    used = {row["case_id"] for row in rows(run / "cases.csv")}
    assert used
    assert all({f"{case_id[:4]}_{k}" for k in range(SCANS)} <= used for case_id in used)
    assert "s000_0" not in used, "of this study nothing is known"
    metrics = read_json(run / "metrics.json", Metrics)
    assert metrics.studies.num_with_several == metrics.studies.num_studies
    assert metrics.label("bleed").n_unknown == metrics.num_cases * (SCANS - 1) / SCANS
    assert evaluate(3, run, **FAST).studies.mean_auroc == metrics.studies.mean_auroc


def test_what_does_not_go_together_is_refused_by_name(linear, small, capsys, tmp_path):
    enc = small / "enc"
    for more, text in (
        ({"few_shots": 2}, "one scan of each patient"),
        ({"overrides": (ON, "views.flip_lr=true"), "adapt": "full"}, "each would be flipped by"),
        ({"overrides": ("task.most_scans=2",)}, r"task\.most_scans' has no effect here"),
        ({"overrides": ("head.scan_width=2",)}, r"head\.scan_width' has no effect here"),
        ({"overrides": ("head.scans=max",)}, r"head\.scans' does not accept"),
    ):
        with pytest.raises(UsageError, match=text):
            finetune(2, enc, tag="no", **{"adapt": "linear", "overrides": (ON,), **FAST, **more})
    make_dataset(5, 12, unknown=0)
    with pytest.raises(UsageError, match="needs training studies of several scans"):
        finetune(5, enc, adapt="linear", overrides=(ON,), **FAST)
    assert not list(data_root("results").glob("*/finetune/*__no"))
    settings = read_json(linear / "config.json", FinetuneSettings)
    check_processes(settings, 2)
    for adapt in ("full", "lora"):
        check_processes(settings.model_copy(update={"adapt": adapt}), 1)
        with pytest.raises(UsageError, match="in several processes"):
            check_processes(settings.model_copy(update={"adapt": adapt}), 2)
    plain = finetune(2, enc, adapt="linear", labels=["bleed"], overrides=("training.num_epochs=1",), tag="p", **FAST)
    for call in (lambda: evaluate(2, plain, aggregate="attention", **FAST),
                 lambda: predict(enc, plain, tmp_path / "p.csv", aggregate="attention", **FAST)):  # fmt: skip
        with pytest.raises(UsageError, match="has not learnt to weigh"):
            call()
    code = run_command("compare", ["-d", "2", "--encoders", "vit_test", "--set", "finetune.head.scans=attention"])
    assert code == 2
    assert "judges scan by scan" in capsys.readouterr().err


def test_an_ensemble_weighs_each_by_its_own_attention_and_takes_no_others(linear, small):
    task = finetune(2, small / "enc", adapt="linear", labels=["bleed"], fold=(0, 1), tag="folds",
                    overrides=(ON, "training.num_epochs=30"), **FAST)  # fmt: skip
    ensemble = open_ensemble(task)
    assert ensemble.weighs_scans
    metrics = evaluate(2, task, **FAST)
    assert metrics.studies.aggregate == "attention"
    said = [
        {row["subject_id"]: float(row["bleed"]) for row in rows(task / f"fold_{k}" / "predictions_studies.csv")}
        for k in (0, 1)
    ]
    contract = ensemble.as_one()
    name = f"*/evaluate/{contract.method}-{contract.preset}-{contract.weights_hash[:8]}__test"
    (folder,) = (small / "results").glob(name)
    for row in rows(folder / "predictions_studies.csv"):
        wanted = np.mean([one[row["subject_id"]] for one in said])
        assert float(row["bleed"]) == pytest.approx(wanted, abs=1e-5)
    together = read_json(task / "ensemble" / "metrics.json", Metrics)
    assert any("every scan as a study of its own" in note for note in together.notes)
    assert together.studies.model_copy(update={"labels": ()}) == metrics.studies.model_copy(update={"labels": ()})
    written = [rows(where / "predictions_studies.csv") for where in (folder, task / "ensemble")]
    for one, other in zip(*written, strict=True):
        assert float(one.pop("bleed")) == pytest.approx(float(other.pop("bleed")), abs=1e-5)
        assert one == other
    beside = [rows(task / f"fold_{k}" / "validation_predictions_studies.csv") for k in (0, 1)]
    everything = rows(task / "out_of_fold" / "predictions_studies.csv")
    assert everything == sorted((row for part in beside for row in part), key=lambda row: row["subject_id"])
    case_ids = [f"s{beside[0][0]['subject_id'][1:]}_{k}" for k in range(SCANS)]
    logits, scores = scores_of(task / "fold_0", case_ids).double().unbind(dim=1)
    wanted = torch.sigmoid((scores.softmax(dim=0) * logits).sum())
    assert float(beside[0][0]["bleed"]) == pytest.approx(float(wanted), abs=1e-5), "before the temperature"
    outside = read_json(task / "out_of_fold" / "metrics.json", Metrics)
    assert outside.studies.num_with_several == outside.studies.num_studies == outside.num_cases / SCANS
    areas = [read_json(task / f"fold_{k}" / "metrics.json", Metrics).validation_score for k in (0, 1)]
    assert outside.studies.mean_auroc == pytest.approx(np.mean(areas), abs=0.1)
    (task / "fold_1" / "validation_predictions_studies.csv").unlink()
    with pytest.raises(DataError, match="do not say what they predict of a study"):
        finetune(2, small / "enc", adapt="linear", labels=["bleed"], fold=(0, 1), tag="folds", resume=True,
                 overrides=(ON, "training.num_epochs=30"), **FAST)  # fmt: skip
    means = finetune(2, small / "enc", adapt="linear", labels=["bleed"], fold=(0, 1), tag="means",
                     overrides=("training.num_epochs=5",), **FAST)  # fmt: skip
    for where in ("ensemble", "out_of_fold"):
        scans = {row["case_id"]: float(row["bleed"]) for row in rows(means / where / "predictions.csv")}
        for row in rows(means / where / "predictions_studies.csv"):
            wanted = np.mean([scans[f"s{row['subject_id'][1:]}_{k}"] for k in range(SCANS)])
            assert float(row["bleed"]) == pytest.approx(wanted, abs=1e-5)
        assert read_json(means / where / "metrics.json", Metrics).studies.aggregate == "mean"
    plain = finetune(2, small / "enc", adapt="linear", labels=["bleed"], fold=1, tag="one", **FAST)
    (mixed := small / "mixed").mkdir()
    for name, source in (("fold_0", linear), ("fold_1", plain)):
        (mixed / name).symlink_to(source)
    with pytest.raises(ContractError, match="weigh the scans of a study, others do not"):
        open_ensemble(mixed)


@pytest.mark.evidence
@pytest.mark.parametrize(("adapt", "least"), [("linear", 0.05), ("attentive", 0.05)])
def test_attention_finds_what_the_mean_over_scans_hides(adapt, least, roots, capsys):
    """The numbers of documentation/finetuning.md: three random encoders, 120 studies, one scan of three shows it."""
    write_studies(studies=120, ball=True)
    found = []
    for seed in range(3):
        encoder = make_encoder(roots / f"enc{seed}", seed=seed)
        sets, call = (f"training.seed={seed}",), {"adapt": adapt, "labels": ["bleed"], **FAST}
        plain = finetune(2, encoder, overrides=sets, **call)
        weighed = finetune(2, encoder, overrides=(*sets, ON), tag="weighed", **call)
        by = [evaluate(2, plain, aggregate=how, **FAST).studies.mean_auroc for how in ("mean", "max")]
        found.append([*by, read_json(weighed / "metrics.json", Metrics).studies.mean_auroc])
    mean, highest, attention = np.mean(found, axis=0)
    with capsys.disabled():
        print(f"\n{adapt}: mean {mean:.2f}, max {highest:.2f}, attention {attention:.2f}")
    assert attention > mean + least
