"""Learning page: documentation/learning.md and its picture, made of learning.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning_task import BASELINES

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "documentation" / "learning.md"
PICTURE = PAGE.with_suffix(".png")
BEGIN, END = "<!-- tables: made of benchmarks/learning.json -->", "<!-- end of tables -->"
EXAMINED, EXAMINED_END = "<!-- examined: made of benchmarks/learning_examine.json -->", "<!-- end of examined -->"
Row = Mapping[str, Any]


def main() -> int:
    """Render the page."""
    write_page()
    return 0


def write_page(
    page: Path = PAGE, source: Path = FOLDER / "learning.json", examined: Path = FOLDER / "learning_examine.json"
) -> None:
    """Put the tables between their marks and draw the curves.

    Args:
        page: the Markdown file, with the marks.
        source: the rows.
        examined: rows of benchmarks.learning_examine.
    """
    from benchmarks.learning_examine import read_rows, trials

    told = json.loads(source.read_text(encoding="utf-8"))
    text = _put(page.read_text(encoding="utf-8"), BEGIN, END, tables(told))
    text = _put(text, EXAMINED, EXAMINED_END, examined_table(read_rows(examined), len(trials())))
    page.write_text(text, encoding="utf-8")
    _draw(told["rows"], page.with_suffix(".png"))


def _put(text: str, begin: str, end: str, between: str) -> str:
    """A page with something else between two marks."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{between}\n{end}{after}"


