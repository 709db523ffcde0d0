"""Tests of inference/sources.py: distinct safe ids, output names, reading ahead in order."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_heads import head

from headctssl.dataset.image_io import write_nifti
from headctssl.errors import DataError, UsageError
from headctssl.inference.ids import distinct_ids
from headctssl.inference.output import output_file, refuse_existing
from headctssl.inference.sources import exit_code, find_sources, read_ahead

names = st.lists(st.sampled_from(["a", "b", "a b", "ä", "a__b", "a_2", "-a", "=a\n"]), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.builds(lambda parts, suffix: "/".join(parts) + suffix, names, st.sampled_from([".nii", ".nrrd"]))))
def test_ids_are_distinct_and_safe(paths):
    root = Path("/data")
    images = sorted(root / path for path in paths)
    ids = distinct_ids(images, root)
    assert len(set(ids)) == len(images)
    assert all(name[0] not in "=+-@._" and re.fullmatch(r"[\w.-]+", name) for name in ids)


def test_a_name_of_one_image_is_never_given_to_another():
    root = Path("/data")

    def ids(*paths):
        return distinct_ids([root / path for path in paths], root)

    assert ids("P1", "P1", "P1_2") == ["P1", "P1_3", "P1_2"]
    assert ids("P1", "P1", "P1", "P1_2", "P1_4") == ["P1", "P1_3", "P1_5", "P1_2", "P1_4"]
    assert ids("study", "study") == ["study", "study_2"]
    assert ids("a/scan.nii", "a__scan.nii", "b/scan.nii") == ["a__scan_2", "a__scan", "b__scan"]


def test_letters_of_any_script_stay_and_nothing_unsafe_does():
    root = Path("/data")
    files = [
        "患者一.nii.gz",
        "患者二.nii.gz",
        "Mu\u0308ller.nii",
        "नमस्ते.nii",
        "=1+1.nii",
        "-x.nii",
        "@b\u202e\udcff\n.nii",
    ]
    ids = distinct_ids([root / file for file in files], root)
    assert ids == ["患者一", "患者二", "M\u00fcller", "नमस्ते", "1_1", "x", "b"]


def test_a_folder_named_by_a_point_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "study" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "study")
    assert distinct_ids([Path()], Path()) == ["study"]
    monkeypatch.chdir("below")
    assert distinct_ids([Path("..")], Path("..")) == ["study"]


def test_a_plain_name_stays_and_equal_ones_get_their_folders(tmp_path):
    for path in ("a/scan.nii.gz", "b/scan.nii.gz", "other.nii.gz"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        write_nifti(tmp_path / path, head(0, False, spacing=40.0))
    (tmp_path / "notes.txt").write_text("not an image")
    assert [s.case_id for s in find_sources(tmp_path)] == ["a__scan", "b__scan", "other"]
    assert [s.case_id for s in find_sources(tmp_path / "a" / "scan.nii.gz")] == ["scan"]
    with pytest.raises(UsageError, match="nothing at"):
        find_sources(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        find_sources(tmp_path / "empty")


def test_output_is_a_file_with_a_suffix_and_a_folder_without(tmp_path):
    assert output_file(tmp_path / "x.csv", "p.csv", (".csv",)) == tmp_path / "x.csv"
    assert output_file(tmp_path / "x", "p.csv", (".csv",)) == tmp_path / "x" / "p.csv"
    (tmp_path / "v1.2").mkdir()
    assert output_file(tmp_path / "v1.2", "p.csv", (".csv",)) == tmp_path / "v1.2" / "p.csv"
    with pytest.raises(UsageError, match="format"):
        output_file(tmp_path / "x.xlsx", "p.csv", (".csv",))
    (tmp_path / "plain").write_text("")
    with pytest.raises(UsageError, match="without a suffix"):
        output_file(tmp_path / "plain", "p.csv", (".csv",))
    refuse_existing([tmp_path / "new.csv", tmp_path / "plain"], overwrite=True)
    refuse_existing([tmp_path / "new.csv"], overwrite=False)
    with pytest.raises(UsageError, match=r"exists already[\s\S]*plain"):
        refuse_existing([tmp_path / "new.csv", tmp_path / "plain"], overwrite=False)


def test_reading_ahead_keeps_the_order_and_its_bound():
    begun, lock = [], threading.Lock()

    def read(item):
        with lock:
            begun.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    for workers in (0, 1, 3):
        begun.clear()
        seen = []
        for value in read_ahead(range(20), read, workers):
            seen.append(value)
            with lock:
                assert len(begun) <= len(seen) + 2 * workers + 1
        assert seen == [k * k for k in range(20)]


def test_an_error_while_reading_ahead_comes_out():
    def read(item):
        if item == 3:
            raise DataError("three")
        return item

    with pytest.raises(DataError, match="three"):
        list(read_ahead(range(10), read, 2))


def test_exit_codes():
    assert [exit_code(3, 0), exit_code(2, 1), exit_code(0, 3)] == [0, 1, 2]
