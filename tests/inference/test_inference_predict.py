"""Tests of inference/predict.py and embed.py: files that no dataset knows, under the contract."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from small_heads import head, make_dataset

from headctssl.dataset.image_io import write_nifti
from headctssl.errors import ContractError, UsageError
from headctssl.evaluation.evaluate import evaluate
from headctssl.inference.embed import embed
from headctssl.inference.predict import predict


def rows(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return {row.pop("case_id"): row for row in csv.DictReader(handle)}


def test_raw_files_give_what_evaluation_of_the_stored_cases_gives(trained, tmp_path):
    root, classifier = trained
    evaluate(2, classifier, split="all", num_workers=0, quiet=True)
    stored = rows(next((root / "results").glob("*/evaluate/*__all/predictions.csv")))
    result = predict(root / "raw" / "Dataset002_Small", classifier, tmp_path / "out", num_workers=2, quiet=True)
    assert result.exit_code == 0
    assert result.file == tmp_path / "out" / "predictions.csv"
    written = rows(result.file)
    assert set(written) == set(stored)
    for case_id, row in written.items():
        assert list(row) == ["bleed"]
        for label, value in row.items():
            assert float(value) == pytest.approx(float(stored[case_id][label]), abs=1e-4), (case_id, label)
    tested = rows(classifier / "predictions.csv")
    for case_id, row in tested.items():
        assert float(row["bleed"]) == pytest.approx(float(written[case_id]["bleed"]), abs=1e-4)
    # and it says something: the bleed is seen
    truth = {f"case2_{k:02d}": (k // 2) % 2 == 0 for k in range(24)}
    assert all((float(written[case]["bleed"]) > 0.5) == truth[case] for case in written)


def test_one_file_alone_gives_what_it_gives_among_others(trained, tmp_path):
    root, classifier = trained
    images = root / "raw" / "Dataset002_Small" / "images"
    among = predict(images, classifier, tmp_path / "all.csv", num_workers=0, quiet=True)
    alone = predict(images / "case2_05.nii.gz", classifier, tmp_path / "one.json", quiet=True)
    position = among.case_ids.index("case2_05")
    assert np.allclose(alone.probabilities[0], among.probabilities[position], atol=1e-6)
    content = json.loads((tmp_path / "one.json").read_text())["predictions"][0]
    assert content["case_id"] == "case2_05"
    assert content["probabilities"]["bleed"] == pytest.approx(alone.probabilities[0, 0])


def test_good_files_go_through_beside_bad_ones(trained, tmp_path, capsys):
    _, classifier = trained
    folder = tmp_path / "in"
    folder.mkdir()
    write_nifti(folder / "good.nii.gz", head(1, True))
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "picture.nii.gz").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    result = predict(folder, classifier, tmp_path / "out.csv", quiet=True)
    assert result.exit_code == 1
    assert result.case_ids == ("good",)
    assert {f.case_id for f in result.failures} == {"cut", "picture"}
    err = capsys.readouterr().err
    assert "failed: cut:" in err
    assert "failed: picture:" in err
    assert "Traceback" not in err
    (folder / "good.nii.gz").unlink()
    nothing = predict(folder, classifier, tmp_path / "none.csv", quiet=True)
    assert nothing.exit_code == 2
    assert nothing.file is None
    assert not (tmp_path / "none.csv").exists()


def test_an_encoder_is_refused_with_a_clear_message(trained, tmp_path, command):
    root, _ = trained
    with pytest.raises(ContractError, match="another kind"):
        predict(root / "raw", root / "enc", tmp_path / "x.csv", quiet=True)
    code, _, err = command("predict", "-i", root / "raw", "-w", root / "enc", "-o", tmp_path / "x.csv")
    assert code == 2
    assert "headct_finetune" in err
    assert "Traceback" not in err


def test_commands_write_and_name_their_files(trained, tmp_path, command):
    root, classifier = trained
    image = root / "raw" / "Dataset002_Small" / "images" / "case2_00.nii.gz"
    code, out, _ = command("predict", "-i", image, "-w", classifier, "-o", tmp_path / "p", "--device", "cpu")
    assert code == 0
    assert str(tmp_path / "p" / "predictions.csv") in out
    code, out, _ = command("embed", "-i", image, "-w", classifier, "-o", tmp_path / "e.npz", "--quiet")
    assert (code, out) == (0, "")
    code, _, _ = command("embed", "-w", classifier, "-o", tmp_path / "e.npz")
    assert code == 2
    code, _, _ = command("embed", "-i", image, "-d", 2, "-w", classifier, "-o", tmp_path / "e.npz")
    assert code == 2


def test_vectors_of_files_equal_those_of_the_dataset(trained, tmp_path):
    root, classifier = trained
    of_dataset = embed(None, root / "enc", tmp_path / "d.npz", dataset_id=2, num_workers=0, quiet=True)
    of_files = embed(root / "raw" / "Dataset002_Small" / "images", root / "enc", tmp_path / "f.csv", quiet=True)
    assert of_dataset.case_ids == of_files.case_ids
    assert of_dataset.vectors.shape == (24, 48)
    assert np.allclose(of_dataset.vectors, of_files.vectors, atol=1e-4)
    assert np.abs(of_dataset.vectors[0] - of_dataset.vectors[2]).max() > 1e-3
    with np.load(tmp_path / "d.npz") as stored:
        assert stored["case_id"].tolist() == list(of_dataset.case_ids)
        assert np.array_equal(stored["vector"], of_dataset.vectors)
    table = rows(tmp_path / "f.csv")
    assert np.allclose([float(v) for v in table["case2_03"].values()], of_files.vectors[3], rtol=1e-6)
    # the frozen encoder of the linear classifier is the same encoder
    half = embed(None, root / "enc", tmp_path / "h.npz", dataset_id=2, num_workers=0, precision="bf16", quiet=True)
    apart = np.linalg.norm(half.vectors - of_dataset.vectors) / np.linalg.norm(of_dataset.vectors)
    assert 0 < apart < 0.02
    same = embed(None, classifier, tmp_path / "c.npz", dataset_id=2, num_workers=0, quiet=True)
    assert np.allclose(same.vectors, of_dataset.vectors, atol=1e-5)


def test_embedding_takes_one_source(trained, tmp_path):
    root, _ = trained
    for arguments in ((None, None), (root, 2)):
        with pytest.raises(UsageError, match="one source"):
            embed(arguments[0], root / "enc", tmp_path / "x.csv", dataset_id=arguments[1])


def test_a_dataset_with_a_bad_case_is_embedded_without_it(trained, tmp_path, capsys):
    root, _ = trained
    folder = make_dataset(7, 4, name="Bad")
    shutil.copy(folder / "dataset.json", folder / "images" / "case7_01.nii.gz")
    result = embed(None, root / "enc", tmp_path / "x.npz", dataset_id=7, num_workers=0, quiet=True)
    assert result.exit_code == 1
    assert "case7_01" not in result.case_ids
    assert len(result.case_ids) == 3
    assert "case7_01" in capsys.readouterr().err


def write_series(folder, volume, uid, *, first=0, modality="CT", image_type=("ORIGINAL", "PRIMARY", "AXIAL")):
    """A DICOM series with the voxels of a volume; names of several series may share a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sz, sy, sx = volume.spacing_mm
    for k, plane in enumerate(volume.hu):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        ds = Dataset()
        ds.file_meta = meta
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", uid
        ds.Modality, ds.ImageType, ds.PatientID = modality, list(image_type), "nobody"
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, k * sz]
        ds.PixelSpacing, ds.SliceThickness = [sy, sx], sz
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
        ds.PixelData = plane.astype("<i2").tobytes()
        ds.save_as(folder / f"im{first + k:04d}.dcm", enforce_file_format=True)


