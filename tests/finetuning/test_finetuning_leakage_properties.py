"""Leakage by property: whatever the table, training, validation, test and pretraining never share a subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from headctssl.dataset.manifest import DatasetInfo, RawDataset
from headctssl.dataset.splits import make_splits
from headctssl.errors import DataError
from headctssl.finetuning.cohort import NO_FOLD, choose_labels, make_cohort
from headctssl.finetuning.few_shot import FewShots


@st.composite
def datasets(draw):
    """Cases with repeated and unknown subjects, labels with gaps, marks by subject, some not stored."""
    n = draw(st.integers(5, 36))
    subjects = draw(st.lists(st.sampled_from(["", *"abcdefghijkl"]), min_size=n, max_size=n))
    marks = {s: draw(st.sampled_from(["", "", "", "train", "val", "test"])) for s in "abcdefghijkl"}
    marked = draw(st.booleans())
    ids = [f"case{k:02d}" for k in range(n)]
    frame = pd.DataFrame({"case_id": ids, "image": ids, "subject_id": subjects}, dtype=str)
    if marked:
        frame["split"] = [marks.get(s, "") for s in subjects]
    for name in ("bleed", "fracture"):
        frame[name] = draw(st.lists(st.sampled_from(["0", "0", "1", ""]), min_size=n, max_size=n))
    info = DatasetInfo.model_validate(
        {"name": "A", "labels": {"bleed": {"type": "binary"}, "fracture": {"type": "binary"}}}
    )
    stored = [c for c in ids if draw(st.integers(0, 9)) > 0]
    return RawDataset(1, Path("A"), info, frame), stored, draw(st.integers(0, 5)), draw(st.sampled_from([2, 3, 5]))


@settings(max_examples=120, deadline=None)
@given(datasets(), st.integers(1, 4), st.integers(0, 3), st.sampled_from(["same", "all"]))
def test_no_subject_is_in_two_parts_of_any_fold_or_draw(dataset, shots, draw, negatives):
    raw, stored, seed, count = dataset
    specs = choose_labels(raw.info.labels, None)
    splits = make_splits(raw.cases, raw.labels(), test_share=0.2, folds=count, seed=seed)
    who = {c: s or c for c, s in zip(raw.cases["case_id"], raw.cases["subject_id"], strict=True)}
    test = {who[c] for c in splits.test}
    validated: list[str] = []
    for number, fold in enumerate([*map(str, range(len(splits.folds))), NO_FOLD]):
        for few in (None, FewShots(shots, draw, negatives)):
            try:
                cohort = make_cohort(raw, splits, stored, specs, fold=fold, few_shots=few)
            except DataError:
                continue  # no labelled training case, or only one class: refused, nothing is trained
            parts = [{who[c] for c in part} for part in (cohort.train, cohort.validation, cohort.test)]
            assert not parts[0] & parts[1]
            assert not parts[0] & parts[2]
            assert not parts[1] & parts[2]
            assert parts[2] <= test
            assert len(set(cohort.train)) == len(cohort.train)
            # What an encoder pretrained on this dataset saw: training and validation cases of the splits.
            assert not {who[c] for f in splits.folds for c in (*f.train, *f.val)} & test
            assert set(cohort.train) <= {c for f in splits.folds for c in (*f.train, *f.val)}
            labels = cohort.labels(cohort.train)
            assert not np.isnan(labels).all(axis=1).any()
            if few is not None:
                # A patient drawn for one label shows nothing of the other.
                assert (labels == 1).sum(axis=0).max() <= shots
                assert negatives == "all" or (labels == 0).sum(axis=0).max() <= shots
        if number < len(splits.folds):
            validated += splits.folds[number].val
    assert len(set(validated)) == len(validated)  # out-of-fold: each case once
