"""Collapse: a guard over the lines of a run that says when an encoder gives every scan the same answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from statistics import mean
from typing import Literal

__all__ = ["LOOKED", "SIGNS", "CollapseGuard", "Finding"]

SIGNS: dict[str, float] = {
    "feature_std": 0.0,
    "embedding_std": 0.0,
    "embedding_rank": 1.0,
    "target_std": 0.0,
    "monitor_rank_me": 1.0,
}
"""Lines of metrics.jsonl that fall when features of different scans become the same, and what they fall to."""

LOOKED = "monitor_seconds"
"""Entry of every line at whose step the monitor looked, also where it found nothing."""

SHARE = 1 / 3
"""Share of its first distance from a single point below which a sign is one of collapse: no default run measured in
documentation/collapse.md fell below two thirds, every failing one fell below .29."""

_COMPARED = ("embedding_std", "target_std")  # logged by methods whose loss compares what it makes of scans
_FIRST_LINES = 5  # that the first value of a sign is the mean of
_LOOKS_IN_A_ROW = 2  # below, before anything is said: lines of single steps are noisy
_LEAST_SPREAD = 0.15
"""Distance from a single point that the first value of a rank must have to mean anything: features of heads keep what
all heads have in common, so that their RankMe may begin, and stay, just above 1."""
_TOLD_APART = 0.5
"""Mean of ``found``, the share of views that find their own among those of a step, from which fewer directions than at
first are no collapse: heads of random weights spread noise over many, and a task that is solved in three needs no more.
"""
_A_LINE = 2.0  # rank below which embeddings have two ends at most, whatever they find there


@dataclass(frozen=True)
class Finding:
    """A sign that fell."""

    sign: str
    step: int
    first: float
    now: float

    @property
    def text(self) -> str:
        """What was seen, in words."""
        return f"step {self.step}: {self.sign} fell from {self.first:.3g} to {self.now:.3g}"


@dataclass
class CollapseGuard:
    """Follows the lines of a run. What it knows is a function of the lines, so that a continued run knows the same.

    The rank of embeddings is no sign while scans are told apart in more than one direction (`_TOLD_APART`); their
    spread stays one, as the nearest of rows that are almost the same can still be the right one.

    Methods that log neither embeddings nor targets that could become the same (`mae`) compare no scans and are not
    judged: each scan has a target of its own, and the rank of features alone is no sign.
    """

    first: dict[str, list[float]] = field(default_factory=dict)
    since: dict[str, list[float]] = field(default_factory=dict)  # values since the last look
    told_apart: list[float] = field(default_factory=list)  # ``found`` since the last look
    looks: dict[str, int] = field(default_factory=dict)
    below: dict[str, int] = field(default_factory=dict)  # looks in a row
    fallen: tuple[Finding, ...] = ()  # at the last look
    told: bool = False  # a finding was returned

    def add(self, line: Mapping[str, float | int | None], *, look: bool) -> tuple[Finding, ...]:
        """Take a line; at a look, the signs that are below their share for the second look in a row.

        Args:
            line: of metrics.jsonl.
            look: whether the monitor looked at its step.

        Returns:
            Nothing, or what was seen; once in a run. `fallen` has what is seen at every look.
        """
        # A value that is not finite is null in metrics.jsonl, so it must not count here either.
        values = {name: float(v) for name in (*SIGNS, "found") if (v := line.get(name)) is not None and isfinite(v)}
        if not line.get("step") or not any(name in values for name in _COMPARED):
            return ()
        for sign in SIGNS:
            if sign in values:
                begun = self.first.setdefault(sign, [])
                if len(begun) < (1 if sign == "monitor_rank_me" else _FIRST_LINES):
                    begun.append(values[sign])
                else:
                    self.since.setdefault(sign, []).append(values[sign])
        if "found" in values:
            self.told_apart.append(values["found"])
        return self._judge(int(line["step"] or 0)) if look else ()

    def take_up(self, lines: Iterable[Mapping[str, float | int | None]]) -> tuple[Finding, ...]:
        """Take the lines of a metrics.jsonl; the monitor looked where one has the seconds that it took.

        Args:
            lines: in order.

        Returns:
            Nothing, or what was seen.
        """
        return tuple(finding for line in lines for finding in self.add(line, look=LOOKED in line))

    def state(self, sign: str) -> Literal["fell", "held", "not judged"]:
        """How a sign stood at the last looks; not judged before the second one, and where no scans are compared."""
        if self.looks.get(sign, 0) < _LOOKS_IN_A_ROW:
            return "not judged"
        return "fell" if self.below[sign] >= _LOOKS_IN_A_ROW else "held"

    def _judge(self, step: int) -> tuple[Finding, ...]:
        found = []
        for sign, values in self.since.items():
            point, first, now = SIGNS[sign], mean(self.first[sign]), mean(values)
            meant = first - point > (_LEAST_SPREAD if point else 0.0)
            if sign == "embedding_rank" and self.told_apart:
                meant &= now < _A_LINE or mean(self.told_apart) < _TOLD_APART
            self.looks[sign] = self.looks.get(sign, 0) + 1
            self.below[sign] = self.below.get(sign, 0) + 1 if meant and now - point < SHARE * (first - point) else 0
            if self.below[sign] >= _LOOKS_IN_A_ROW:
                found.append(Finding(sign, step, first, now))
        self.since, self.told_apart, self.fallen = {}, [], tuple(found)
        if self.told or not found:
            return ()
        self.told = True
        return self.fallen
