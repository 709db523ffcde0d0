"""OpenMind: the CT images of a folder laid out as the OpenMind dataset, with its metadata, masks and quality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from headctssl.ingest.converters.cells import info_columns, is_ct, split_cell
from headctssl.ingest.converters.source_files import find_named, identified, layout_error, left_out, lines_of
from headctssl.ingest.scan import Found, Scan

__all__ = ["find_scans"]

_TABLE = "openneuro_metadata.csv"
_IMAGES = "OpenMind"
_INFO = (
    "age",
    "sex",
    "health_status",
    "derived_from",
    "is_brain_extract",
    "manufacturer",
    "model_name",
    "image_quality_score",
)
_NO_SESSION = "ses-DEFAULT"


def find_scans(source: Path, num_workers: int | None = 1, *, quiet: bool = True) -> Found:
    """Every image of `openneuro_metadata.csv` whose modality is CT; the others are counted.

    The published OpenMind holds no CT at all (it is MR and PET); the layout is read for collections that
    follow it. `image_quality_score` (1 is best, 5 worst) is copied. The anatomy masks of OpenMind mark
    the background: they are turned round.

    Args:
        source: the folder with `openneuro_metadata.csv` and `OpenMind/ds000001/sub-01/...`.
        num_workers: processes that read the files; None = one per core.
        quiet: print no progress.

    Raises:
        DataError: there is no such table, or it lacks `image_path` or `modality`.
    """
    table = find_named(source, _TABLE, depth=1) if source.is_dir() else None
    if table is None:
        raise layout_error(source, "openmind", f"{_TABLE} and {_IMAGES}/")
    root = table.parent / _IMAGES if (table.parent / _IMAGES).is_dir() else table.parent
    others: Counter[str] = Counter()
    scans: list[Scan] = []
    for row in lines_of(table, ("image_path", "modality")):
        if is_ct(row["modality"]):
            scans.append(_scan(root, row))
        else:
            others[row["modality"]] += 1
    result = identified(scans, num_workers, quiet=quiet)
    return Found(
        result.scans,
        ignored=left_out(others, "images of modality"),
        rejected=result.rejected,
        licence="CC BY 4.0",
        reference="Wald et al., An OpenMind for 3D medical vision self-supervised learning, arXiv:2412.17041",
        remarks=result.remarks,
    )


def _scan(root: Path, row: Mapping[str, str]) -> Scan:
    name = row["image_path"].replace("\\", "/")
    parts = PurePosixPath(name).parts
    person = "/".join(parts[:2])  # ds000001/sub-01
    session = next((part for part in parts[2:-1] if part.startswith("ses-")), _NO_SESSION)
    columns = dict(info_columns({key: row.get(key, "") for key in _INFO}))
    if split := split_cell(row.get("split", "")):
        columns["split"] = split
    anatomy, changed = row.get("anat_mask_path", ""), row.get("anon_mask_path", "")
    masks = [("anatomy_mask", root / anatomy)] if anatomy else []
    masks += [("anonymization_mask", root / changed)] if changed else []
    return Scan(
        source=name,
        path=root / name,
        identity="",
        subject=person,
        session=f"{person}/{session}",
        columns=tuple(columns.items()),
        masks=tuple(masks),
        mask_rules=(("anatomy_mask", "zero"),) if anatomy else (),
    )
