"""Selection: which series of a study become cases, by stated rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from headctssl.ingest.kernels import kernel_class
from headctssl.ingest.scan import Scan, SeriesFacts
from headctssl.settings import Settings

__all__ = ["Selection", "select"]

COVERAGE_SHARE = 0.8
"""A series that covers less than this share of the longest one of its study is taken as a partial one."""

SAME_THICKNESS_MM = 0.1

Rank = tuple[float, ...]


class Selection(Settings):
    """Which series of a study are kept. The default keeps all that the verdicts let pass."""

    kernel: Literal["any", "soft", "bone"] = Field(
        "any", description="soft or bone leaves out series that are known to be of the other kernel."
    )
    thickness: Literal["any", "thinnest", "thickest"] = Field(
        "any", description="Keep of each study only its thinnest or thickest slices (partial series not counted)."
    )
    orientation: Literal["any", "axial"] = Field(
        "any", description="axial leaves out series that are known to be coronal, sagittal or oblique."
    )
    per_study: Literal["all"] | int = Field(
        "all", description="Series kept of one study: all, or a number from 1, the best by the order of `select`."
    )

    def model_post_init(self, _: object) -> None:
        """Refuse a number of series below 1."""
        if self.per_study != "all" and self.per_study < 1:
            raise ValueError("per_study is 'all' or a number from 1")


def select(scans: Sequence[Scan], rule: Selection) -> tuple[list[Scan], list[tuple[Scan, str]]]:
    """Choose among the series of each study.

    First the filters of the rule are applied: kernel, orientation, thickness. What a header does not say never
    leaves a series out. Then, where `per_study` is a number, the best series of each study are kept. Better is,
    in this order: a soft kernel over an unknown over a bone one (the other way round for ``kernel="bone"``);
    axial slices; an original over a derived or reformatted series; no contrast agent; at least 80 % of the length
    of the longest series; the thinnest slices (the thickest for ``thickness="thickest"``); more slices; the
    first by name.

    Args:
        scans: of a source, in any order. Those of one `subject` and `session` are of one study; a scan
            without a session is a study by itself.
        rule: what is kept.

    Returns:
        The scans kept, in their order, and those left out with the reason of each.
    """
    studies: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        key = (scan.subject, scan.session) if scan.session else ("", f"scan:{scan.identity}")
        studies.setdefault(key, []).append(scan)
    left: dict[int, str] = {}
    for study in studies.values():
        candidates = _filtered(study, rule, left)
        if rule.per_study != "all":
            _best(candidates, rule, rule.per_study, left)
    kept = [scan for scan in scans if id(scan) not in left]
    return kept, [(scan, left[id(scan)]) for scan in scans if id(scan) in left]


def _facts(scan: Scan) -> SeriesFacts:
    return scan.facts or SeriesFacts()


def _kernel(scan: Scan) -> str:
    facts = _facts(scan)
    return kernel_class(facts.convolution_kernel, facts.series_description)


def _thickness(scan: Scan) -> float | None:
    """Distance of the slices; the stated thickness where there are no positions."""
    facts = _facts(scan)
    return facts.median_gap_mm or facts.slice_thickness_mm


def _length(scan: Scan) -> float:
    facts = _facts(scan)
    return (facts.median_gap_mm or 0.0) * facts.num_positions


def _is_derived(scan: Scan) -> bool:
    kind = {part.upper() for part in _facts(scan).image_type[:2]}
    return bool(kind & {"DERIVED", "SECONDARY"})


def _whole(scans: Iterable[Scan]) -> list[Scan]:
    """The scans without those that are much shorter than the longest."""
    listed = list(scans)
    longest = max((_length(scan) for scan in listed), default=0.0)
    return [scan for scan in listed if not _length(scan) or _length(scan) >= COVERAGE_SHARE * longest]


def _filtered(study: Sequence[Scan], rule: Selection, left: dict[int, str]) -> list[Scan]:
    """The series that pass the filters; the reasons of the others go into `left`."""
    kept: list[Scan] = []
    for scan in study:
        kernel, orientation = _kernel(scan), _facts(scan).orientation
        if rule.kernel != "any" and kernel not in (rule.kernel, "unknown"):
            left[id(scan)] = f"It has a {kernel} kernel ({_kernel_text(scan)}); kernel={rule.kernel} was asked for."
        elif rule.orientation == "axial" and orientation not in ("axial", ""):
            left[id(scan)] = f"Its slices are {orientation}; orientation=axial was asked for."
        else:
            kept.append(scan)
    if rule.thickness == "any":
        return kept
    known = [t for scan in _whole(kept) if (t := _thickness(scan)) is not None]
    if not known:
        return kept
    wanted = min(known) if rule.thickness == "thinnest" else max(known)
    passed: list[Scan] = []
    for scan in kept:
        thickness = _thickness(scan)
        if thickness is not None and abs(thickness - wanted) > SAME_THICKNESS_MM:
            left[id(scan)] = (
                f"Its slices are {thickness:g} mm apart; the {rule.thickness} of its study, {wanted:g} mm, are kept."
            )
        else:
            passed.append(scan)
    return passed


def _kernel_text(scan: Scan) -> str:
    facts = _facts(scan)
    return facts.convolution_kernel or f"by its name, '{facts.series_description}'"


def _best(candidates: Sequence[Scan], rule: Selection, count: int, left: dict[int, str]) -> None:
    """Leave out all but the best `count` series of a study."""
    whole = {id(scan) for scan in _whole(candidates)}
    ranks = {id(scan): _rank(scan, rule, whole=id(scan) in whole) for scan in candidates}
    order = sorted(candidates, key=lambda scan: (ranks[id(scan)], scan.source))
    for scan in order[count:]:
        last = order[count - 1]
        pairs = zip(ranks[id(scan)], ranks[id(last)], strict=True)
        differs = next((k for k, (one, other) in enumerate(pairs) if one != other), len(_WHY))
        why = _WHY[differs] if differs < len(_WHY) else "the two are alike and the first by name was taken"
        left[id(scan)] = f"per_study={count}: another series of its study is preferred, for {why}."


_WHY = (
    "its kernel",
    "its axial slices",
    "it is an original reconstruction and this one is derived",
    "it is without contrast agent",
    "it covers more of the head",
    "its slice thickness",
    "it has more slices",
)
"""What the numbers of a rank mean, in their order."""


def _rank(scan: Scan, rule: Selection, *, whole: bool) -> Rank:
    """Numbers by which series are compared, smaller is better; in the order of `_WHY`."""
    facts = _facts(scan)
    wanted = "bone" if rule.kernel == "bone" else "soft"
    kernel = _kernel(scan)
    thickness = _thickness(scan)
    size = 0.0 if thickness is None else round(thickness / SAME_THICKNESS_MM)
    return (
        0.0 if kernel == wanted else 1.0 if kernel == "unknown" else 2.0,
        {"axial": 0.0, "": 1.0, "oblique": 2.0}.get(facts.orientation, 3.0),
        float(_is_derived(scan)),
        float(facts.contrast is True),
        float(not whole),
        (-size if rule.thickness == "thickest" else size) if thickness is not None else float("inf"),
        -float(facts.num_positions),
    )