def test_dicom_series_of_one_folder_are_told_apart_and_equal_their_nifti(trained, tmp_path, capsys):
    _, classifier = trained
    study = tmp_path / "in" / "study"
    heads = [head(5, True), head(6, False)]
    write_series(study, heads[0], "1.2.3.1")
    write_series(study, heads[1], "1.2.3.2", first=100)
    write_series(study, head(7, True), "1.2.3.3", first=200, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    for k, volume in enumerate(heads):
        write_nifti(tmp_path / f"head{k}.nii.gz", volume)
    result = predict(tmp_path / "in", classifier, tmp_path / "d.csv", quiet=True)
    assert result.exit_code == 0
    assert result.case_ids == ("study", "study_2")
    single = [predict(tmp_path / f"head{k}.nii.gz", classifier, tmp_path / f"n{k}.csv", quiet=True) for k in (0, 1)]
    expected = np.concatenate([s.probabilities for s in single])
    assert np.allclose(result.probabilities, expected, atol=1e-6)
    # both are of one study; a file without headers is its own
    write_nifti(tmp_path / "in" / "alone.nii.gz", heads[1])
    together = predict(tmp_path / "in", classifier, tmp_path / "t.csv", aggregate="max", quiet=True)
    assert together.studies == (("alone",), ("study", "study_2"))
    assert "study_2" not in capsys.readouterr().out
    assert together.study_probabilities[:, 0] == pytest.approx([expected[1, 0], expected[:, 0].max()], abs=1e-6)
    assert (tmp_path / "t_studies.csv").read_text().splitlines()[2].startswith("study,2,")
    assert "nobody" not in (tmp_path / "t_studies.csv").read_text()
    # an earlier answer is replaced on demand only, and its studies do not stay beside another table
    before = (tmp_path / "t.csv").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        predict(study, classifier, tmp_path / "t.csv", quiet=True)
    assert (tmp_path / "t.csv").read_bytes() == before
    predict(study, classifier, tmp_path / "t.csv", overwrite=True, quiet=True)
    assert (tmp_path / "t.csv").read_bytes() != before
    assert not (tmp_path / "t_studies.csv").exists()
    (tmp_path / "in" / "alone.nii.gz").unlink()
    # the folder itself works too
    assert predict(study, classifier, tmp_path / "s.csv", quiet=True).case_ids == ("study", "study_2")


def cut(file):
    file.write_bytes(file.read_bytes()[:100])


def test_a_damaged_slice_costs_the_series_it_may_belong_to_and_no_other(trained, tmp_path, capsys):
    _, classifier = trained
    study = tmp_path / "in" / "study"
    write_series(study, head(5, True), "1.2.3.1")
    write_series(study, head(6, False), "1.2.3.2", first=100)
    write_nifti(tmp_path / "in" / "other.nii.gz", head(5, True))
    before = predict(tmp_path / "in", classifier, tmp_path / "b.csv", quiet=True)
    assert before.case_ids == ("other", "study", "study_2")
    cut(study / "im0003.dcm")
    result = predict(tmp_path / "in", classifier, tmp_path / "x.csv", quiet=True)
    assert result.exit_code == 1
    assert result.case_ids == ("other", "study_2")
    assert np.allclose(result.probabilities, before.probabilities[[0, 2]])
    assert [f.case_id for f in result.failures] == ["study", "study/im0003.dcm"]
    err = capsys.readouterr().err
    assert "lacks slices, and damaged files beside it may be these: im0003.dcm" in err
    assert "failed: study/im0003.dcm: study/im0003.dcm is damaged.\n  got:      The file is not readable DICOM:" in err
    # an end slice leaves no hole; the damaged file is told
    write_series(study, head(5, True), "1.2.3.1")
    cut(study / "im0000.dcm")
    ended = predict(study, classifier, tmp_path / "e.csv", quiet=True)
    assert ended.case_ids == ("study", "study_2")
    assert [f.case_id for f in ended.failures] == ["im0000.dcm"]
    # a hole that no damaged file explains is what it was: told and predicted
    (study / "im0000.dcm").unlink()
    (study / "im0020.dcm").unlink()
    capsys.readouterr()
    assert predict(study, classifier, tmp_path / "h.csv").exit_code == 0
    assert "1 slice(s) may be missing" in "".join(capsys.readouterr())


def test_a_series_over_several_folders_is_not_predicted_with_a_hole(trained, tmp_path):
    _, classifier = trained
    folders = tmp_path / "in" / "D1", tmp_path / "in" / "D2"
    write_series(folders[0], head(5, True), "1.2.3.1")
    folders[1].mkdir()
    for file in sorted(folders[0].iterdir())[22:]:
        shutil.move(file, folders[1] / file.name)
    assert predict(tmp_path / "in", classifier, tmp_path / "w.csv", quiet=True).exit_code == 0
    cut(folders[1] / "im0030.dcm")
    result = predict(tmp_path / "in", classifier, tmp_path / "x.csv", quiet=True)
    assert result.exit_code == 2
    assert [f.case_id for f in result.failures] == ["D1", "D2/im0030.dcm"]


def test_a_folder_of_nothing_but_damaged_files_names_each(trained, tmp_path):
    _, classifier = trained
    write_series(tmp_path / "in", head(5, True, spacing=40.0), "1.2.3.1")
    for file in (tmp_path / "in").iterdir():
        cut(file)
    result = predict(tmp_path / "in", classifier, tmp_path / "x.csv", quiet=True)
    assert result.exit_code == 2
    assert [f.case_id for f in result.failures] == [f"im{k:04d}.dcm" for k in range(6)]


def test_series_that_share_a_name_are_told_apart_and_none_gets_the_name_of_another(trained, tmp_path, capsys):
    _, classifier = trained
    study = tmp_path / "dup" / "P1"
    write_series(study, head(5, True), "1.2.3.1")
    write_series(study, head(6, False), "1.2.3.2", first=100)
    write_series(tmp_path / "dup" / "P1_2", head(7, True), "1.2.3.3")
    result = predict(tmp_path / "dup", classifier, tmp_path / "d.csv")
    assert result.case_ids == ("P1", "P1_3", "P1_2")
    told = capsys.readouterr().out
    assert f"P1: {study}, 44 files from im0000.dcm" in told
    assert f"P1_3: {study}, 44 files from im0100.dcm" in told
    assert "P1_2: " not in told
    single = predict(tmp_path / "dup" / "P1_2", classifier, tmp_path / "s.csv", quiet=True)
    assert single.case_ids == ("P1_2",)
    assert single.probabilities[0] == pytest.approx(result.probabilities[2])


def test_values_that_are_not_hounsfield_units_get_no_prediction(trained, tmp_path, capsys):
    _, classifier = trained
    volume = head(3, True)
    shifted = dataclasses.replace(volume, hu=(volume.hu + 1024).astype(np.int16))
    write_nifti(tmp_path / "shifted.nii.gz", shifted)
    assert predict(tmp_path / "shifted.nii.gz", classifier, tmp_path / "x.csv", quiet=True).exit_code == 2
    assert "not Hounsfield units" in capsys.readouterr().err


def test_what_may_be_no_head_is_predicted_with_a_warning(trained, tmp_path, capsys):
    root, classifier = trained
    ball = head(3, True)
    ball.hu[ball.hu > 500] = 30  # no skull
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "ball.nii.gz", ball)
    write_nifti(tmp_path / "in" / "head.nii.gz", head(3, True))
    result = predict(tmp_path / "in", classifier, tmp_path / "x.csv", quiet=True)
    assert result.case_ids == ("ball", "head")
    printed = capsys.readouterr()
    told = "warning: ball: headct_convert would ask to look at it: No skull around brain is seen: is it a head?"
    assert printed.err.splitlines() == [told]
    assert printed.out == ""
    embed(tmp_path / "in", root / "enc", tmp_path / "x.npz", quiet=True)
    assert capsys.readouterr().err.splitlines() == [told]


