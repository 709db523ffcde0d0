"""Suggest: what would have to change for a run to fit the memory, each change tried by the same rules as the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from headctssl.planning.machine import Machine
from headctssl.planning.plans import Plans
from headctssl.planning.resolve_training import MEMORY_SHARE
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import method_facts, pair_refusal
from headctssl.settings import JsonValue

__all__ = ["Change", "fits", "needed_scans", "suggest"]

Resolve = Callable[[str, Mapping[str, JsonValue]], RunSettings | None]
"""Preset and overrides -> the settings, or None where they are refused."""


@dataclass(frozen=True)
class Change:
    """A change with which the run fits."""

    what: str
    config: str
    overrides: dict[str, JsonValue]  # all of the call's, with the change
    new: dict[str, JsonValue]  # only what the change sets
    settings: RunSettings


def fits(settings: RunSettings, machine: Machine) -> bool:
    """Whether the modelled memory of a process is within the share of the device's."""
    return settings.estimate.memory_gb <= MEMORY_SHARE * machine.memory_gb


def needed_scans(method_name: str, num_cases: int, world_size: int, given: int | None) -> int:
    """Scans that a step must have: what the method needs to learn anything, but no more than there are or were asked.

    Args:
        method_name: the method.
        num_cases: scans to train on.
        world_size: processes that share a step evenly.
        given: batch size that the user set; None when it is chosen.
    """
    there = max(world_size, num_cases - num_cases % world_size)
    needed = min(method_facts(method_name).smallest_batch, there)
    return needed if given is None else min(needed, given)


def suggest(
    resolve: Resolve,
    asked: RunSettings,
    overrides: Mapping[str, JsonValue],
    plans: Plans,
    machine: Machine,
    needed: int,
    *,
    coupled: bool,
) -> list[Change]:
    """Changes with which a run fits, those first that change least of what is learned.

    Single changes are tried first: bfloat16, activation checkpointing, accumulation, a smaller batch, fewer local
    views, a smaller encoder. Where none is enough they are joined.

    Args:
        resolve: the rules of the run on this machine.
        asked: the run as it was asked for, which does not fit.
        overrides: of the call.
        plans: of the first dataset, which name the encoders.
        machine: what it should run on.
        needed: scans that a step must have.
        coupled: the loss compares the scans of a batch, which cannot be accumulated then.
    """

    def tried(what: str, new: Mapping[str, JsonValue], config: str = asked.config) -> Change | None:
        joined = {**overrides, **new}
        settings = resolve(config, joined)
        if settings is None or not fits(settings, machine) or settings.training.batch_size < needed:
            return None
        return Change(what, config, joined, dict(new), settings)

    changes = list(_singles(asked, needed, coupled=coupled, bf16=machine.bf16))
    found = [change for what, new in changes if (change := tried(what, new)) is not None]
    found = _first_of_each_kind(found)
    smaller = _smaller_encoders(resolve, asked, overrides, plans)
    found += [change for preset in smaller if (change := tried("a smaller encoder", {}, preset)) is not None][:2]
    if found:
        return found
    # The strongest of each kind together, on this encoder and then on smaller ones.
    strongest: dict[str, JsonValue] = {}
    for _, new in changes:
        strongest.update(new)
    if not coupled:
        strongest.pop("training.accumulation", None)  # the fewest passes that fit are found anew
    names = "; ".join(dict.fromkeys(what for what, _ in changes))
    if strongest and (change := tried(names, strongest)) is not None:
        return [change]
    joined = f"a smaller encoder; {names}".removesuffix("; ")
    return [change for preset in smaller if (change := tried(joined, strongest, preset)) is not None][:2]


def _singles(
    asked: RunSettings, needed: int, *, coupled: bool, bf16: bool
) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Changes by kind, within a kind the weakest first."""
    training, views = asked.training, asked.views
    if training.precision == "float32" and bf16:
        yield "bfloat16", {"training.precision": "bf16"}
    if not training.recompute and asked.encoder.drops_tokens:
        yield "blocks computed again in the backward pass", {"training.recompute": True}
    if not coupled:
        for passes in range(training.accumulation + 1, training.batch_size + 1):
            if training.batch_size % passes == 0:
                yield "the same batch in more passes", {"training.accumulation": passes}
    size = training.batch_size // 2
    while size >= max(1, needed):
        yield "a smaller batch", {"training.batch_size": size}
        size //= 2
    if views.local_count > 1:
        yield "fewer local views", {"views.local_count": views.local_count // 2}
    if views.local_count:
        yield "fewer local views", {"views.local_count": 0}


def _first_of_each_kind(changes: list[Change]) -> list[Change]:
    kinds: dict[str, Change] = {}
    for change in changes:
        kinds.setdefault(change.what, change)
    return list(kinds.values())


def _smaller_encoders(
    resolve: Resolve, asked: RunSettings, overrides: Mapping[str, JsonValue], plans: Plans
) -> list[str]:
    """Presets of the plans that the method can train and that take less memory, the largest first; none for tests."""
    known: list[tuple[float, str]] = []
    for configuration in plans.configurations:
        preset = configuration.preset
        if preset == asked.config or pair_refusal(asked.method_name, preset) is not None:
            continue
        settings = resolve(preset, overrides)
        if settings is not None and settings.estimate.memory_gb < asked.estimate.memory_gb:
            known.append((settings.estimate.memory_gb, preset))
    return [preset for _, preset in sorted(known, reverse=True)]
