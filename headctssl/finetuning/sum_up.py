"""Sum up: what several runs of one call say together, over folds, over draws and along the learning curve."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from headctssl.console import name_files, table
from headctssl.contract import LabelSpec
from headctssl.finetuning.cohort import NO_FOLD
from headctssl.finetuning.pool_folds import pool_folds
from headctssl.finetuning.prepare import Call, Place, locate
from headctssl.finetuning.series_file import Draws, LearningCurve, OverDraws
from headctssl.finetuning.settings import FinetuneSettings
from headctssl.metrics.metrics_file import Metrics
from headctssl.metrics.outcome import Outcome, read_predictions
from headctssl.metrics.paired import defined, mean_area
from headctssl.metrics.statistics import draw_weights, subject_codes
from headctssl.paths import atomic_path
from headctssl.settings import read_json, write_json

__all__ = ["over_draws", "sum_up"]

_RESAMPLES = 1000


def sum_up(calls: Sequence[Call], *, quiet: bool) -> Path:
    """Write what finished runs say together.

    Folds of one draw: ``out_of_fold/`` and ``ensemble/`` beside them. Draws of one number of shots: ``draws.json`` in
    the folder of the task. Several numbers of shots: ``learning_curve.json``, ``.csv`` and ``.png`` in a folder
    ``TASK-curve...`` beside those of the tasks.

    Args:
        calls: one per run, as `expand` gives them.
        quiet: print nothing.

    Returns:
        The folder of the learning curve, or of the one task.

    Raises:
        DataError: a file of a run is missing or damaged.
    """
    places = [locate(call) for call in calls]
    truth, sessions = _truth(places[0]), places[0].raw.sessions()
    points, files, folder = [], [], places[0].folder.parent
    for _, of_task in groupby(zip(calls, places, strict=True), key=lambda pair: pair[0].few_shots):
        runs = list(of_task)
        judged = []
        for draw, of_draw in groupby(runs, key=lambda pair: pair[0].draw):
            folders = {call.fold: place.folder for call, place in of_draw}
            folds = [folder for fold, folder in folders.items() if fold != NO_FOLD]
            pooled = pool_folds(folds, truth, sessions, quiet=quiet) if len(folds) > 1 else []
            files += [file for path in pooled for file in sorted(path.glob("predictions*.csv"))]
            files += [path / "metrics.json" for path in pooled]
            first = next(iter(folders.values()))
            judged.append((draw, [*pooled, first][0], first))
        point = _draws(runs[0][0], judged, places[0], truth)
        points.append(point)
        task = _task_folder(runs[0][1].folder, runs[0][0])
        if len(judged) > 1:
            write_json(task / "draws.json", point)
            files.append(task / "draws.json")
            _print(point, quiet)
        folder = task
    if len(points) > 1:
        folder = _curve_folder(_task_folder(places[0].folder, calls[0]), calls)
        files += _write_curve(folder, LearningCurve(dataset_name=places[0].raw.folder.name, points=tuple(points)))
    name_files(files, quiet=quiet)
    return folder


def _truth(place: Place) -> Mapping[str, NDArray[np.floating]]:
    frame = place.raw.labels()[[spec.name for spec in place.specs]]
    return {str(c): row for c, row in zip(frame.index, frame.to_numpy(dtype=np.float64), strict=True)}


def _task_folder(run: Path, call: Call) -> Path:
    return run.parents[1] if call.draw else run.parent


def _curve_folder(task: Path, calls: Sequence[Call]) -> Path:
    """``TASK-curve[_all_negatives]__ADAPT__INIT[__TAG]`` beside the task folders, of which `task` is the first."""
    name, rest = task.name.split("__", 1)
    if calls[0].few is not None:
        name = name.removesuffix(f"-{calls[0].few.name}")
    negatives = "_all_negatives" if any(call.negatives == "all" for call in calls) else ""
    return task.parent / f"{name}-curve{negatives}__{rest}"


def _draws(
    call: Call, judged: Sequence[tuple[int, Path, Path]], place: Place, truth: Mapping[str, NDArray[np.floating]]
) -> Draws:
    """What the draws of one number of shots say; `judged` has (draw, folder of its metrics, folder of a run)."""
    outcomes = [read_predictions(where / "predictions.csv", place.specs, truth) for _, where, _ in judged]
    metrics = [read_json(where / "metrics.json", Metrics) for _, where, _ in judged]
    configs = [read_json(run / "config.json", FinetuneSettings) for _, _, run in judged]
    root = place.raw.folder.name
    return Draws(
        few_shots=call.few_shots,
        few_shot_negatives=call.negatives,
        draws=tuple(draw for draw, _, _ in judged),
        folders=tuple(str(where).split(f"{root}/", 1)[-1] for _, where, _ in judged),
        evaluated_on=metrics[0].evaluated_on,
        num_train=tuple(config.num_train for config in configs),
        auroc=tuple(over_draws(place.specs, outcomes)),
    )


def over_draws(specs: Sequence[LabelSpec], outcomes: Sequence[Outcome], *, seed: int = 0) -> list[OverDraws]:
    """AUROC per binary label and their mean, over draws.

    The variance of the mean over draws is their sample variance over their number. The chance of the judged patients,
    which all draws share, is the variance of that mean over resamples of patients; both are added, since they are
    independent to first order. Draws that are judged by their own training cases, where nothing is held out, share no
    patients: they get no such interval.

    Args:
        specs: the labels.
        outcomes: one per draw.
        seed: of the resamples.
    """
    binary = [k for k, spec in enumerate(specs) if spec.type == "binary"]
    first = outcomes[0]
    judged = [outcome.binary() for outcome in outcomes]
    columns = [k for k in range(len(binary)) if all(k in defined(truth) for truth, _ in judged)]
    if not columns:
        return []
    shared = all(outcome.case_ids == first.case_ids for outcome in outcomes)
    subjects = subject_codes(first.subject_ids, first.case_ids)
    weights = draw_weights(subjects, _RESAMPLES, np.random.Generator(np.random.PCG64(seed)))
    found = []
    named = [(specs[binary[k]].name, [k]) for k in columns]
    for name, chosen in [*named, *([("mean", columns)] if len(columns) > 1 else [])]:
        once = [float(mean_area(truth, score, chosen, np.ones((1, len(truth))))[0]) for truth, score in judged]
        of_patients = None
        if shared:
            resampled = np.mean([mean_area(truth, score, chosen, weights) for truth, score in judged], axis=0)
            of_patients = float(np.nanvar(resampled))
        found.append(_over(name, once, of_patients))
    return found


def _over(name: str, values: Sequence[float], of_patients: float | None) -> OverDraws:
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return OverDraws(name=name, per_draw=tuple(values), mean=mean)
    deviation = float(np.std(values, ddof=1))
    factor = float(student.ppf(0.975, count - 1))

    def interval(more: float) -> tuple[float, float]:
        half = factor * (deviation**2 / count + more) ** 0.5
        return max(0.0, mean - half), min(1.0, mean + half)

    return OverDraws(
        name=name,
        per_draw=tuple(values),
        mean=mean,
        deviation=deviation,
        draws_ci=interval(0.0),
        ci=None if of_patients is None else interval(of_patients),
    )


def _print(point: Draws, quiet: bool) -> None:
    rows = [
        (one.name, f"{one.mean:.3f}", _range(one.draws_ci), _range(one.ci), " ".join(f"{v:.3f}" for v in one.per_draw))
        for one in point.auroc
    ]
    columns = ("label", "mean AUROC", "95 % over draws", "95 % over draws and patients", "each draw")
    table(f"{len(point.draws)} draws of {_shots(point)}, {point.evaluated_on} cases", columns, rows, quiet=quiet)


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else "[{:.3f}, {:.3f}]".format(*interval)


def _shots(point: Draws) -> str:
    if point.few_shots is None:
        return "all training cases"
    return f"{point.few_shots} patients per class" + (", all negatives" if point.few_shot_negatives == "all" else "")


def _write_curve(folder: Path, curve: LearningCurve) -> list[Path]:
    """learning_curve.json, .csv (one line per number of shots, draw and label) and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"learning_curve.{suffix}" for suffix in ("json", "csv", "png")]
    write_json(files[0], curve)
    with atomic_path(files[1]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["few_shots", "negatives", "draw", "num_train", "label", "auroc"])
        for point in curve.points:
            for one in point.auroc:
                for draw, count, value in zip(point.draws, point.num_train, one.per_draw, strict=True):
                    shots = "all" if point.few_shots is None else point.few_shots
                    writer.writerow([shots, point.few_shot_negatives, draw, count, one.name, f"{value:.6g}"])
    _draw_curve(files[2], curve)
    return files


def _draw_curve(path: Path, curve: LearningCurve) -> None:
    """AUROC over the mean number of training cases, with the interval over draws and patients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(one.name for point in curve.points for one in point.auroc):
        found = [(point, one) for point in curve.points for one in point.auroc if one.name == name]
        x = [float(np.mean(point.num_train)) for point, _ in found]
        y = [one.mean for _, one in found]
        (line,) = axes.plot(x, y, marker="o", label=name)
        for at, (_, one) in zip(x, found, strict=True):
            if one.ci is not None:
                axes.vlines(at, *one.ci, color=line.get_color(), alpha=0.5)
    axes.axhline(0.5, color="0.6", linewidth=1, linestyle=":")
    axes.set(xscale="log", xlabel="training cases", ylabel="AUROC (line: 95 % over draws and patients)")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