def test_the_headers_of_a_series_are_judged_too(trained, tmp_path, capsys):
    _, classifier = trained
    write_series(tmp_path / "in" / "map", head(5, True), "1.2.3.1", image_type=("DERIVED", "SECONDARY", "PERFUSION"))
    assert predict(tmp_path / "in", classifier, tmp_path / "x.csv", quiet=True).exit_code == 0
    assert (
        "warning: map: headct_convert would ask to look at it: It is marked as derived from other images"
        in capsys.readouterr().err
    )


def test_a_body_gets_a_warning(trained, tmp_path, capsys, real_data):
    _, classifier = trained
    image = real_data / "not_head" / "nnunet_body_example_ct_sm.nii.gz"
    predict(image, classifier, tmp_path / "x.csv", quiet=True)
    assert "headct_convert would refuse it: It shows a trunk, not a head" in capsys.readouterr().err


def test_no_old_table_is_left_when_every_image_failed(trained, tmp_path):
    root, classifier = trained
    (tmp_path / "in.nii.gz").write_bytes(b"no image")
    files = [tmp_path / name for name in ("p.csv", "p_studies.csv", "e.npz")]
    for file in files:
        file.write_text("of another input")
    with pytest.raises(UsageError, match="exists already"):
        predict(tmp_path / "in.nii.gz", classifier, files[0], quiet=True)
    assert all(file.exists() for file in files)
    assert predict(tmp_path / "in.nii.gz", classifier, files[0], overwrite=True, quiet=True).exit_code == 2
    assert not files[0].exists()
    assert not files[1].exists()
    assert embed(tmp_path / "in.nii.gz", root / "enc", files[2], overwrite=True, quiet=True).exit_code == 2
    assert not files[2].exists()
