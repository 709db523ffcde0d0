"""Resolve monitor: step 15, how often a run is looked at, and by how many labelled cases, for 3 % of its time."""

from __future__ import annotations

import math
from math import prod

from headctssl.planning.budget import CROP_ELEMENTS, MATMUL_EFFICIENCY, OPS_FACTOR, VIEW_ELEMENTS
from headctssl.planning.decisions import Asked, Ledger
from headctssl.planning.encoder_cost import encoder_cost
from headctssl.planning.resolve_training import StepInputs
from headctssl.planning.run_settings import Estimate, MonitorSettings, TrainingSettings
from headctssl.settings import with_overrides

__all__ = ["FEWEST_CASES", "LOOK_SHARE", "MOST_CASES", "PROBE_SHARE", "monitor"]

LOOK_SHARE = 0.005
"""Most that signs of collapse may take of a run's modelled time."""

PROBE_SHARE = 0.015
"""Most that probes may take of it. Both together are 2 %: the model of a step is right to about a third."""

MOST_CASES, FEWEST_CASES = 160, 32
"""Labelled cases of the probes over both parts: with 80 scored cases, half of them positive, the 95 % interval of one
label's AUROC is .2 wide; with 16 it says nothing finer than chance or not."""

_MOST_PROBES, _FEWEST_PROBES = 40, 3
_LOOK_SECONDS = 0.01  # of singular values and of a line, besides the encoder; measured
_PROBE_SECONDS = 0.25  # of the readouts and their intervals, besides the encoder; measured at 160 cases of 64 tokens
_ATTENTIVE_NS = 2.5  # per case, token and channel of the attentive readout, all of its 60 steps; measured
_READ_SECONDS = 0.01  # per case; measured
_FIRST_PROBE_SECONDS = 2.0  # libraries that the first one loads; measured


def monitor(
    ledger: Ledger,
    asked: Asked,
    step: StepInputs,
    training: TrainingSettings,
    cost: Estimate,
    *,
    num_labelled: int,
    why_unlabelled: str,
) -> MonitorSettings:
    """Step 15. Monitors.

    Rule: a look at a batch 20 times in a run and at least every 50 steps, but for half a percent of its time; probes at
    most 40 times, with as many of 160, 80 or 40 labelled cases as let there be 3 of them in 1.5 %. Source: times of
    `python -m benchmarks.monitor`. Assumption: a case costs one forward pass, reading it whole, and its view.

    Args:
        ledger: takes the decisions.
        asked: what the user set.
        step: what the run computes.
        training: as decided.
        cost: of its steps.
        num_labelled: cases outside the test set of which a binary label is known.
        why_unlabelled: a sentence, when there are none.
    """
    given = with_overrides(MonitorSettings(), asked.section("monitor"), "monitor.")
    steps, seconds = training.num_steps, max(cost.step_seconds, 1e-9)
    scans = max(1, training.batch_size // (step.world_size * training.accumulation))
    look = _LOOK_SECONDS + scans * _case_seconds(step, training) * (1 + max(0, given.views))
    every = ledger.take(
        "steps between looks",
        min(steps, max(1, min(50, steps // 20), math.ceil(look / (LOOK_SHARE * seconds)))),
        asked.count("monitor.every"),
        f"a twentieth of the run, at most 50 steps, but for at most {LOOK_SHARE:.1%} of the time",
        "python -m benchmarks.monitor",
        f"a look takes {look:.2g} s, a step {seconds:.2g} s",
    )
    cases, probes = _cases_and_probes(step, training, steps * seconds, num_labelled, given)
    if not num_labelled:
        because = why_unlabelled
    elif not cases:
        because = f"{num_labelled} labelled cases, but {PROBE_SHARE:.1%} of {steps * seconds:.3g} s is too little for 3"
    else:
        because = (
            f"{num_labelled} labelled cases outside the test set; {probes} probes fit {PROBE_SHARE:.1%} of the time"
        )
    chosen = ledger.take(
        "probe cases",
        cases,
        asked.count("monitor.probe_cases", least=0),
        f"{MOST_CASES}, {MOST_CASES // 2} or {MOST_CASES // 4} labelled cases that are never test cases, half to learn "
        f"from, as many as allow {_FEWEST_PROBES} probes in {PROBE_SHARE:.1%} of the time; none without labels",
        "python -m benchmarks.monitor",
        because,
    )
    probe_every = given.probe_every
    if chosen:
        between = math.ceil(steps / max(1, probes - 1) / every) * every
        probe_every = ledger.take(
            "steps between probes",
            min(steps, between),
            asked.count("monitor.probe_every"),
            f"before the first step, after the last, and between them as often as {PROBE_SHARE:.1%} of the time "
            f"allows, at most {_MOST_PROBES} times, together with a look",
            "python -m benchmarks.monitor",
            f"a probe takes about {_probe_seconds(step, training, chosen, given):.2g} s",
        )
    return given.model_copy(update={"every": every, "probe_cases": chosen, "probe_every": probe_every})


def _cases_and_probes(
    step: StepInputs, training: TrainingSettings, total: float, num_labelled: int, given: MonitorSettings
) -> tuple[int, int]:
    """How many cases, and how many probes of them fit the time."""
    probes = 0
    for wanted in (MOST_CASES, MOST_CASES // 2, MOST_CASES // 4):
        cases = min(wanted, num_labelled)
        if cases < FEWEST_CASES:
            break
        left = PROBE_SHARE * total - _FIRST_PROBE_SECONDS
        probes = min(_MOST_PROBES, int(left / _probe_seconds(step, training, cases, given)))
        if probes >= _FEWEST_PROBES:
            return cases, probes
    return 0, _FEWEST_PROBES


def _probe_seconds(step: StepInputs, training: TrainingSettings, cases: int, given: MonitorSettings) -> float:
    """Seconds of one probe; the processes of a run share its cases."""
    tokens = min(512, prod(step.input_spec.shape) / prod(step.encoder.token_size)) if given.attentive else 0
    readouts = _PROBE_SECONDS + cases * tokens * step.encoder.embed_dim * _ATTENTIVE_NS * 1e-9 * given.attentive
    return readouts + math.ceil(cases / step.world_size) * (_READ_SECONDS + _case_seconds(step, training))


def _case_seconds(step: StepInputs, training: TrainingSettings) -> float:
    """Seconds to make the view of a whole head and to encode it, by the budget's model."""
    machine, half = step.machine, training.precision != "float32"
    one, _ = encoder_cost(step.encoder, step.input_spec.shape, 1.0, half)
    matmul = (machine.matmul_gflops_bf16 if half else machine.matmul_gflops_float32) * 1e9 * MATMUL_EFFICIENCY
    conv = (machine.conv_gflops_bf16 if half else machine.conv_gflops_float32) * 1e9
    voxels = VIEW_ELEMENTS * prod(step.input_spec.shape) * len(step.input_spec.windows)
    elements = one.elements + voxels + CROP_ELEMENTS * prod(step.read_shape)
    ops = one.ops * machine.launch_us * 1e-6 * OPS_FACTOR
    return (one.matmul + one.attention) / matmul + one.conv / conv + elements / (machine.elementwise_per_ns * 1e9) + ops
