"""Resolve preset: step 1, which encoder when the user names none."""

from __future__ import annotations

from headctssl.planning.decisions import Ledger
from headctssl.planning.machine import Machine
from headctssl.planning.plans import Plans
from headctssl.presets import encoder_preset, method_facts, pair_refusal

__all__ = ["LADDERS", "choose_preset"]

LADDERS: dict[str, tuple[tuple[int, float, str], ...]] = {
    "transformer": ((0, 0, "vit_tiny"), (500, 8, "vit_s"), (5_000, 20, "vit_b"), (200_000, 60, "vit_l")),
    "cnn": ((0, 0, "resenc_s"), (500, 12, "resenc_m"), (5_000, 24, "resenc_l")),
}
"""Per kind: scans from which, and GB of device memory from which, a preset is chosen."""


def choose_preset(
    ledger: Ledger, plans: Plans, method_name: str, config: str | None, machine: Machine, num_cases: int
) -> str:
    """Step 1. Configuration.

    Rule: the largest preset of the method's default kind that the number of scans and the memory
    allow; on a CPU the smallest; never larger than the method's published encoder unless there
    are 200,000 scans. A method that works with none of them gets the encoder it was published with.
    Source: sizes of the reference recipes (HeadCT-Foundation trains ViT-B on 361,663 scans, OpenMind
    ResEnc-L on 114,570); below about 500 scans larger encoders only memorise. Assumption: thresholds
    are orders of magnitude, not measured optima.
    """
    published = method_facts(method_name).default_preset
    kind = encoder_preset(published).kind
    planned = {c.preset for c in plans.configurations}
    ladder = [step for step in LADDERS[kind] if pair_refusal(method_name, step[2]) is None] or [(0, 0, published)]
    chosen = ladder[0][2]
    for scans, memory_gb, name in ladder:
        if num_cases >= scans and machine.memory_gb >= memory_gb and name in planned and not machine.is_cpu:
            chosen = name
    where = "on a CPU" if machine.is_cpu else f"with {machine.memory_gb:g} GB on {machine.device}"
    if config is not None:
        plans.configuration(config)  # an unknown name is an error that lists the known ones
    return ledger.take(
        "configuration",
        chosen,
        config,
        "largest encoder that the scans and the memory allow, the smallest on a CPU",
        "sizes of HeadCT-Foundation (arXiv 2502.02779) and OpenMind (arXiv 2412.17041)",
        f"{num_cases} scans to train on, {where}",
    )