def tables(told: Row) -> str:
    """The tables as Markdown: state, baselines, methods, what beats the random encoder, what was refused.

    Args:
        told: the content of learning.json.
    """
    rows, differences = told["rows"], told["differences"]
    lines = [*_state(told), "", "### Baselines", "", *_baselines(rows)]
    encoders = list(dict.fromkeys(d["config"] for d in differences))
    if not differences:
        lines += ["", "No method is measured yet: nothing is said of any."]
    for readout in ("linear", "attentive") if differences else ():
        lines += ["", f"### {readout.capitalize()} readout of frozen features", ""]
        lines += [
            "| encoder | method | seeds | AUROC | minus random encoder [95 %] | minus histogram [95 %] | |",
            "|---|---|---|---|---|---|---|",
        ]
        for encoder in encoders:
            of = [d for d in differences if d["config"] == encoder and d["readout"] == readout]
            for method in dict.fromkeys(d["method"] for d in of):
                beside = {d["beside"]: d for d in of if d["method"] == method}
                lines.append(_line(encoder, method, beside))
    lines += ["", *_verdicts(differences)] if differences else []
    refused = [r for r in rows if "refused" in r]
    if refused:
        lines += ["", "### Pairs that are refused", ""]
        lines += [f"- {r['method']} with {r['config']}: {r['refused']}" for r in refused]
    runs = [r for r in rows if r["method"] not in BASELINES and "curve" in r]
    if runs:
        lines += ["", "### Runs", "", "![Probe AUROC over the scans seen, for every run](learning.png)", ""]
        lines += [
            "The curves are the monitors of the runs ([pretraining](pretraining.md#monitors)): few cases, so that they",
            "move by chance; the first point of each is the encoder before it was trained. Dotted: what random",
            "encoders, on average, and the histogram reach on the test cases, which are others. A run took so many",
            "minutes beside another one and whatever else the machine did. Probes come every 50 steps here, for the",
            "curves; planned runs ask so seldom that monitors take at most 3 % ([benchmarks](benchmarks.md)).",
            "",
        ]
        lines += ["| encoder | method | seed | minutes | loss, first to last | monitors | guard |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for r in sorted(runs, key=lambda r: (r["config"], r["method"], r["seed"])):
            loss = " to ".join("-" if v is None else f"{v:.3g}" for v in r["loss"])
            share, said = f"{100 * r['monitor_share']:.1f} %", r["collapse"] or "silent"
            lines.append(
                f"| {r['config']} | {r['method']} | {r['seed']} | {r['seconds'] / 60:.1f} | {loss} | {share} | {said} |"
            )
    return "\n".join(lines) + "\n"


def examined_table(rows: Sequence[Row], asked: int) -> str:
    """What was examined, as Markdown: one line per run, after the baselines.

    Args:
        rows: of learning_examine.json.
        asked: how many rows there are when all are measured.
    """
    lines = [f"{len(rows)} of {asked} rows are measured; `python -m benchmarks.learning_examine` goes on.", ""]
    lines += ["| encoder | method | scans | batch | rate | linear | minus random | attentive | minus random | guard |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        gaps = {d["readout"]: d for d in row.get("beside", ()) if d["beside"] == "random"}
        values = []
        for readout in ("linear", "attentive"):
            found = gaps.get(readout)
            gap = "" if found is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(found["difference"], *found["ci"])
            if found is not None and found["ci"][0] > 0:
                gap = f"**{gap}**"
            values += [_value(row.get(readout)), gap]
        run, guard = ["", "", ""], ""
        if row["method"] not in BASELINES:
            rate = f"{row['lr']:.3g}" + (", planned" if row["planned_lr"] else "")
            rate += f", gradients clipped at {row['clip']}" if row.get("clip") else ""
            run, guard = [f"{row['scans']:,}", str(row["batch"]), rate], row["collapse"] or "silent"
        lines.append(f"| {' | '.join([row['config'] or '-', row['method'], *run, *values, guard])} |")
    return "\n".join(lines) + "\n"


def _state(told: Row) -> list[str]:
    from benchmarks.learning import jobs, task_digest

    have = {(r["method"], r["config"], r["seed"]) for r in told["rows"] if r["task"] == task_digest()}
    wanted = list(jobs())
    missing = [job for job in wanted if (job.method, job.config, job.seed) not in have]
    text = f"{len(wanted) - len(missing)} of {len(wanted)} rows are measured."
    if missing:
        names: dict[str, list[str]] = {}
        for job in missing:
            names.setdefault(f"{job.method} {job.config}".strip(), []).append(str(job.seed))
        listed = "; ".join(f"{name} seed {', '.join(seeds)}" for name, seeds in names.items())
        text += f" **The table is partial.** Missing: {listed}. `make learning` goes on with them."
    return [text]


def _baselines(rows: Sequence[Row]) -> list[str]:
    lines = ["| baseline | seed | linear: AUROC [95 %] | attentive: AUROC [95 %] |", "|---|---|---|---|"]
    for row in sorted(
        (r for r in rows if r["method"] in BASELINES), key=lambda r: (r["method"], r["config"], r["seed"])
    ):
        cells = [_value(row.get(readout)) for readout in ("linear", "attentive")]
        name = "HU histogram" if row["method"] == "histogram" else f"random {row['config']}"
        lines.append(f"| {name} | {row['seed'] if row['config'] else ''} | {cells[0]} | {cells[1]} |")
    return lines


def _value(found: Row | None) -> str:
    if found is None or found["auroc"] is None:
        return "-"
    return f"{found['auroc']:.3f}" + (" [{:.3f}, {:.3f}]".format(*found["ci"]) if found["ci"] else "")


def _line(encoder: str, method: str, beside: Mapping[str, Row]) -> str:
    cells = []
    for other in ("random", "histogram"):
        found = beside.get(other)
        interval = " [{:+.3f}, {:+.3f}]".format(*found["ci"]) if found and found["ci"] else ""
        cells.append("-" if found is None else f"{found['difference']:+.3f}{interval}")
    any_one = next(iter(beside.values()))
    seeds = ", ".join(str(s) for s in any_one["seeds"])
    verdict = _verdict(beside["random"]) if "random" in beside else ""
    return f"| {encoder} | {method} | {seeds} | {any_one['auroc']:.3f} | {cells[0]} | {cells[1]} | {verdict} |"


def _verdict(found: Row) -> str:
    if not found["ci"]:
        return "no interval"
    low, high = found["ci"]
    return "better" if low > 0 else ("worse" if high < 0 else "not told apart")


def _verdicts(differences: Sequence[Row]) -> list[str]:
    lines = ["### Beside the random encoder of the same architecture", ""]
    for readout in ("linear", "attentive"):
        groups: dict[str, list[str]] = {}
        for d in differences:
            if d["beside"] == "random" and d["readout"] == readout:
                groups.setdefault(_verdict(d), []).append(f"{d['method']} ({d['config']})")
        for verdict in ("better", "not told apart", "worse"):
            if verdict in groups:
                lines.append(f"- {readout} readout, {verdict}: {', '.join(groups[verdict])}.")
    return lines


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Probe AUROC over scans, one panel per encoder and readout, beside what random encoders and histogram reach."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = [r for r in rows if r.get("curve")]
    encoders = sorted({r["config"] for r in runs})
    if not runs:
        return
    figure = Figure(figsize=(5.6 * len(encoders), 8.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(encoders), squeeze=False, sharey=True)
    methods = sorted({r["method"] for r in runs})
    labelled = {}
    for column, encoder in enumerate(encoders):
        for line, (position, readout) in enumerate(((1, "linear"), (2, "attentive"))):
            axes = panels[line][column]
            for r in (r for r in runs if r["config"] == encoder):
                points = [(p[0], p[position]) for p in r["curve"] if p[position] is not None]
                colour = f"C{methods.index(r['method']) % 10}"
                style = "-" if methods.index(r["method"]) < 10 else "--"
                (labelled[r["method"]],) = axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1.2)
            for method, grey in (("random", "#777777"), ("histogram", "#222222")):
                read = "linear" if method == "histogram" else readout
                reached = [r[read]["auroc"] for r in rows if r["method"] == method and r["config"] in ("", encoder)]
                if reached:
                    name = f"{method}, test cases"
                    labelled[name] = axes.axhline(sum(reached) / len(reached), color=grey, linestyle=":", linewidth=1.4)
            axes.set_title(f"{encoder}, {readout} readout", fontsize=10)
            axes.set_xlabel("scans seen")
            axes.set_ylabel("probe AUROC, mean over labels")
            axes.grid(alpha=0.3)
    names = sorted(labelled, key=lambda name: (name not in methods, name))
    figure.legend([labelled[n] for n in names], names, loc="outside lower center", fontsize=8, ncols=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
