"""Data parts: what a run learnt from, counted, and what the scans of a dataset are like."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from headctssl.contract import Contract
from headctssl.dataset.manifest import RawDataset, open_raw_dataset
from headctssl.errors import DataError, HeadCTSSLError
from headctssl.paths import data_root
from headctssl.planning.fingerprint import FINGERPRINT_NAME, DatasetFingerprint, Spread
from headctssl.reporting.page import Section, Table, as_table
from headctssl.settings import JsonValue, read_json

__all__ = [
    "dataset_names",
    "finetune_data",
    "fingerprint_of",
    "fingerprint_tables",
    "is_synthetic",
    "noted_synthetic",
    "origin_sentences",
    "pretrain_data",
    "raw_of",
    "used_cases",
]

_PARTS = {"train": "training", "val": "validation"}
_MOST_LABELS = 40
_SYNTHETIC = "These scans are synthetic. Nothing measured on them says how good a model is on patients."


def used_cases(run: Path) -> pd.DataFrame:
    """The cases.csv of a run: dataset_id, case_id, source_sha256 and, of a fine-tuning run, part.

    Raises:
        DataError: the file is missing or has other columns.
    """
    path = run / "cases.csv"
    do = "The counts cannot be made up; start the run again for a whole folder."
    if not path.is_file():
        raise DataError("There is no list of the cases used.", got=run.name, expected="cases.csv", do=do)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, csv.Error) as error:
        raise DataError("cases.csv of the run is damaged.", got=str(error)[:100], expected="a table", do=do) from None
    if not {"dataset_id", "case_id"} <= set(table.columns):
        raise DataError(
            "cases.csv of the run is damaged.",
            got=", ".join(table.columns)[:100],
            expected="dataset_id, case_id",
            do=do,
        )
    return table


def dataset_names(dataset_ids: Sequence[object]) -> dict[str, str]:
    """Dataset number as text -> folder name, of those that a data root knows."""
    from headctssl.paths import find_dataset

    found = {}
    for number in dataset_ids:
        try:
            name = find_dataset(int(str(number)), ("preprocessed", "raw", "results"))
        except HeadCTSSLError:
            name = None
        if name is not None:
            found[str(number)] = name
    return found


def raw_of(dataset_name: str) -> RawDataset | None:
    """The raw dataset of a folder name, None where it is not there.

    Raises:
        DataError: its files are damaged.
    """
    try:
        folder = data_root("raw") / dataset_name
    except HeadCTSSLError:
        return None
    return open_raw_dataset(folder, 1) if (folder / "dataset.json").is_file() else None


def is_synthetic(dataset_name: str, noted: bool | None = None) -> bool | None:
    """Whether the scans of a dataset are phantoms.

    Args:
        dataset_name: folder name, looked up where nothing is noted.
        noted: what the run noted of its dataset.json; files of earlier versions have no such note.

    Returns:
        None where that is not known.
    """
    if noted is not None:
        return noted
    try:
        raw = raw_of(dataset_name)
    except HeadCTSSLError:  # the section on data names the fault
        return None
    return None if raw is None else raw.info.synthetic


def noted_synthetic(contract: Contract | None) -> bool | None:
    """What a checkpoint notes of every dataset it was trained on; None where it notes nothing or they differ."""
    return None if contract is None else {"all": True, "no": False}.get(contract.synthetic or "")


def fingerprint_of(dataset_name: str) -> DatasetFingerprint | None:
    """The fingerprint of a dataset, None where it is not there.

    Raises:
        DataError: the file is damaged.
    """
    try:
        path = data_root("preprocessed") / dataset_name / FINGERPRINT_NAME
    except HeadCTSSLError:
        return None
    return read_json(path, DatasetFingerprint) if path.is_file() else None


def origin_sentences(raw: RawDataset | None, noted: bool | None = None) -> tuple[str, ...]:
    """What dataset.json says of where scans come from; a phantom is called one.

    Args:
        raw: the dataset of the run's name that is there now.
        noted: whether the run's own dataset was synthetic, where the run noted it.
    """
    if raw is not None and noted is not None and noted != raw.info.synthetic:
        kinds = ("real", "synthetic") if noted else ("synthetic", "real")
        other = f"{raw.folder.name} under headctssl_raw has {kinds[0]} scans now, the run had {kinds[1]} ones."
        return (f"{other} Nothing is said of its origin.", *((_SYNTHETIC,) if noted else ()))
    if raw is None:
        return (_SYNTHETIC,) if noted else ()
    info = raw.info
    told = [f"{info.name}: {info.description}" if info.description else info.name]
    if info.synthetic:
        told.append(_SYNTHETIC)
    if info.licence:
        told.append(f"Licence: {info.licence}.")
    if info.reference:
        told.append(f"Reference: {info.reference}.")
    return tuple(told)


def finetune_data(
    run: Path, settings: Mapping[str, JsonValue], judged: Sequence[str], synthetic: bool | None = None
) -> Section:
    """What a classifier learnt from and was judged by: cases, patients and labels per part.

    Args:
        run: folder of the fold.
        settings: its config.json.
        judged: ids of the judged cases; empty before there are metrics.
        synthetic: whether the scans are, where the run noted it.

    Raises:
        DataError: cases.csv of the run is missing or damaged.
    """
    table = used_cases(run)
    name = str(settings.get("dataset_name", ""))
    raw = raw_of(name)
    part_of = table["part"].tolist() if "part" in table.columns else ["train"] * len(table)
    pairs = list(zip(table["case_id"].tolist(), part_of, strict=True))
    parts = {title: [case_id for case_id, found in pairs if found == part] for part, title in _PARTS.items()}
    parts["judged"] = list(judged)
    rows = [(title, f"{len(ids):,}", _patients(raw, ids)) for title, ids in parts.items()]
    tables = [as_table(("part", "cases", "patients"), rows, "Parts")]
    warnings: tuple[str, ...] = ()
    if raw is None:
        warnings = (f"The raw dataset {name} is not under headctssl_raw, so labels cannot be counted.",)
    else:
        tables.append(_label_counts(raw, parts, settings))
    fingerprint = fingerprint_of(name)
    few = settings.get("few_shots")
    told = [*origin_sentences(raw, synthetic)]
    if few:
        told.append(f"Few labels: {few} positive and {few} negative patients per label were drawn to learn from.")
    told.append("Parts are drawn by patient: no patient is in two of them.")
    return Section(
        "Data",
        tuple(told),
        (*tables, *(fingerprint_tables(fingerprint)[:1] if fingerprint else ())),
        warnings=warnings,
    )


def _patients(raw: RawDataset | None, case_ids: Sequence[str]) -> str:
    if raw is None:
        return "-"
    subject = dict(zip(raw.case_ids, raw.cases["subject_id"].tolist(), strict=True))
    return f"{len({subject.get(case_id, case_id) for case_id in case_ids}):,}"


def _label_counts(raw: RawDataset, parts: Mapping[str, Sequence[str]], settings: Mapping[str, JsonValue]) -> Table:
    """Positive, negative and unknown cases per label and part; counts per class of other labels."""
    labels = raw.labels()
    wanted = settings.get("labels")
    names = [str(spec.get("name")) for spec in wanted if isinstance(spec, dict)] if isinstance(wanted, list) else []
    types = {spec.name: spec for spec in raw.info.labels}
    rows = []
    for name in [n for n in names if n in labels.columns][:_MOST_LABELS]:
        cells = []
        for ids in parts.values():
            values = labels.reindex(list(ids))[name].to_numpy(np.float64)
            unknown = int(np.isnan(values).sum())
            known = values[~np.isnan(values)]
            if types[name].type == "binary":
                text = f"{int((known > 0.5).sum())} / {int((known <= 0.5).sum())}"
            elif types[name].type == "continuous":
                text = f"{known.size} values, {known.min():.4g} to {known.max():.4g}" if known.size else "0 values"
            else:
                text = ", ".join(f"{c} {int((known == k).sum())}" for k, c in enumerate(types[name].classes))
            cells.append(text + (f" ({unknown} unknown)" if unknown else ""))
        rows.append((name, *cells))
    return as_table(("label", *parts), rows, "Cases per label: positive / negative, or per class")


def pretrain_data(run: Path, settings: Mapping[str, JsonValue], synthetic: bool | None = None) -> Section:
    """The scans an encoder was trained on.

    Args:
        run: the run folder.
        settings: its config.json.
        synthetic: whether all or none of the datasets are, where the run noted it.

    Raises:
        DataError: cases.csv of the run is missing or damaged.
    """
    table = used_cases(run)
    counts = table["dataset_id"].value_counts(sort=False)
    names = dataset_names(list(counts.index))
    rows = [(names.get(str(number), f"dataset {number}"), f"{count:,}") for number, count in counts.items()]
    told = ["No label was used." if settings.get("method_name") != "supervised" else "Segmentations were used."]
    if settings.get("pretrain_on") == "all":
        told.append("Test cases of splits.json were used too: classifiers judged on them may look better.")
    else:
        told.append("Test cases of splits.json were left out.")
    where = settings.get("where")
    if isinstance(where, dict):
        told.append(f"Only cases where {where.get('expression')}: {where.get('num_cases')} of {where.get('of_cases')}.")
    tables = [as_table(("dataset", "scans trained on"), rows)]
    for name in names.values():
        told += [sentence for sentence in origin_sentences(raw_of(name), synthetic) if sentence not in told]
        fingerprint = fingerprint_of(name)
        if fingerprint is not None:
            tables += fingerprint_tables(fingerprint)[:1]
    return Section("Data", tuple(told), tuple(tables))


def fingerprint_tables(found: DatasetFingerprint) -> tuple[Table, ...]:
    """What scans of a dataset are like: sizes and spacings, then labels.

    Args:
        found: the fingerprint.
    """
    rows: list[tuple[object, ...]] = []
    for title, spreads in (
        ("spacing, mm", found.spacing_mm),
        ("voxels", found.shape),
        ("field of view, mm", found.field_of_view_mm),
        (f"head, mm ({found.sampled_cases} scans)", found.head_extent_mm),
    ):
        if spreads is not None:
            rows.append((title, *(_by_axis(spreads, which) for which in ("low", "p10", "median", "p95", "high"))))
    columns = ("z x y x x, each axis for itself", "least", "10 %", "middle", "95 %", "most")
    shares = (
        f"{found.dataset_name}: {found.num_cases:,} scans of {found.num_subjects:,} patients; slices of 2.5 mm or more "
        f"{found.thick_slice_share:.0%}, tilted {found.tilted_share:.0%}, uneven gaps {found.uneven_share:.0%}"
    )
    labels = [(c.name, c.type, f"{c.known:,}", ", ".join(f"{n:,}" for n in c.counts)) for c in found.labels]
    tables = [as_table(columns, rows, shares)]
    if labels:
        tables.append(as_table(("label", "type", "known", "cases per value, from the first"), labels[:200], "Labels"))
    return tuple(tables)


def _by_axis(spreads: tuple[Spread, Spread, Spread], which: str) -> str:
    return " x ".join(f"{getattr(spread, which):.4g}" for spread in spreads)
