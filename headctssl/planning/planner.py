"""Planner: fingerprint -> plans, in numbered, sourced steps.

`make_plans` reads like a recipe: each step has its rule, source and assumption in its docstring,
takes a value, and writes one line into `decisions` with what in the data led to it. It reads no
file and asks no machine: machine and method are the matter of `planning.resolve`.
"""

from __future__ import annotations

from contextlib import nullcontext

from headctssl.console import name_files, say, table
from headctssl.contract import StorageRule, Window
from headctssl.dataset.manifest import load_raw_dataset
from headctssl.errors import UsageError
from headctssl.planning.case_facts import left_out_cases
from headctssl.planning.decisions import Ledger
from headctssl.planning.fingerprint import THICK_SLICE_MM, DatasetFingerprint, load_fingerprint
from headctssl.planning.fit import PHANTOM_VOXELS, fit_preset
from headctssl.planning.plans import ConfigurationPlan, Plans, SplitRule, load_plans, plans_path
from headctssl.planning.splits_file import ensure_splits
from headctssl.planning.store_layout import HEADS_PER_SECOND, choose_layout
from headctssl.plugins import ENCODER_GROUP, find_plugins, left_out_when_broken
from headctssl.presets import encoder_presets
from headctssl.settings import write_json
from headctssl.volume.layout import StoreLayout

__all__ = ["load_plans", "make_plans", "plan_experiment", "print_plans"]

FINEST_MM = 1.0
"""Finest storage spacing. HeadCT-Foundation and OpenMind store 1 mm; int16 at 1 mm is about 5 MB a head."""

WINDOWS = (
    ("brain", Window(level=40, width=80)),
    ("blood", Window(level=80, width=200)),
    ("bone", Window(level=600, width=2800)),
)
"""Windows (level, width) in HU of HeadCT-Foundation (arXiv 2502.02779), one input channel each."""

HU_CLIP = (-1024, 3071)
"""The 12 bits of a CT scanner."""

_FEWEST_TO_SPLIT = 5


def make_plans(fingerprint: DatasetFingerprint, *, plans_name: str = "plans", gpu_memory: float | None = None) -> Plans:
    """Decide everything that the data decide. Pure.

    Args:
        fingerprint: what the dataset is like; at least one readable case.
        plans_name: `plans`, or the NAME of `-p NAME`.
        gpu_memory: GB that a training step of two scans must fit, or None for no limit.
    """
    ledger = Ledger()
    storage = StorageRule(
        spacing_mm=(
            _step_1_storage_z(ledger, fingerprint),
            *(_step_2_storage_in_plane(ledger, fingerprint),) * 2,
        ),
        hu_clip=_step_3_hu_clip(ledger, fingerprint),
        masks=_step_4_masks(ledger, fingerprint),
    )
    windows = _step_5_windows(ledger, fingerprint)
    configurations = _step_6_inputs(ledger, fingerprint, storage, windows, gpu_memory)
    return Plans(
        dataset_id=fingerprint.dataset_id,
        dataset_name=fingerprint.dataset_name,
        plans_name=plans_name,
        num_cases=fingerprint.num_cases,
        num_subjects=fingerprint.num_subjects,
        fingerprint_digest=fingerprint.digest(),
        profile=fingerprint.profile,
        storage=storage,
        configurations=configurations,
        split_rule=_step_7_split(ledger, fingerprint),
        layout=_step_8_layout(ledger, fingerprint, storage),
        decisions=ledger.decisions,
    )


