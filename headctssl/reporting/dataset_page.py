"""Dataset page: what the scans of a dataset are like, what was planned for them and why, and what was left out."""

from __future__ import annotations

from pathlib import Path

from headctssl.dataset.manifest import open_raw_dataset
from headctssl.dataset.splits import Splits
from headctssl.errors import HeadCTSSLError
from headctssl.paths import RootKind, data_root
from headctssl.planning.fingerprint import FINGERPRINT_NAME, DatasetFingerprint
from headctssl.planning.plans import Plans
from headctssl.preprocessing.index import CaseIndex
from headctssl.preprocessing.report import REPORT_NAME, PreprocessingReport
from headctssl.reporting.data_parts import fingerprint_tables, origin_sentences
from headctssl.reporting.page import CaseCard, Page, Section, Table, as_table, attempted
from headctssl.reporting.run_parts import BANNER, optional, read_object, why_section
from headctssl.reporting.slices import CONVENTION, case_slices
from headctssl.settings import read_json

__all__ = ["dataset_page"]

_SHOWN = 4  # scans with slices
_MOST_ROWS = 300


def dataset_page(folder: Path) -> Page:
    """The page of a raw or preprocessed dataset.

    Args:
        folder: ``DatasetNNN_Name`` under headctssl_raw or headctssl_preprocessed; the other one is looked up by name.
    """
    raw, made = _sides(folder)
    status = []
    if raw is None:
        status.append("The raw dataset is not under headctssl_raw: nothing is said of its origin.")
    if made is None:
        status.append("The dataset was not planned and preprocessed yet: run headct_plan_and_preprocess.")
    sections: list[Section] = []
    if raw is not None:
        sections.append(attempted("Origin", lambda: _origin(raw)))
    if made is not None:
        sections += [
            attempted("Scans and labels", lambda: _scans(made)),
            attempted("Test set and folds", lambda: _splits(made)),
            attempted("What was stored and what was left out", lambda: _stored(made)),
            attempted("Some stored scans", lambda: _slices(made)),
            attempted("What the plans decided, and why", lambda: _plans(made)),
        ]
    return Page("Dataset", folder.name, tuple(sections), _facts(raw, made), BANNER, tuple(status))


def _sides(folder: Path) -> tuple[Path | None, Path | None]:
    """The raw and the preprocessed folder of a dataset, None where there is none."""
    raw = folder if (folder / "dataset.json").is_file() else _under("raw", folder.name, "dataset.json")
    made = folder if (folder / FINGERPRINT_NAME).is_file() else _under("preprocessed", folder.name, FINGERPRINT_NAME)
    return raw, made


def _under(kind: RootKind, name: str, file: str) -> Path | None:
    try:
        found = data_root(kind) / name
    except HeadCTSSLError:
        return None
    return found if (found / file).is_file() else None


def _facts(raw: Path | None, made: Path | None) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = []
    try:
        if made is not None:
            found = read_json(made / FINGERPRINT_NAME, DatasetFingerprint)
            facts += [
                ("scans", f"{found.num_cases:,}"),
                ("patients", f"{found.num_subjects:,}"),
                ("unreadable", f"{found.num_unreadable:,}"),
                ("labels", f"{len(found.labels)}"),
                ("slices of 2.5 mm or more", f"{found.thick_slice_share:.0%}"),
            ]
        elif raw is not None:
            facts.append(("scans", f"{len(open_raw_dataset(raw, 1).case_ids):,}"))
    except HeadCTSSLError:  # the sections name the fault
        return ()
    return tuple(facts)


def _origin(raw: Path) -> Section:
    dataset = open_raw_dataset(raw, 1)
    rows = [
        (s.name, s.type, ", ".join(s.classes) or "-", {None: "not stated", "self": "the same"}.get(s.mirror, s.mirror))
        for s in dataset.info.labels[:_MOST_ROWS]
    ]
    tables = (as_table(("label", "type", "classes", "after a left-right flip"), rows, "Labels"),) if rows else ()
    return Section("Origin", origin_sentences(dataset), tables)


def _scans(made: Path) -> Section:
    found = read_json(made / FINGERPRINT_NAME, DatasetFingerprint)
    told = []
    if found.doubtful_hu:
        told.append(f"Values of {found.doubtful_hu} of {found.sampled_cases} sampled scans may be no Hounsfield units.")
    tables = list(fingerprint_tables(found))
    if found.head_hu:
        points = zip(found.head_hu_points, found.head_hu, strict=True)
        tables.append(as_table(("percentile", "HU"), [(f"{p:g} %", f"{v:g}") for p, v in points], "HU in the head"))
    return Section("Scans and labels", (), tuple(tables), warnings=tuple(told))


def _splits(made: Path) -> Section:
    splits = read_json(made / "splits.json", Splits)
    rows: list[tuple[object, ...]] = [("test", f"{len(splits.test):,}", "-")]
    rows += [(f"fold {k}", f"{len(f.train):,}", f"{len(f.val):,}") for k, f in enumerate(splits.folds[:_MOST_ROWS])]
    table = as_table(("part", "cases (of a fold: training)", "validation"), rows)
    return Section("Test set and folds", ("Drawn by patient.", *splits.notes), (table,))


def _stored(made: Path) -> Section:
    report = read_json(made / REPORT_NAME, PreprocessingReport)
    text = (
        f"{report.num_stored:,} of {report.num_cases:,} scans are stored ({report.storage_id}); "
        f"{len(report.failures):,} were left out. A scan that cannot be read is never replaced."
    )
    tables: list[Table] = []
    if report.failures:
        rows = [(f.case_id, f.what, f.got, f.do) for f in report.failures[:_MOST_ROWS]]
        title = f"Left out ({_of(len(report.failures))})"
        tables.append(as_table(("case", "what", "found", "what to do"), rows, title))
    if report.notes:
        notes = [(n.case_id, n.note) for n in report.notes[:_MOST_ROWS]]
        tables.append(as_table(("case", "noticed"), notes, f"Noticed ({_of(len(report.notes))})"))
    return Section("What was stored and what was left out", (text,), tuple(tables))


def _of(count: int) -> str:
    return f"{count:,}" if count <= _MOST_ROWS else f"the first {_MOST_ROWS} of {count:,}; {REPORT_NAME} has all"


def _slices(made: Path) -> Section:
    storage = read_json(made / REPORT_NAME, PreprocessingReport).storage_id
    index = CaseIndex.open(made / storage)
    ids = index.case_ids
    chosen = [ids[k * (len(ids) - 1) // max(1, _SHOWN - 1)] for k in range(min(_SHOWN, len(ids)))]
    cards = []
    for case_id in dict.fromkeys(chosen):
        row = index.rows[index.position(case_id)]
        facts = (("voxels", " x ".join(map(str, row.shape))), ("mm", " x ".join(f"{s:g}" for s in row.spacing_mm)))
        try:
            found = case_slices(index, case_id)
            cards.append(CaseCard(case_id, facts, found.pictures, f"Planes {found.where}."))
        except HeadCTSSLError as error:
            cards.append(CaseCard(case_id, facts, note=f"No slices: {error.what}"))
    return Section(
        "Some stored scans",
        (f"{len(cards)} of {len(ids):,}, evenly spread over the ids.", CONVENTION),
        cases=tuple(cards),
    )


def _plans(made: Path) -> Section:
    if optional(made / "plans.json", Plans) is None:
        return Section("What the plans decided, and why", ("There are no plans: the dataset was only stored.",))
    lead = "plans.json is never rewritten unless asked for with --replan."
    return why_section("What the plans decided, and why", read_object(made / "plans.json"), lead)
