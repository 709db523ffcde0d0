"""Demo: phantom -> plans -> preprocessed -> dino -> two classifiers with few labels -> report.html."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headctssl.console import name_files, say
from headctssl.errors import UsageError
from headctssl.finetuning.finetune import finetune
from headctssl.ingest.phantom.make import make_phantom
from headctssl.paths import ROOT_KINDS
from headctssl.preprocessing.plan_and_preprocess import plan_and_preprocess
from headctssl.reporting.demo_page import (
    DemoRuns,
    demo_page,
    difference_text,
    mean_auroc_text,
    paired_difference,
    verdict,
)
from headctssl.reporting.page import write_page
from headctssl.reporting.report import report
from headctssl.training.estimate import plan_run
from headctssl.training.pretrain import pretrain

__all__ = ["demo"]

DATASET = 1
FEW_SHOTS = 8


def demo(
    output: Path = Path("headctssl_demo"),
    *,
    n: int = 240,
    seed: int = 0,
    minutes: float = 2.5,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Run the whole pipeline on synthetic scans and write a report.

    Args:
        output: folder for raw data, preprocessed data, results and the report.
        n: number of synthetic scans.
        seed: seed of the scans and of the training.
        minutes: about how long pretraining may take; the number of steps follows from the estimate.
        device: ``cpu``, ``cuda``; found when None.
        overwrite: replace an existing folder.
        quiet: print nothing.

    Returns:
        The HTML file.

    Raises:
        UsageError: the folder exists and `overwrite` is False.
    """
    output = Path(output).absolute()
    if output.is_file():
        raise UsageError("-o names a file.", got=output, expected="a folder", do="Name another folder with -o.")
    if output.exists() and any(output.iterdir()):
        _make_room(output, overwrite)
    began = time.monotonic()
    seeded = [f"training.seed={seed}"]
    with _data_roots(output):
        say(f"1/6  {n} synthetic head CTs with labels, under {output.name}/raw", quiet=quiet)
        make_phantom(DATASET, n=n, seed=seed, profile="laptop", quiet=quiet)
        say("2/6  plan and preprocess", quiet=quiet)
        plan_and_preprocess([DATASET], quiet=quiet)
        say("3/6  pretrain an encoder with dino, without labels", quiet=quiet)
        run = _pretrain(seeded, minutes, device, quiet)
        config = run.name.split("__")[1]
        say(f"4/6  fine-tune it with {FEW_SHOTS} positive and {FEW_SHOTS} negative subjects per label", quiet=quiet)
        pretrained = finetune(DATASET, run, few_shots=FEW_SHOTS, device=device, overrides=seeded, quiet=quiet)
        say("5/6  train the same network from scratch with the same labels", quiet=quiet)
        scratch = finetune(
            DATASET, "scratch", config=config, few_shots=FEW_SHOTS, device=device, overrides=seeded, quiet=quiet
        )
        say("6/6  report", quiet=quiet)
        for folder in (run, pretrained, scratch):
            report(folder, quiet=True)
        difference = paired_difference(pretrained, scratch, DATASET)
        runs = DemoRuns(DATASET, n, FEW_SHOTS, run, pretrained, scratch, (time.monotonic() - began) / 60)
        path = write_page(output / "report.html", demo_page(runs, difference))
    say(f"\nmean AUROC from scratch  {mean_auroc_text(scratch)}", quiet=quiet)
    say(f"mean AUROC after dino    {mean_auroc_text(pretrained)}", quiet=quiet)
    say(f"difference               {difference_text(difference)}\n\n{verdict(difference)}\n", quiet=quiet)
    name_files([path, pretrained / "classifier.safetensors", run / "encoder.safetensors"], quiet=quiet)
    return path


def _make_room(output: Path, overwrite: bool) -> None:
    """Remove an earlier demo when asked; never anything the demo did not make."""
    ours = {*ROOT_KINDS, "report.html"}
    foreign = sorted(entry.name for entry in output.iterdir() if entry.name not in ours)
    if foreign or not overwrite:
        raise UsageError(
            "The demo's folder is not empty.",
            got=f"{output} holds {', '.join(sorted(e.name for e in output.iterdir())[:5])}",
            expected="a new or empty folder" if foreign else "a new or empty folder, or --overwrite",
            do="Name another folder with -o." if foreign else "Add --overwrite to run it again from the start.",
        )
    shutil.rmtree(output)


@contextmanager
def _data_roots(output: Path) -> Iterator[None]:
    """Point the three data roots into the demo's folder while it runs."""
    before = {f"headctssl_{kind}": os.environ.get(f"headctssl_{kind}") for kind in ROOT_KINDS}
    for kind in ROOT_KINDS:
        (output / kind).mkdir(parents=True, exist_ok=True)
        os.environ[f"headctssl_{kind}"] = str(output / kind)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _pretrain(seeded: list[str], minutes: float, device: str | None, quiet: bool) -> Path:
    """Pretrain for about so many minutes: the number of steps follows from the printed estimate."""
    planned = plan_run([DATASET], "dino", device=device, overrides=seeded)
    seconds = max(planned.estimate.step_seconds, 1e-3)
    steps = min(max(20, int(minutes * 60 / seconds)), planned.training.num_steps)
    say(f"     {steps} steps, about {steps * seconds / 60:.1f} minutes", quiet=quiet)
    overrides = [*seeded, f"training.num_steps={steps}"]
    return pretrain([DATASET], "dino", device=device, overrides=overrides, quiet=quiet)