def _step_1_storage_z(ledger: Ledger, fingerprint: DatasetFingerprint) -> float:
    """Step 1. Storage spacing along z.

    Rule: the 10th percentile of the slice spacing, rounded down to 0.1 mm, at least 1.0 mm. As long
    as a tenth of the scans are thin, thin detail is kept; only when nearly all scans are thick are
    they stored thick. Source: nnU-Net's rule for anisotropic data (arXiv 1904.08128) takes the same
    percentile. Assumption: interpolating thick slices to 1 mm adds volume, not information.
    """
    z = fingerprint.spacing_mm[0]
    value = max(FINEST_MM, _down(z.p10))
    ledger.note(
        "storage spacing z",
        f"{value:g} mm",
        "10th percentile of the slice spacing, rounded down to 0.1 mm, at least 1.0 mm",
        "nnU-Net's percentile for thick slices (arXiv 1904.08128)",
        f"slices {z.low:g}-{z.high:g} mm, 10th percentile {z.p10:g}, median {z.median:g}; "
        f"{fingerprint.thick_slice_share:.0%} of the scans have {THICK_SLICE_MM:g} mm or more",
    )
    return value


def _step_2_storage_in_plane(ledger: Ledger, fingerprint: DatasetFingerprint) -> float:
    """Step 2. Storage spacing in plane.

    Rule: 1.0 mm, or the median in-plane spacing rounded down to 0.1 mm where that is coarser.
    Source: HeadCT-Foundation (arXiv 2502.02779) and OpenMind (arXiv 2412.17041) work at 1 mm;
    scanners deliver 0.4-0.5 mm, which no encoder input here can use.
    """
    _, y, x = fingerprint.spacing_mm
    median = (y.median + x.median) / 2
    value = max(FINEST_MM, _down(median))
    ledger.note(
        "storage spacing in plane",
        f"{value:g} mm",
        "1.0 mm, or the median in-plane spacing rounded down to 0.1 mm where that is coarser",
        "HeadCT-Foundation (arXiv 2502.02779), OpenMind (arXiv 2412.17041)",
        f"pixels {min(y.low, x.low):g}-{max(y.high, x.high):g} mm, median {median:g}",
    )
    return value


def _step_3_hu_clip(ledger: Ledger, fingerprint: DatasetFingerprint) -> tuple[int, int]:
    """Step 3. HU clip.

    Rule: -1024 to 3071, whatever the data: the range of 12-bit CT, so that nothing but padding and
    metal beyond the scanner's scale is cut.
    """
    top = fingerprint.head_hu[-1] if fingerprint.head_hu else float("nan")
    ledger.note(
        "HU clip",
        f"{HU_CLIP[0]} to {HU_CLIP[1]}",
        "the 12 bits of CT, the same for every dataset",
        "convention",
        f"99.5th percentile in the head is {top:g} HU, " + ("inside" if top <= HU_CLIP[1] else "above the clip: metal"),
    )
    return HU_CLIP


def _step_4_masks(ledger: Ledger, fingerprint: DatasetFingerprint) -> tuple[str, ...]:
    """Step 4. Masks stored beside each case: the head, and every mask that the dataset brings."""
    masks = ("head", *fingerprint.masks)
    ledger.note(
        "masks",
        ", ".join(masks),
        "the head mask, and every mask column of cases.csv that is filled",
        "the stored format keeps named masks, never altered voxels",
        f"cases.csv fills {', '.join(fingerprint.masks) or 'no mask column'}",
    )
    return masks


def _step_5_windows(ledger: Ledger, fingerprint: DatasetFingerprint) -> tuple[Window, ...]:
    """Step 5. Windows.

    Rule: brain (40, 80), blood (80, 200), bone (600, 2800), one channel each. They are applied
    after loading and never stored. Checked against the data: the median in the head must lie in
    the brain window, the 95th percentile in the bone window. Source: arXiv 2502.02779.
    """
    checks = []
    if fingerprint.head_hu:
        points = dict(zip(fingerprint.head_hu_points, fingerprint.head_hu, strict=True))
        for percentile, (name, window) in ((50.0, WINDOWS[0]), (95.0, WINDOWS[2])):
            low, high = window.level - window.width / 2, window.level + window.width / 2
            fits = low <= points[percentile] <= high
            verdict = f"inside {name}" if fits else f"OUTSIDE {name}: check that the scans are in Hounsfield units"
            checks.append(f"{percentile:g}th percentile in the head {points[percentile]:g} HU, {verdict}")
    if fingerprint.doubtful_hu:
        checks.append(f"{fingerprint.doubtful_hu} of {fingerprint.sampled_cases} sampled scans may not be in HU")
    ledger.note(
        "windows",
        ", ".join(f"{name} ({w.level:g}, {w.width:g})" for name, w in WINDOWS),
        "level and width in HU as published, one channel each",
        "HeadCT-Foundation (arXiv 2502.02779)",
        "; ".join(checks) or "no volume was sampled",
    )
    return tuple(window for _, window in WINDOWS)


