"""Methods page: which method trains which encoder, as `headct_pretrain --list` and documentation/methods/README.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from headctssl.console import say, table
from headctssl.methods import METHODS, list_methods, method_class
from headctssl.planning.relative_cost import BATCH, YARDSTICKS, relative_cost
from headctssl.plugins import METHOD_GROUP, find_plugins, left_out_when_broken
from headctssl.presets import ENCODER_PRESETS, EncoderPreset, encoder_presets, method_facts, pair_refusal

__all__ = ["methods_markdown", "print_methods_and_encoders", "write_methods_page"]

_COST_NOTE = (
    f"Cost: seconds of a training step over those of mae, by the formulas of headct_estimate at batch {BATCH} with "
    f"published settings, on {YARDSTICKS[0]}, or on {YARDSTICKS[1]} where a method needs a CNN. Smallest batch: scans "
    "per step below which the objective says little; the batch of a run is chosen for the machine."
)


def print_methods_and_encoders() -> None:
    """Print the methods, the encoders and the pairs of both, other packages' included where they can be used."""
    rows = _listed_methods()
    names = [row[0] for row in rows]
    presets = _for_users(encoder_presets().values())
    table("methods (-m)", ("method", "what", "paper", "cost", "smallest batch"), rows)
    say(textwrap.fill(_COST_NOTE, 120) + "\n")
    encoders = [(preset.name, preset.settings.family, preset.description) for preset in presets]
    table("encoders (-c)", ("encoder", "family", "what"), encoders)
    say("")
    families = _families(presets)
    table("pairs that train", ("method", *families), _pair_rows(names, presets))
    for line in _reasons(names, presets):
        say(line)


def methods_markdown() -> str:
    """documentation/methods/README.md, of what is built in."""
    presets = _for_users(ENCODER_PRESETS.values())
    names = list(METHODS)
    described = {name: f"[{name}]({name}.md)" for name in names}
    rows = [(described[row[0]], *row[1:]) for row in _method_rows({n: METHODS[n].description for n in names})]
    pairs = [(described[row[0]], *row[1:]) for row in _pair_rows(names, presets)]
    encoders = [(f"`{p.name}`", p.settings.family, p.kind, p.description) for p in presets]
    parts = [
        "# Methods and encoders",
        "`headct_pretrain --list` prints these tables, with what other packages add. The page is generated from the"
        " code by `make docs`; a test compares.",
        *_table(("method", "what", "paper", "cost", "smallest batch"), rows),
        _COST_NOTE,
        "## Encoders",
        *_table(("encoder", "family", "kind", "what"), encoders),
        "## Pairs",
        "Every pair marked yes is built, trained, continued, exported and fine-tuned at test size by"
        " `tests/methods/test_matrix.py`. The others are refused before anything is made, with the reason.",
        *_table(("method", *_families(presets)), pairs),
        *_reasons(names, presets),
        "Add your own: [a method](../how-to/add-a-method.md), [an encoder](../how-to/add-an-encoder.md).",
    ]
    return "\n\n".join(parts) + "\n"


def write_methods_page(path: Path) -> None:
    """Write the page.

    Args:
        path: documentation/methods/README.md of a checkout.
    """
    path.write_text(methods_markdown(), encoding="utf-8")


def _listed_methods() -> list[tuple[str, ...]]:
    """The row of every method; another package's that cannot be used is left out with a warning."""
    plugins = find_plugins(METHOD_GROUP)
    rows: list[tuple[str, ...]] = []
    for name, description in list_methods():
        if name in METHODS:
            rows += _method_rows({name: description})
        else:
            with left_out_when_broken(plugins[name]):
                rows += _method_rows({name: description})
    return rows


def _method_rows(described: dict[str, str]) -> list[tuple[str, ...]]:
    """Name, description, paper, cost and smallest batch of each method."""
    mae = method_class("mae").Settings
    rows: list[tuple[str, ...]] = []
    for name, description in described.items():
        facts = method_facts(name)
        cost = relative_cost(name, method_class(name).Settings, mae)
        rows.append((name, description, facts.paper, f"{cost:.1f}", str(facts.smallest_batch)))
    return rows


def _for_users(presets: Iterable[EncoderPreset]) -> list[EncoderPreset]:
    """All but the sizes that only tests build."""
    return [preset for preset in presets if not preset.name.endswith("_test")]


def _families(presets: Iterable[EncoderPreset]) -> list[str]:
    return list(dict.fromkeys(preset.settings.family for preset in presets))


def _pair_rows(methods: Iterable[str], presets: Sequence[EncoderPreset]) -> list[tuple[str, ...]]:
    """Per method yes or no for each family; a refusal holds for a whole family."""
    first = {preset.settings.family: preset.name for preset in reversed(presets)}
    families = _families(presets)
    return [(name, *("no" if pair_refusal(name, first[f]) else "yes" for f in families)) for name in methods]


def _reasons(methods: Iterable[str], presets: Sequence[EncoderPreset]) -> list[str]:
    """One sentence per method that does not work with all families."""
    lines = []
    for name in methods:
        refused = [p.settings.family for p in presets if pair_refusal(name, p.name)]
        if refused:
            families = ", ".join(dict.fromkeys(refused))
            lines.append(f"{name} does not work with {families}: {method_facts(name).why_families}")
    return lines


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)]