def _step_6_inputs(
    ledger: Ledger,
    fingerprint: DatasetFingerprint,
    storage: StorageRule,
    windows: tuple[Window, ...],
    gpu_memory: float | None,
) -> tuple[ConfigurationPlan, ...]:
    """Step 6. Input of every encoder preset: see `planning.fit.fit_preset` for rule, source and assumption.

    Phantoms at laptop size and templates get an eighth of the voxels, so that their runs are cheap.
    """
    assert fingerprint.head_extent_mm is not None, "a fingerprint of at least one case has head extents"
    z, y, x = (spread.p95 for spread in fingerprint.head_extent_mm)
    small = fingerprint.profile in ("laptop", "template")
    plans: list[ConfigurationPlan] = []
    presets_by_fit: dict[tuple[str, str], list[str]] = {}
    added = find_plugins(ENCODER_GROUP)
    for preset in encoder_presets().values():
        plugin = added.get(preset.settings.family)
        with left_out_when_broken(plugin) if plugin is not None else nullcontext():
            fitted = fit_preset(
                preset,
                extent_mm=(z, y, x),
                storage=storage,
                windows=windows,
                small=small,
                gpu_memory_gb=gpu_memory,
            )
            spec = fitted.plan.input
            value = f"{_text(spec.shape)} voxels of {_text(spec.spacing_mm)} mm, {spec.rule}"
            presets_by_fit.setdefault((value, fitted.because), []).append(preset.name)
            plans.append(fitted.plan)
    for (value, because), names in presets_by_fit.items():
        ledger.note(
            "input of " + ", ".join(names),
            value,
            "the finest spacing at which the 95th-percentile head fits the preset's voxel and token budget"
            + (f"; at most {PHANTOM_VOXELS:,} voxels for profile '{fingerprint.profile}'" if small else ""),
            "voxel budget: the preset's published input; fit: arXiv 1904.08128",
            because,
        )
    return tuple(plans)


def _step_7_split(ledger: Ledger, fingerprint: DatasetFingerprint) -> SplitRule:
    """Step 7. Split rule.

    Rule: a fifth of the subjects for the final test, five folds over the others; a fold validates
    on at least two subjects, so fewer folds below 13 subjects; below 5 all cases are for training.
    A `split` column is kept as it is. Source: convention of nnU-Net (five folds).
    """
    subjects = fingerprint.num_subjects
    rest = subjects - max(1, round(0.2 * subjects))
    rule = SplitRule(test_share=0.2, folds=max(1, min(5, rest // 2)))
    few = subjects < _FEWEST_TO_SPLIT
    ledger.note(
        "splits",
        "all cases for training" if few else f"{rule.test_share:.0%} test, {rule.folds} folds, by subject",
        "a fifth of the subjects for test, five folds with at least two subjects each; below 5 subjects none held out",
        "convention",
        f"{subjects} subjects, {fingerprint.num_cases} cases"
        + ("; labels: " + ", ".join(label.name for label in fingerprint.labels) if fingerprint.labels else ""),
    )
    return rule


def _step_8_layout(ledger: Ledger, fingerprint: DatasetFingerprint, storage: StorageRule) -> StoreLayout:
    """Step 8. Layout of the stored files: voxels are the same in any.

    Rule: of the layouts measured the smallest that lets one core read 30 whole heads a second, for the
    95th-percentile head of the dataset. Source: the table in documentation/preprocessing.md. Assumption: another
    machine is faster or slower for all layouts alike. A coarser copy of every head is not stored: it would add a
    seventh to the files, and views of it would be filtered twice, to save a core some milliseconds it can spare.
    """
    assert fingerprint.head_extent_mm is not None, "a fingerprint of at least one case has head extents"
    z, y, x = (spread.p95 for spread in fingerprint.head_extent_mm)
    choice = choose_layout((z, y, x), storage.spacing_mm)
    layout, measured = choice.measured.layout, choice.measured
    ledger.note(
        "store layout",
        f"{layout.codec} level {layout.level}, chunks of {layout.chunk} and blocks of {layout.block} voxels, "
        "no coarser level",
        f"the smallest measured layout that gives a core {HEADS_PER_SECOND:g} whole heads a second, else the fastest",
        "measured on a real head: table in documentation/preprocessing.md",
        f"the 95th-percentile head is {choice.head_mb:.1f} MB, {choice.heads_per_second:.0f} a second at "
        f"{measured.read_mb_s:g} MB/s; a crop of 96^3 takes {measured.crop_ms:g} ms"
        + ("" if choice.enough else "; no layout is fast enough: use more reader processes"),
    )
    return layout


def plan_experiment(
    dataset_id: int,
    plans_name: str = "plans",
    *,
    gpu_memory: float | None = None,
    replan: bool = False,
    quiet: bool = False,
) -> Plans:
    """Write plans.json and splits.json of a fingerprinted dataset and print the decisions.

    Existing plans are kept unless `replan`. splits.json is never redrawn: cases added since get the
    place of their subject, and new subjects join the training cases.

    Args:
        dataset_id: the number of the dataset.
        plans_name: `plans`, or another name for a second plan beside the first.
        gpu_memory: GB that a training step of two scans must fit.
        replan: plan again from the present fingerprint.
        quiet: print nothing.

    Raises:
        DataError: there is no fingerprint, or a file does not fit its schema.
        UsageError: there is no such dataset, the name cannot be a file name, or `gpu_memory` is given
            for plans that exist and are kept.
    """
    path = plans_path(dataset_id, plans_name)
    if path.is_file() and not replan:
        if gpu_memory is not None:
            raise UsageError(
                f"--gpu_memory has no effect on {path.name}, which exists and is kept.",
                got=f"--gpu_memory {gpu_memory:g} without --replan",
                expected="plans that are made by this call",
                do="Add --replan to plan again, name a second plan with -p NAME, or leave --gpu_memory out.",
            )
        plans = load_plans(dataset_id, plans_name)
        say(f"{path.name} exists and is kept (--replan plans again from the present fingerprint)", quiet=quiet)
    else:
        plans = make_plans(load_fingerprint(dataset_id), plans_name=plans_name, gpu_memory=gpu_memory)
        write_json(path, plans)
    print_plans(plans, quiet=quiet)
    raw = load_raw_dataset(dataset_id)
    left_out = left_out_cases(path.parent)
    kept = [case_id for case_id in raw.case_ids if case_id not in left_out]
    splits = ensure_splits(raw, path.parent, plans.split_rule, kept, quiet=quiet)
    name_files([path, splits], quiet=quiet)
    return plans


def print_plans(plans: Plans, *, quiet: bool = False) -> None:
    """Print every decision of the plans with its reason."""
    rows = [(d.what, d.value, d.because) for d in plans.decisions]
    table(f"{plans.dataset_name}: what was decided, and why", ("decision", "value", "because"), rows, quiet=quiet)


def _down(value: float) -> float:
    """Rounded down to 0.1 mm; 2.9999 counts as 3."""
    return int(value * 10 + 1e-3) / 10


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in values)
